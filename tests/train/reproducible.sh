# reproducible.sh - train.reproducible: every logged value and every weight is bit-identical for any split of the
# global batch over ranks, ep and micro-batches, and for any number of threads; also after a resume on another split.
# Single precision, where results of splits differ in the last digits without the option (tested, too).
. "$(dirname "$0")/train_lib.sh"

# Widths that are no multiple of a vector, so rows are unaligned; 12 sequences on 3 ranks, which fit no fixed reduction tree.
common="model.hidden_size=36 model.head_dim=10 moe.moe_ffn_hidden_size=20 train.global_batch_size=12"
short="train.steps=30 train.eval_every=10 checkpoint.every=15 stats.every=5 stats.starved_load=0.9 stats.budget=1"
softmax="$short $families"
capacity="$short moe.capacity_factor=1.25 moe.balance=[global_aux_loss,seq_aux_loss] model.tie_embeddings=true moe.top_k=3"
sigmoid="$short moe.score_func=sigmoid moe.balance=[expert_bias] moe.num_shared_experts=1 moe.first_k_dense=1 model.num_layers=3"
dense="$short moe.num_experts=0 model.qk_norm=false"
long="train.steps=3 train.seq_len=520 model.max_seq_len=520 train.eval_every=3 optim.warmup_steps=0"    # longer than the blocks of kernels

# split KIND OPTIONS RANKS:EP:MICRO:THREADS: sets $dir
split() {
    IFS=: read -r ranks ep micro threads <<< "$3"
    dir=$1-$ranks-$ep-$micro-$threads
    case $1 in dense*) ep=1 ;; esac
    expect 0 "$dir" train "$ranks" "$dir" $common $2 parallel.ep="$ep" train.micro_batch_size="$micro" train.threads="$threads"
}

for kind in softmax capacity ${every:+sigmoid dense long}; do
    options=${!kind}
    steps=30
    cuts="1:1:3:2 4:2:3:1"
    [ -n "${every:-}" ] && cuts="$cuts 3:1:2:1 1:1:1:1 2:1:0:1 2:2:2:1 4:4:1:1 4:1:1:2"
    [ -n "${every:-}" ] && [ $kind = softmax ] && cuts="$cuts 1:1:2:1 1:1:6:1 2:1:3:2 2:2:6:2 3:1:1:1"
    [ $kind = dense ] && cuts="1:1:1:1 2:1:0:2 3:1:2:1"
    [ $kind = long ] && cuts="1:1:1:2 2:2:0:1 3:1:2:1" steps=3
    split $kind "$options train.reproducible=true" 1:1:0:1
    whole=$dir
    for cut in $cuts; do
        [ "${cut%%:*}" = 1 ] || [ -n "${MPIEXEC:-}" ] || continue
        split $kind "$options train.reproducible=true" $cut
        same_metrics $whole "$dir" exact
        same_checkpoint $whole "$dir" $steps
        if cmp -s <(cat "$whole/events.jsonl" 2> /dev/null) <(cat "$dir/events.jsonl" 2> /dev/null); then pass; else fail "$dir/events.jsonl differs"; fi
    done
    if [ $kind = long ] || [ $kind = dense ] || [ -s "$whole/events.jsonl" ]; then pass; else fail "$kind: no events, so this test shows nothing"; fi
    # Without the option: equal up to rounding, not bit-identical.
    split $kind-plain "$options" 1:1:0:1
    plain=$dir
    same_metrics $whole "$plain" fp32
    split $kind-plain "$options" 1:1:1:1
    if "$MUSTER_COMPARE" metrics "$plain/metrics.jsonl" "$dir/metrics.jsonl" exact > /dev/null
    then fail "$kind: two splits agree without the option too, so this test shows nothing"; else pass; fi
done

# ---------------------------------------------------------------- after a resume on other ranks
from=capacity-1-1-0-1
resumed="1:1:4"
[ -n "${MPIEXEC:-}" ] && resumed="3:1:0 ${every:+1:1:4 4:4:1}"
for to in $resumed; do
    IFS=: read -r ranks ep micro <<< "$to"
    dir=resumed-$ranks-$ep
    expect 0 "$dir" train "$ranks" $dir $common $capacity train.reproducible=true parallel.ep="$ep" train.micro_batch_size="$micro" \
        --resume $from/checkpoints/step-00000015
    same_metrics $from $dir exact 16 30
    same_checkpoint $from $dir 30
done
expect 0 "switched on by a resume" train 1 switched $common $capacity train.reproducible=true --resume capacity-plain-1-1-0-1/checkpoints/step-00000015 log.progress=line
says "switched on by a resume" "train.reproducible: false -> true"

# ---------------------------------------------------------------- other devices, sub-commands, errors
for device in ref guarded; do
    [ -n "${MPIEXEC:-}" ] || continue
    few="${capacity/train.steps=30/train.steps=6} train.device=$device train.reproducible=true"
    split $device "$few" 1:1:0:1
    whole=$dir
    split $device "$few" 4:2:1:1
    same_metrics "$whole" "$dir" exact
    same_checkpoint "$whole" "$dir" 6
done
expect 0 "eval" on 1 "$MUSTER" eval softmax-1-1-0-1
expect 0 "generate, a prompt that is no whole sequence" on 1 "$MUSTER" generate softmax-1-1-0-1 --prompt "abc" --tokens 5
expect 78 "aux_loss" train 1 refused train.reproducible=true "moe.balance=[aux_loss]"
says_once "aux_loss" "train.reproducible: true excludes aux_loss in moe.balance"

# ---------------------------------------------------------------- non-finite values
wild="$common train.steps=30 train.reproducible=true optim.lr=1000 optim.min_lr=0 optim.warmup_steps=0 optim.grad_clip=0"
expect 76 "far too large a rate" train 1 wild $wild
says_once "far too large a rate" "^muster: error: step [0-9]+, rank 0, .* is not finite.*; nothing was written"
step=$(grep -o 'step [0-9]*' log | tail -1 | cut -d' ' -f2)
if [ -n "${MPIEXEC:-}" ]; then
    expect 76 "on 4 ranks, in micro-batches" train 4 wild-4 $wild parallel.ep=2 train.micro_batch_size=1
    says_once "on 4 ranks, in micro-batches" "^muster: error: step $step, rank [0-3], .* is not finite"
fi
if [ "${MUSTER_HAS_FAULTS:-}" = 1 ]; then
    MUSTER_FAULT=step:0:nan:4 expect 76 "a NaN" train 1 nan $common train.reproducible=true
    says "a NaN" "step 4, rank 0, layer 1: its output is not finite"
fi
finish
