#!/usr/bin/env bash
# run_script.sh - bench/gpu/run.py runs all its parts, with tiny sizes on the emulated device; a stand-in replaces the
# kernel cases, which have their own tests. Its figures mean nothing, but its table must be complete.
set -u
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tests" "$work/bench" "$work/bin"
ln -s "$MUSTER_ON_HOST" "$work/bin/muster"
ln -s "$MUSTER_BUILD/tests/muster_bench_bench_on_host" "$work/bench/muster_bench"
ln -s "$MUSTER_BUILD/tests/muster_bench_device_on_host" "$work/bench/muster_bench_device"
stand_in() { printf '#!/bin/sh\necho "cases of $1"\nexit %d\n' "$1" > "$work/tests/cuda_cases"; chmod +x "$work/tests/cuda_cases"; }
# A rival that prints what moe_layer.py prints, in place of a Python with PyTorch.
cat > "$work/python" <<'END'
#!/bin/sh
echo "MoE layer, T 96 d 64 n 64 E 4 K 2: torch"
echo "  layer forward     2.000 ms      0.50 TFLOP/s"
echo "  layer backward     2.000 ms      0.50 TFLOP/s"
echo "  kept for backward 1000000 bytes"
END
chmod +x "$work/python"
failed=0
run() {             # CODE: exit code wanted
    OMP_NUM_THREADS=1 timeout 300 python3 "$MUSTER_SOURCE/bench/gpu/run.py" "$work" --tiny --python "$work/python" --markdown "$work/table" > "$work/log" 2>&1
    local got=$?
    [ "$got" = "$1" ] || { echo "FAILED: exit code $got, expected $1"; tail -n 20 "$work/log"; failed=1; }
}
has() { grep -Eq "$1" "$work/table" || { echo "FAILED: no line '$1' in"; cat "$work/table"; failed=1; }; }

stand_in 0
run 0
has '^no nvidia-smi, .* a trial with tiny sizes|, a trial with tiny sizes'
has '^\| G1 \| MoE layer, T 96 .*: against torch \| [0-9.]+ \| 0.9 \| (pass|short) \|'
has '^\| G6 \| kept for backward, .*: against torch \| 0\.[0-9]+ \| at most 0.7 \| pass \|'
has '^\| G4 \| experts forward, .*: of the product \| [0-9.]+ \| 0.55 \|'
has '^\| G6 \| kept for backward, .*: over 2 T d \+ 4 T K n \| [01]\.[0-9]+ \| at most 1.3 \| '
has '^\| G8 \| a training step, fine: of the product in the same process \| [0-9.]+ \|'
has '^\| G10 \| waits of the host .* \| 0.00 \| at most 0 \| pass \|'
grep -q '^training in bf16: 20 losses, off by' "$work/log" || { echo "FAILED: no training in bf16"; failed=1; }
for what in 'norm, forward' 'norm, backward' 'router and plan, .*' 'combine' 'AdamW'; do has "^\| G12 \| $what: of the copy \| [0-9.]+ \| 0.7 \|"; done
stand_in 1
run 1
stand_in 77
run 69
[ $failed = 0 ] && echo "run.py goes through"
exit $failed
