# ranks_fp64.sh - the same global batch on any number of ranks, any ep, any number of micro-batches: on the
# double-precision device 50 steps agree to 1e-9, expert counts exactly. Two runs on the same number of ranks are
# bit-identical, for any number of threads.
. "$(dirname "$0")/train_lib.sh"

sigmoid="moe.score_func=sigmoid moe.balance=[expert_bias,seq_aux_loss] $families"
for kind in softmax sigmoid; do
    options="train.steps=50 train.device=ref model.hidden_size=16 moe.moe_ffn_hidden_size=8"
    [ $kind = sigmoid ] && options="$options $sigmoid moe.router_jitter=0.1"
    expect 0 "$kind on one rank" train 1 $kind-1 $options
    expect 0 "$kind on one rank, again with 3 threads" train 1 $kind-again $options train.threads=3
    same_metrics $kind-1 $kind-again exact
    same_checkpoint $kind-1 $kind-again 50
    expect 0 "$kind in 4 micro-batches" train 1 $kind-micro $options train.micro_batch_size=2
    same_metrics $kind-1 $kind-micro 1e-9
    [ -n "${MPIEXEC:-}" ] || continue
    for cut in 2:2:0 4:1:0 4:2:1 ${every:+2:1:0 2:2:2 4:4:0}; do
        IFS=: read -r ranks ep micro <<< "$cut"
        dir=$kind-$ranks-$ep-$micro
        expect 0 "$dir" train "$ranks" "$dir" $options parallel.ep="$ep" train.micro_batch_size="$micro"
        same_metrics $kind-1 "$dir" 1e-9
    done
    expect 0 "$kind on 2 ranks, again" train 2 $kind-again-2 $options parallel.ep=2 train.threads=2
    same_metrics $kind-2-2-0 $kind-again-2 exact
    same_checkpoint $kind-2-2-0 $kind-again-2 50
done
finish
