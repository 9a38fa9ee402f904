#!/usr/bin/env bash
# The kernels on processors that this machine may not have, under qemu's user-mode emulation: x86-64 with AVX2,
# baseline x86-64, and AArch64 (compiled for it here). On each the best table that the
# processor can run must be chosen, and every kernel case must agree with the reference.
set -euo pipefail
trap 'echo "FAILED at line $LINENO"' ERR

out=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$out"' EXIT
names=() jobs=()

# check NAME WANTED-DEVICE COMMAND...: starts the cases, run by COMMAND, in parallel with those already running
check() {
    local name=$1 wanted=$2 best
    shift 2
    best=$("$@" --best)
    [ "$best" = "$wanted" ] || { echo "FAILED: $name chose $best, expected $wanted"; exit 1; }
    if [ "$best" = cpu-avx2 ]; then return; fi      # test_kernels runs its cases without qemu on most machines
    "$@" "$best" > "$out/said.${#jobs[@]}" 2>&1 &
    names+=("$name") jobs+=($!)
}

export OMP_NUM_THREADS=1
if [ "$(uname -m)" = x86_64 ] && command -v qemu-x86_64 > /dev/null; then
    check "x86-64 with AVX2" cpu-avx2 qemu-x86_64 -cpu max,-avx512f "$MUSTER_KERNELS"
    check "x86-64 base" cpu-base qemu-x86_64 -cpu qemu64 "$MUSTER_KERNELS"
    if qemu-x86_64 -cpu qemu64 "$MUSTER_KERNELS" cpu-avx2 2> "$out/refused"; then
        echo "FAILED: a processor without AVX2 opened cpu-avx2"; exit 1
    fi
    grep -q 'cannot run cpu-avx2' "$out/refused"
else
    echo "no qemu-x86_64: the narrower x86-64 tables are tested on this processor only"
fi

cross=aarch64-linux-gnu-gcc
if command -v $cross > /dev/null && command -v qemu-aarch64 > /dev/null; then
    cd "$MUSTER_SOURCE"
    base=(base/fatal.c base/json.c base/log.c base/print.c base/memory.c base/philox.c base/threads.c)
    for file in "${base[@]}" kernels/device.c kernels/cuda_none.c kernels/ref/*.c tests/tools/kernels.c $(ls kernels/cpu/*.c | grep -v bf16); do
        echo "$file"
    done | xargs -P 2 -I FILE sh -c "$cross -std=gnu11 -O2 -Wall -Wextra -Werror -D_GNU_SOURCE -DMU_CPU_ISA=base -I. -Itests \
        -fopenmp -fno-math-errno -fno-trapping-math -c FILE -o $out/\$(echo FILE | tr / _).o"
    $cross -static -fopenmp "$out"/*.o -o "$out/kernels" -lm
    check AArch64 cpu-base qemu-aarch64 "$out/kernels"
else
    echo "no $cross or qemu-aarch64: AArch64 is not tested"
fi
[ ${#jobs[@]} -gt 0 ] || exit 77
failed=0
for i in "${!jobs[@]}"; do
    wait "${jobs[i]}" || { failed=1; echo "FAILED: ${names[i]}"; }
    sed "s/^/${names[i]}: /" "$out/said.$i"
done
exit $failed
