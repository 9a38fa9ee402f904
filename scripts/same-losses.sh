#!/usr/bin/env bash
# same-losses.sh OLD NEW - checks that two builds of muster train with bit-identical losses, gradient norms and expert loads.
#
# Four configurations (fp32, fp32 with experts on both ranks and several micro-batches, bf16, reproducible), each on one rank and
# on two, 12 steps of synthetic texts without validation. OLD and NEW are programs; NEW may log
# more than OLD. Prints one line per run; exits with 1 when any differ.
set -eu
unset CDPATH
[ $# = 2 ] || { echo "usage: same-losses.sh OLD NEW" >&2; exit 64; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
old=$(realpath -- "$1") new=$(realpath -- "$2")
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
cd -- "$work"
cat > base.yaml <<'Y'
model: {hidden_size: 48, num_layers: 3, num_heads: 4, num_kv_heads: 2, max_seq_len: 64}
moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 40, num_shared_experts: 1, first_k_dense: 1}
data: {val_fraction: 0, train: [{domain: common-1, path: synthetic}, {domain: rare-1, path: synthetic}]}
train: {steps: 12, seq_len: 64, global_batch_size: 8, threads: 1, eval_every: 0}
log: {every: 1, progress: quiet}
checkpoint: {every: 0}
Y
different=0
values() { grep train/tokens "$1/metrics.jsonl" | grep -o '"step":[0-9]*\|"train/[a-z_]*":[^,]*\|"optim/[a-z_]*":[^,]*\|"moe/layer_[0-9]*/load":[^]]*'; }
try() { # NAME OPTION...
    local name=$1 n; shift
    for n in 1 2; do
        local options=("$@")
        [ $n = 2 ] || options=("${options[@]/parallel.ep=2/parallel.ep=1}")
        for which in old new; do
            mpirun --oversubscribe -n $n "${!which}" train base.yaml "run.dir=$which-$name-$n" "${options[@]}" > log 2>&1 ||
                { printf '%s on %d: %s failed\n' "$name" $n $which; tail -5 log; different=1; continue 2; }
        done
        values old-$name-$n > old-values
        values new-$name-$n > new-values
        if [ "$(grep -c train/loss old-values)" = 12 ] && cmp -s old-values new-values; then
            printf '%-22s %d rank%s: equal\n' "$name" $n "$([ $n = 1 ] || echo s)"
        else
            printf '%-22s %d rank%s: %s\n' "$name" $n "$([ $n = 1 ] || echo s)" "$(diff old-values new-values | head -2 | tail -1)"; different=1
        fi
    done
}
try fp32
try experts-micro-batches parallel.ep=2 train.micro_batch_size=2 'moe.balance=[global_aux_loss,seq_aux_loss]' moe.capacity_factor=1.25
try bf16 train.dtype=bf16 train.device=cpu 'moe.balance=[expert_bias]' moe.score_func=sigmoid
try reproducible train.reproducible=true parallel.ep=2 moe.global_aux_counts=previous train.micro_batch_size=1
exit $different
