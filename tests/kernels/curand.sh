#!/usr/bin/env bash
# curand.sh - our Philox against cuRAND's device headers, compiled for the host; skipped without a CUDA toolkit.
set -eu
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # which change what cd, grep and bash itself do
source_tree=${MUSTER_SOURCE:-$(cd -- "$(dirname -- "$0")/../.." && pwd)}
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
headers=$(dirname "$(dirname "$(readlink -f "$nvcc")")")/include
[ -f "$headers/curand_kernel.h" ] || { echo "skipped: no curand_kernel.h in $headers"; exit 77; }
command -v c++ > /dev/null || { echo "skipped: no C++ compiler"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -std=gnu11 -O1 -I"$source_tree" -c "$source_tree/base/philox.c" -o "$work/philox.o"
c++ -std=c++17 -O1 -Wall -Wextra -Werror -I"$source_tree" -isystem "$headers" "$source_tree/tests/kernels/curand.cpp" \
    "$work/philox.o" -o "$work/curand" -lm
"$work/curand"
