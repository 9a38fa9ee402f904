# balance_terms.sh - every balancing term, alone and with others: the same values and gradients for any number of
# ranks, micro-batches and ep (on the double-precision device; aux_loss is local to a micro-batch, so that only
# its ranks change).
. "$(dirname "$0")/train_lib.sh"
needs_ranks

common="train.steps=12 train.device=ref model.hidden_size=16 moe.moe_ffn_hidden_size=8 moe.num_experts=4 moe.aux_loss_coeff=0.05
        moe.seq_aux_loss_coeff=0.03 optim.warmup_steps=1"
terms() {       # name, options
    cat <<'END'
none            moe.balance=[none] moe.z_loss_coeff=0
z_loss          moe.balance=[none] moe.z_loss_coeff=0.05
seq_aux         moe.balance=[seq_aux_loss] moe.z_loss_coeff=0
global_exact    moe.balance=[global_aux_loss] moe.z_loss_coeff=0
global_previous moe.balance=[global_aux_loss] moe.global_aux_counts=previous moe.z_loss_coeff=0
expert_bias     moe.balance=[expert_bias] moe.score_func=sigmoid moe.bias_update_rate=0.05
quantile        moe.balance=[quantile_balancing] moe.score_func=sigmoid
several         moe.balance=[global_aux_loss,seq_aux_loss,expert_bias]
capacity        moe.balance=[global_aux_loss] moe.capacity_factor=1.0
capacity_bias   moe.balance=[expert_bias,seq_aux_loss] moe.score_func=sigmoid moe.capacity_factor=0.8
aux             moe.balance=[aux_loss] moe.z_loss_coeff=0
aux_micro       moe.balance=[aux_loss,seq_aux_loss,expert_bias] moe.capacity_factor=1.2
END
}
while read -r name options; do
    options="$common $options"
    case $name in
    aux) cuts="4:1:0 4:2:0"; micro=0 ;;
    aux_micro) cuts="2:2:2 4:1:1"; micro=4 ;;       # 2 micro-batches of 4 sequences everywhere
    *) cuts="2:2:2 4:4:1${every:+ 1:1:2 4:2:0}"; micro=0 ;;
    esac
    expect 0 "$name" train 1 "$name" $options train.micro_batch_size=$micro < /dev/null
    for cut in $cuts; do
        IFS=: read -r ranks ep size <<< "$cut"
        expect 0 "$name-$cut" train "$ranks" "$name-$cut" $options parallel.ep="$ep" train.micro_batch_size="$size" < /dev/null
        same_metrics "$name" "$name-$cut" 1e-9
    done
done <<< "$(terms)"

# The terms are active: they are part of the loss, and capacity drops tokens.
differs() {
    if "$MUSTER_COMPARE" metrics "$1/metrics.jsonl" "$2/metrics.jsonl" 1e-9 1 1 > /dev/null; then fail "$1 and $2 have the same first step"; else pass; fi
}
for name in z_loss seq_aux global_exact several aux; do differs none $name; done
drops() { grep -q '"moe/dropped_frac":0\.[0-9]' "$1/metrics.jsonl"; }
expect 0 "capacity drops rows" drops capacity
expect 1 "nothing is dropped without a capacity" drops none

# A value that is not computed has no key; the first step's aux_loss uses its own counts, for any number of micro-batches.
value() { sed -n "$2p" "$1/metrics.jsonl" | grep -o "\"$3\":[^,]*" | cut -d: -f2; }
skewed="train.device=ref model.init_std=0.3 train.steps=2 optim.warmup_steps=1"
expect 0 "no balancing at all" train 1 unbalanced $skewed "moe.balance=[none]" moe.z_loss_coeff=0
expect 0 "... in micro-batches" train 1 parts $skewed "moe.balance=[none]" moe.z_loss_coeff=0 train.micro_batch_size=2
expect 0 "global_aux_loss" train 1 global $skewed moe.z_loss_coeff=0
expect 0 "z-loss of sigmoid scores" train 1 squared $skewed moe.score_func=sigmoid "moe.balance=[none]" moe.z_loss_coeff=0.001
expect 0 "sigmoid scores" train 1 sigmoid $skewed moe.score_func=sigmoid "moe.balance=[expert_bias]"
same_metrics unbalanced parts 1e-9
if [ -n "$(value unbalanced 1 moe/aux_loss)" ] && [ "$(value unbalanced 1 moe/aux_loss)" = "$(value global 1 moe/aux_loss)" ]; then pass
else fail "aux_loss of the first step: $(value unbalanced 1 moe/aux_loss), with global_aux_loss $(value global 1 moe/aux_loss)"; fi
if [ -n "$(value unbalanced 1 moe/z_loss)" ] && [ -z "$(value sigmoid 1 moe/z_loss)" ] && [ -n "$(value squared 1 moe/z_loss)" ]; then pass; else fail "z_loss"; fi
if [ -n "$(value sigmoid 1 moe/bias_absmax)" ] && [ -z "$(value unbalanced 1 moe/bias_absmax)" ]; then pass; else fail "bias_absmax"; fi
if [ -z "$(value unbalanced 2 moe/dead_frac)$(value unbalanced 2 moe/layer_0/dead)" ]; then pass; else fail "dead_frac before there are 20 steps"; fi
finish
