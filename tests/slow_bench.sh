#!/usr/bin/env bash
# slow_bench.sh - the benchmark programs run, print the lines that the comparison parses, and reject invalid options. Sizes
# are tiny: nothing here is about speed. compare.py meets a peer that only prints a line, so no PyTorch is needed.
set -u
bench=$MUSTER_BUILD/bench compare=$MUSTER_SOURCE/bench/compare.py
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_WAIT_POLICY=passive
passed=0 failed=0

check() {           # WHAT COMMAND...: passes when the command succeeds
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: $what"; tail -n 5 "$work/log" | sed 's/^/    | /'; fi
}
run() {             # CODE COMMAND...: output in $work/log
    local code=$1 got
    shift
    timeout 120 "$@" > "$work/log" 2>&1
    got=$?
    [ "$got" = "$code" ] || { echo "exit code $got, expected $code: $*"; return 1; }
}
says() { grep -Eq -- "$1" "$work/log"; }
# Every number of the output is one, and those the pattern captures are above zero.
positive() {        # AT_LEAST PATTERN
    ! grep -Eiq '(^|[^a-z])-?(nan|inf)([^a-z]|$)' "$work/log" &&
        sed -nE "s/$2/\\1/p" "$work/log" | awk -v least="$1" '$1 <= 0 { bad = 1 } END { exit bad || NR < least }'
}

for program in muster_bench muster_bench_products muster_bench_attention; do
    check "$program --help" run 0 "$bench/$program" --help
    check "$program --help says how" says '^usage:.*--OPTION'
    check "$program refuses an unknown option" run 64 "$bench/$program" --quick
    check "$program refuses a word for a number" run 64 "$bench/$program" --threads many
    check "$program says what it cannot read" says "cannot read '--threads many'"
done
check "muster_bench needs a model" run 64 "$bench/muster_bench" --dense --moe-only

tiny="--dim 32 --layers 1 --heads 1 --experts 4 --ffn 32 --seq 16 --batch 2 --steps 5 --threads 1"
# shellcheck disable=SC2086     # a list of words
for flags in "" "--skew --tied" "--dense --tied"; do
    check "muster_bench $flags" run 0 "$bench/muster_bench" $tiny $flags
    check "muster_bench $flags: tokens a second" positive 1 '.* ([0-9.]+) tok\/s.*'
    check "muster_bench $flags: peak memory" positive 1 '.*peak memory ([0-9.]+) MiB.*'
done
check "both models give the tax" run 0 "$bench/muster_bench" $tiny
check "the tax is a number" positive 1 '^MoE tax: ([0-9.]+) .*'

# bf16 either runs or is refused in one line
if timeout 120 "$bench/muster_bench" $tiny --bf16 > "$work/log" 2>&1; then
    check "muster_bench --bf16: tokens a second" positive 1 '.* ([0-9.]+) tok\/s.*'
else
    check "muster_bench --bf16 is refused clearly" says '^muster_bench: this processor has no bf16 products$'
fi

check "products" run 0 "$bench/muster_bench_products" --threads 2 --dim 48 --ffn 20 --experts 3 --rows 2 --ms 1 --rounds 1
check "products: rates of 6 products and 4 lines of experts" positive 10 '^  .* ([0-9.]+) +[0-9.]+ %.*'
if says 'in turn with [^n]'; then check "products: ratios" positive 10 '^  .* %.* ([0-9.]+)$'; fi
check "attention" run 0 "$bench/muster_bench_attention" --threads 2 --seq 48 --tokens 96 --rounds 2
check "attention: milliseconds" positive 1 '^S 48 B 2 .* backward ([0-9.]+) ms .*'

if ! command -v python3 > /dev/null; then
    echo "no python3: compare.py is not tried"
else
    cat > "$work/peer.py" <<'END'
"""--compile --dense --skew"""
import sys
if "--help" in sys.argv:
    print(__doc__)
else:
    print("params 0.01M 1000 tok/s peak memory 500 MiB" if "--compile" in sys.argv else "params 0.01M 2000 tok/s peak memory 400 MiB")
END
    check "compare.py --help" run 0 python3 "$compare" --help
    check "compare.py names its groups" says 'attention, products'
    check "compare.py refuses an unknown group" run 64 python3 "$compare" "$bench" python3 --only nothing
    check "compare.py wants the programs" run 66 python3 "$compare" "$work" python3
    check "compare.py" run 0 python3 "$compare" "$bench" python3 --peer "$work/peer.py" --tiny --rounds 2 --threads 2 \
        --only fp32,skew,tax,ranks,products --markdown "$work/table.md"
    check "compare.py: the better peer" says '^MoE fp32  .* 2,000 tok/s, peer '
    check "compare.py: the compiled peer" says '^MoE fp32, compiled peer .* 1,000 tok/s, peer --compile '
    check "compare.py: the skewed peer" says '^MoE fp32, skewed routing .* peer --skew '
    check "compare.py: memory" says '^MoE fp32, memory beyond state .* 400 MiB, peer '
    check "compare.py: the tax" says '^MoE tax, wide shape '
    if [ -n "${MPIEXEC:-}" ] && command -v mpirun > /dev/null; then check "compare.py: ranks" says '^4 ranks against 2'; fi
    cp "$work/table.md" "$work/log"
    check "compare.py: ratios" positive 6 '^\| .* \| .* \| .* \| ([0-9.]+) \|.*'
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
