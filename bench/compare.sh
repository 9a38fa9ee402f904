#!/usr/bin/env bash
# Runs the benchmark and a PyTorch program of the same model in turn and prints the ratios of the medians.
#
#   bench/compare.sh BUILD/bench/muster_bench PYTHON PEER.py [ROUNDS]
#
# PEER.py takes --vocab --threads --steps and prints "... N tok/s ... peak memory N MiB", as both programs do.
# Machines are noisy: nothing else should run meanwhile, and only the ratio means something.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,7p' "$0" | cut -c3-; exit 64; }
bench=$1 python=$2 peer=$3 rounds=${4:-3} threads=$(nproc)

field() { grep -o "$2" <<<"$1" | grep -o '[0-9][0-9.]*' | tail -1; }
median() { sort -n | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'; }

ours=() theirs=() our_memory=() their_memory=()
for ((i = 1; i <= rounds; i++)); do
    a=$("$bench" --moe-only --threads "$threads")
    b=$(OMP_NUM_THREADS=$threads "$python" "$peer" --vocab 257 --threads "$threads")
    ours+=("$(field "$a" '[0-9.]* tok/s')") theirs+=("$(field "$b" '[0-9.]* tok/s')")
    our_memory+=("$(field "$a" 'peak memory [0-9]*')") their_memory+=("$(field "$b" 'peak memory [0-9]*')")
    echo "round $i: muster ${ours[-1]} tok/s, ${our_memory[-1]} MiB; peer ${theirs[-1]} tok/s, ${their_memory[-1]} MiB"
done
m=$(printf '%s\n' "${ours[@]}" | median) p=$(printf '%s\n' "${theirs[@]}" | median)
mm=$(printf '%s\n' "${our_memory[@]}" | median) pm=$(printf '%s\n' "${their_memory[@]}" | median)
awk -v m="$m" -v p="$p" -v mm="$mm" -v pm="$pm" 'BEGIN {
    printf "speed: %.0f / %.0f tok/s = %.2f   peak memory: %.0f / %.0f MiB = %.2f\n", m, p, m / p, mm, pm, mm / pm }'
