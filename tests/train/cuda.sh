# cuda.sh - train.device cuda, on the emulated device (on MUSTER_GPU's, if given): training agrees with the CPU in fp32 and bf16, checkpoints move
# between devices, ranks agree, and errors are reported.
. "$(dirname "$0")/train_lib.sh"
cpu=$MUSTER
gpu=${MUSTER_GPU:-$MUSTER_ON_HOST}

# with PROGRAM N DIR OPTION...: the learning rate does not depend on train.steps
with() {
    MUSTER=$1
    shift
    train "$@" optim.schedule=constant
    local code=$?
    MUSTER=$cpu
    return $code
}
if [ -n "${MUSTER_GPU:-}" ]; then
    with "$gpu" 1 probe train.device=cuda train.steps=1 optim.warmup_steps=1
    grep -Eq 'no NVIDIA GPU|without CUDA|MUSTER_CUDA' log && skip "$(grep -om 1 "error: .*" log)"
fi
losses() { grep -o '"train/loss":[0-9.e-]*' "$1/metrics.jsonl" | cut -d: -f2; }
# follows A B MOST [STEPS]: the losses of two runs differ by at most MOST, relative, in every step
follows() {
    local said
    said=$(paste <(losses "$1") <(losses "$2") | awk -v most="$3" -v steps="${4:-20}" '
        { d = ($1 - $2) / $1; if (d < 0) d = -d; if (d > worst) worst = d }
        END { printf "%d steps, %.2g\n", NR, worst; exit !(NR == steps && worst <= most) }')
    if [ $? = 0 ]; then pass; else fail "losses of $1 and $2: $said, at most $3 allowed"; fi
    [ -n "${VERBOSE:-}" ] && echo "$1, $2: $said"
}

# ---------------------------------------------------------------- the loss agrees with the CPU's
# Plain; shared expert, sigmoid scores, selection bias, capacity, tied embeddings; options of other families; widths that the fast kernels do not support.
models=(
    "plain"
)
[ -z "${every:-}${MUSTER_GPU:-}" ] || models+=(
    "shared moe.num_shared_experts=1 moe.capacity_factor=1.0 moe.score_func=sigmoid moe.balance=[seq_aux_loss,expert_bias] model.tie_embeddings=true"
    "families $families"
    "odd model.hidden_size=30 model.num_heads=3 model.num_kv_heads=1 model.head_dim=10 moe.moe_ffn_hidden_size=13 moe.num_experts=5 train.micro_batch_size=4"
)
for model in "${models[@]}"; do
    read -r name options <<< "$model"
    # shellcheck disable=SC2086     # the options are a list of words
    {
        expect 0 "$name on the processor" with "$cpu" 1 "$name-cpu" train.device=cpu $options
        expect 0 "$name on the device" with "$gpu" 1 "$name-fp32" train.device=cuda $options checkpoint.every=20
        follows "$name-cpu" "$name-fp32" 1e-4
        expect 0 "$name in bf16" with "$gpu" 1 "$name-bf16" train.device=cuda train.dtype=bf16 $options checkpoint.every=20
        follows "$name-cpu" "$name-bf16" 1e-2
    }
done
if grep -q '"cuda-bf16"' plain-bf16/run.json; then pass; else fail "run.json does not name cuda-bf16"; fi
if cmp -s <(losses plain-fp32) <(losses plain-bf16); then fail "bf16 changed no bit of any loss"; else pass; fi

# ---------------------------------------------------------------- checkpoints do not depend on the device
expect 0 "on from the device's fp32 on the processor" with "$cpu" 1 plain-fp32 train.device=cpu train.steps=24
expect 0 "on from the processor's on the device, in bf16" with "$gpu" 1 plain-fp32 train.device=cuda train.dtype=bf16 train.steps=28
expect 0 "on from bf16 in fp32 on the device" with "$gpu" 1 plain-bf16 train.device=cuda train.steps=28
expect 0 "on from that on the processor" with "$cpu" 1 plain-bf16 train.device=cpu train.steps=30
expect 0 "all of it on the processor" with "$cpu" 1 plain-cpu-30 train.device=cpu train.steps=30
follows plain-cpu-30 plain-bf16 1e-2 30
# a checkpoint has the values in memory: eval of it gives the same loss on both
expect 0 "eval on the processor" on 1 "$cpu" eval plain-fp32 train.device=cpu
cpu_says=$(grep -Eo '[0-9]+\.[0-9]{3}' log | head -3 | paste -sd ' ' -)
expect 0 "eval on the device" on 1 "$gpu" eval plain-fp32 train.device=cuda
gpu_says=$(grep -Eo '[0-9]+\.[0-9]{3}' log | head -3 | paste -sd ' ' -)
if [ -n "$cpu_says" ] && [ "$cpu_says" = "$gpu_says" ]; then pass; else fail "eval: '$cpu_says' and '$gpu_says'"; fi
expect 0 "generate on the processor" on 1 "$cpu" generate plain-fp32 --prompt ab --tokens 12 --temperature 0 train.device=cpu
cp log cpu.text
expect 0 "generate on the device" on 1 "$gpu" generate plain-fp32 --prompt ab --tokens 12 --temperature 0 train.device=cuda
if diff -q <(grep -Ev 'tokens/s|warning' cpu.text) <(grep -Ev 'tokens/s|warning' log) > /dev/null; then pass; else fail "other text than on the processor"; fi

# ---------------------------------------------------------------- several ranks, one device or several
if [ -n "${MPIEXEC:-}" ]; then
    MUSTER_EMULATED_DEVICES=2 expect 0 "two ranks, data parallel" with "$gpu" 2 dp2 train.device=cuda
    follows plain-cpu dp2 1e-4
    expect 0 "two ranks share a device and the experts" with "$gpu" 2 ep2 train.device=cuda parallel.ep=2
    follows plain-cpu ep2 1e-4
fi
if [ -n "${MPIEXEC:-}" ] && [ -n "${every:-}${MUSTER_GPU:-}" ]; then
    expect 0 "four ranks" with "$gpu" 4 ep4 train.device=cuda parallel.ep=4
    follows plain-cpu ep4 1e-4
    expect 0 "four ranks, bf16" with "$gpu" 4 ep2dp2 train.device=cuda train.dtype=bf16 parallel.ep=2
    follows plain-cpu ep2dp2 1e-2
fi

# ---------------------------------------------------------------- only with the emulation
[ -z "${MUSTER_GPU:-}" ] || finish
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "steps of two ranks, counted" on 2 "$MUSTER_BUILD/tests/muster_evidence_step" tiny.yaml train.device=cuda parallel.ep=2
    if [ "$(grep -c ', 0 allocations$' log)" = 6 ]; then pass; else fail "two ranks ask for memory in later steps: $(cat log)"; fi
    # A CUDA-aware MPI gets device memory: bit-identical, and gradients are summed on the device.
    export MUSTER_EMULATED_MPI=1 MUSTER_EMULATED_REPORT=$PWD/report
    expect 0 "two ranks, MPI reads the device" with "$gpu" 2 direct-ep2 train.device=cuda parallel.ep=2
    runs=ep2
    if [ -n "${every:-}" ]; then
        runs="ep2 ep2dp2"
        expect 0 "four ranks, MPI reads the devices" with "$gpu" 4 direct-ep2dp2 train.device=cuda train.dtype=bf16 parallel.ep=2
    fi
    unset MUSTER_EMULATED_MPI MUSTER_EMULATED_REPORT
    if grep -q '^add_kernel<float>' report; then pass; else fail "no sums of fp32 gradients on the device"; fi
    for run in $runs; do
        if cmp -s <(losses $run) <(losses direct-$run); then pass; else fail "direct-$run: other losses"; fi
        if grep -q '"mpi_cuda_aware":true' direct-$run/run.json && grep -q '"mpi_cuda_aware":false' $run/run.json; then pass
        else fail "$run: run.json"; fi
    done
fi

# ---------------------------------------------------------------- errors
expect 78 "a build without CUDA" with "$cpu" 1 none train.device=cuda
says "a build without CUDA" 'error: train.device cuda: rank 0: .*(MUSTER_CUDA|GPU)'
MUSTER_EMULATED_DEVICES=0 expect 78 "no GPU" with "$gpu" 1 none train.device=cuda
says "no GPU" 'error: train.device cuda: rank 0: no NVIDIA GPU found .*; train.device=cpu'
MUSTER_EMULATED_DEVICES=0 expect 0 "auto without a GPU" with "$gpu" 1 auto train.device=auto train.steps=2 optim.warmup_steps=1
MUSTER_EMULATED_DRIVER=11040 expect 78 "an old driver" with "$gpu" 1 none train.device=cuda
says "an old driver" 'the NVIDIA driver supports CUDA 11.4, but this build needs [0-9]+\.[0-9]; install a newer driver'
MUSTER_EMULATED_CAPABILITY=7 expect 78 "an old GPU" with "$gpu" 1 none train.device=cuda
says "an old GPU" 'GPU 0 has compute capability 7.0, this build needs 8.0 or more'
MUSTER_EMULATED_CAPABILITY=7 expect 0 "auto with an old GPU" with "$gpu" 1 auto-old train.device=auto train.steps=2 optim.warmup_steps=1
says_once "auto with an old GPU" 'train.device auto: rank 0: GPU 0 has compute capability .*; training on the processor'
MUSTER_EMULATED_FAULT=rmsnorm expect 70 "a kernel that faults" with "$gpu" 1 faulty train.device=cuda
says_once "a kernel that faults" 'cudaErrorLaunchFailure.*compute-sanitizer'
MUSTER_EMULATED_BYTES=$((20 << 20)) expect 70 "a full device" with "$gpu" 1 full train.device=cuda
says_once "a full device" 'cuda is full: [0-9]+ MiB more needed, .* smaller micro-batch'
finish
