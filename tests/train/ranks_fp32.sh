# ranks_fp32.sh - as ranks_fp64.sh in single precision, where another order of sums may choose another expert:
# 1e-5 until expert counts first differ, 1e-2 after. Bit-identical on the same number of ranks, for any number
# of threads, bound or not.
. "$(dirname "$0")/train_lib.sh"

sigmoid="moe.score_func=sigmoid moe.balance=[expert_bias,seq_aux_loss] moe.num_shared_experts=1"
for kind in softmax sigmoid; do
    options="train.steps=50"
    [ $kind = sigmoid ] && options="$options $sigmoid"
    expect 0 "$kind on one rank" train 1 $kind-1 $options
    for threads in 2 5; do
        expect 0 "$kind on one rank, $threads threads" train 1 $kind-$threads-threads $options train.threads=$threads
        same_metrics $kind-1 $kind-$threads-threads exact
        same_checkpoint $kind-1 $kind-$threads-threads 50
    done
    expect 0 "$kind in 2 micro-batches" train 1 $kind-micro $options train.micro_batch_size=4
    same_metrics $kind-1 $kind-micro fp32
    [ -n "${MPIEXEC:-}" ] || continue
    for cut in 2:1:4 4:2:2 ${every:+2:2:0 4:1:0 4:4:1}; do
        IFS=: read -r ranks ep micro <<< "$cut"
        dir=$kind-$ranks-$ep-$micro
        expect 0 "$dir" train "$ranks" "$dir" $options parallel.ep="$ep" train.micro_batch_size="$micro"
        same_metrics $kind-1 "$dir" fp32
    done
    expect 0 "$kind on 4 ranks, again" train 4 $kind-again-4 $options parallel.ep=2 train.micro_batch_size=2 train.threads=3
    same_metrics $kind-4-2-2 $kind-again-4 exact
    same_checkpoint $kind-4-2-2 $kind-again-4 50
done
finish
