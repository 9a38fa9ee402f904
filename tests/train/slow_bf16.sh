# slow_bf16.sh - train.dtype bf16: the loss follows fp32 where the processor has the instructions; otherwise one
# warning, and everything is fp32.
. "$(dirname "$0")/train_lib.sh"

losses() { grep -o '"train/loss":[0-9.e-]*' "$1/metrics.jsonl" | cut -d: -f2; }
# follows A B MOST: means of 10 steps of two runs differ by less than MOST, relative; prints the difference
follows() {
    paste <(losses "$1") <(losses "$2") | awk -v most="$3" '
        { a[NR] = $1; b[NR] = $2; sa += $1; sb += $2 }
        NR > 10 { sa -= a[NR - 10]; sb -= b[NR - 10] }
        NR >= 10 { d = (sa - sb) / sa; if (d < 0) d = -d; if (d > worst) worst = d }
        END { printf "%d steps, %.2g\n", NR, worst; exit !(NR >= 100 && worst < most) }'
}
line='muster: warning: train.dtype bf16: the processor of rank 0 has no AVX512-BF16; everything is fp32'
steps=200
long="train.steps=$steps train.seq_len=64 model.max_seq_len=64 model.hidden_size=64 moe.moe_ffn_hidden_size=48 optim.lr=1e-3"

expect 0 "$steps steps in fp32" train 1 fp32 $long
expect 0 "$steps steps in bf16" train 1 bf16 $long train.dtype=bf16
if grep -q 'no AVX512-BF16' log; then
    if [ "$(grep -c . log)" = 1 ] && grep -qxF "$line" log; then pass; else fail "expected this one line: $line"; fi
    if cmp -s <(losses fp32) <(losses bf16); then pass; else fail "without bf16 instructions the run is not the fp32 run"; fi
else
    if grep -q '"cpu-bf16"' bf16/run.json; then pass; else fail "run.json does not name cpu-bf16"; fi
    if cmp -s <(losses fp32) <(losses bf16); then fail "bf16 changed no bit of any loss"; else pass; fi
    if said=$(follows fp32 bf16 1e-2); then pass; else fail "bf16 leaves fp32: $said"; fi
    # everything together: shared expert, sigmoid scores with bias, capacity, tied embeddings, grouped keys, odd sizes
    rest="$long model.tie_embeddings=true model.hidden_size=60 model.num_heads=3 moe.moe_ffn_hidden_size=35 moe.num_shared_experts=1 \
        moe.capacity_factor=1.5 moe.score_func=sigmoid moe.balance=[seq_aux_loss,expert_bias]"
    expect 0 "another model in fp32" train 1 other32 $rest
    expect 0 "another model in bf16" train 1 other16 $rest train.dtype=bf16
    if said=$(follows other32 other16 1e-2); then pass; else fail "bf16 leaves fp32: $said"; fi
    # threads do not change a bit
    expect 0 "two threads" train 1 threads $long train.dtype=bf16 train.steps=40 train.threads=2
    expect 0 "one thread" train 1 thread $long train.dtype=bf16 train.steps=40
    if cmp -s <(losses threads) <(losses thread); then pass; else fail "two threads give other losses"; fi
fi

# weights are fp32 either way: a run resumes in the other dtype, and eval runs in either
expect 0 "going on in fp32" train 1 bf16 $long train.dtype=fp32 train.steps=$((steps + 10))
if grep -q 'train.dtype: bf16 -> fp32' log; then pass; else fail "the change of train.dtype is not listed"; fi
for dtype in fp32 bf16; do
    expect 0 "eval in $dtype" on 1 "$MUSTER" eval bf16 train.dtype=$dtype
done
expect 78 "bf16 on the reference device" train 1 refused train.dtype=bf16 train.device=ref

# ranks: the same training, bit-identical in reproducible mode
if [ -n "${MPIEXEC:-}" ]; then
    exact="train.dtype=bf16 train.reproducible=true train.steps=30"
    expect 0 "one rank, reproducible" train 1 one $exact
    expect 0 "two ranks, reproducible" train 2 two $exact parallel.ep=2 train.micro_batch_size=2
    if cmp -s <(losses one) <(losses two); then pass; else fail "two ranks give other losses in reproducible bf16"; fi
fi

# a processor without the instructions
if command -v qemu-x86_64 > /dev/null && [ "$(uname -m)" = x86_64 ]; then
    limit=300 expect 0 "an emulated processor with AVX2 only" on 1 qemu-x86_64 -cpu max,-avx512f "$MUSTER" train tiny.yaml run.dir=avx2 \
        train.dtype=bf16 train.steps=2 optim.warmup_steps=1
    if grep -qxF "$line" log; then pass; else fail "expected this line: $line"; fi
    expect 78 "AVX-512 asked of it" on 1 qemu-x86_64 -cpu max,-avx512f "$MUSTER" train tiny.yaml run.dir=no train.device=cpu-avx512
    if grep -q 'error: train.device cpu-avx512: the processor of rank 0 lacks' log; then pass; else fail "no clear refusal of cpu-avx512"; fi
fi
# ranks on different processors use the kernels that all of them can run
if [ -n "${MPIEXEC:-}" ] && command -v qemu-x86_64 > /dev/null && grep -qw avx2 /proc/cpuinfo; then
    few="train.steps=6 train.reproducible=true"
    expect 0 "two ranks on AVX2" train 2 both $few train.device=cpu-avx2
    cat > either.sh <<'END'
[ "$OMPI_COMM_WORLD_RANK" = 0 ] || set -- qemu-x86_64 -cpu max,-avx512f "$@"
exec "$@"
END
    limit=300 expect 0 "ranks on different processors" on 2 bash either.sh "$MUSTER" train tiny.yaml run.dir=mixed $few
    if cmp -s <(losses both) <(losses mixed); then pass; else fail "different processors round differently"; fi
    if grep -q '"cpu-avx2"' mixed/run.json; then pass; else fail "run.json does not name the kernels that were used"; fi
fi
for device in cpu-base cpu-avx2; do
    if grep -qw "${device#cpu-}" /proc/cpuinfo || [ $device = cpu-base ]; then
        expect 0 "training on $device" train 1 narrow-$device train.device=$device
        if grep -q "\"$device\"" narrow-$device/run.json; then pass; else fail "run.json does not name $device"; fi
    fi
done
finish
