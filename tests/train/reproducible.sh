# reproducible.sh - train.reproducible: every logged value and every weight bit for bit the same for any split of the
# global batch over ranks, ep and micro-batches, and for any number of threads; also after a resume on another split.
# Single precision, where without the option the last digits tell the splits apart (shown first: the test can fail).
. "$(dirname "$0")/train_lib.sh"

# Widths that fill no vector, so that rows begin anywhere, and 12 sequences, which 2, 3, 4 and 6 divide.
common="model.hidden_size=36 model.head_dim=10 moe.moe_ffn_hidden_size=20 train.steps=30 train.global_batch_size=12 train.eval_every=10 data.val_fraction=0.05"
softmax="moe.num_shared_experts=1"
capacity="moe.capacity_factor=1.25 moe.balance=[global_aux_loss,seq_aux_loss] model.tie_embeddings=true moe.top_k=3"
sigmoid="moe.score_func=sigmoid moe.balance=[expert_bias] moe.num_shared_experts=1 moe.route_scale=2.5 moe.first_k_dense=1 model.num_layers=3"
dense="moe.num_experts=0 model.qk_norm=false"

# Ranks, ep, sequences of a micro-batch, threads. The global batch is not a power of two: shares of 3 ranks begin
# where no tree of 4 has a border.
alone="1:1:1:1 1:1:3:2 1:1:6:1"
several="2:1:0:1 2:2:2:1 3:1:2:1 4:2:3:1 4:4:1:1 4:1:1:2"

# split KIND OPTIONS RANKS:EP:MICRO:THREADS FLAGS: sets $dir
split() {
    IFS=: read -r ranks ep micro threads <<< "$3"
    dir=$1-$ranks-$ep-$micro-$threads
    [ "$1" = dense ] && ep=1
    expect 0 "$dir" train "$ranks" "$dir" $common $2 parallel.ep="$ep" train.micro_batch_size="$micro" train.threads="$threads" $4
}

[ -n "${MPIEXEC:-}" ] || several=""
for kind in softmax capacity sigmoid dense; do
    options=${!kind}
    # One rank, one micro-batch of all 12, with and without the option.
    split $kind "$options" 1:1:0:1 train.reproducible=true
    one=$dir
    for cut in $alone $several; do
        split $kind "$options" "$cut" train.reproducible=true
        same_metrics "$one" "$dir" exact
        same_checkpoint "$one" "$dir" 30
    done
    split $kind-plain "$options" 1:1:0:1 ""
    plain=$dir
    same_metrics "$one" "$plain" fp32
    split $kind-plain "$options" 1:1:1:1 ""
    if "$MUSTER_COMPARE" metrics "$plain/metrics.jsonl" "$dir/metrics.jsonl" exact > /dev/null
    then fail "$kind: two splits agree without the option too: this test shows nothing"; else pass; fi
done
finish
