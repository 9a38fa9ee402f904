#!/usr/bin/env bash
# gpu_sanitizer.sh - on a GPU: every kernel case under compute-sanitizer's memcheck and racecheck.
set -u
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
cases=$MUSTER_BUILD/tests/cuda_cases
"$cases" cuda fill
[ $? != 77 ] || exit 77
[ -x "$sanitizer" ] || { echo "skipped: no compute-sanitizer"; exit 77; }
for kind in cuda cuda-bf16; do
    for tool in memcheck racecheck; do
        "$sanitizer" --tool $tool --error-exitcode 1 "$cases" $kind || { echo "FAILED: $tool, $kind"; exit 1; }
    done
done
