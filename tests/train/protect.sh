# protect.sh - protected experts are left out of balancing, and the domain gate finds their tokens; quantile_balancing. The same bits for any
# split of the batch, and after a resume; and each does what it is for.
. "$(dirname "$0")/train_lib.sh"

same_run() {            # A B STEP: whole run folders
    same_metrics "$1" "$2" exact
    same_checkpoint "$1" "$2" "$3"
    if cmp -s "$1/events.jsonl" "$2/events.jsonl"; then pass; else fail "the events of $1 and $2 differ"; fi
}
value() { sed -n "$2p" "$1/metrics.jsonl" | grep -o "\"$3\":[^,]*" | cut -d: -f2; }
below() { if awk "BEGIN { exit !($2 < $3) }"; then pass; else fail "$1: $2 is not below $3"; fi; }

# ---------------------------------------------------------------- splits and resuming
# Every domain counts as rare, and every expert that is measured to matter at all carries one: protection begins and ends.
states="stats.every=3 stats.budget=1 stats.rare_domain=1 stats.carrier_criticality=0 stats.carrier_gain=0 stats.leave_windows=1 stats.carrier_share=0.5"
both="run.seed=9 moe.score_func=sigmoid train.reproducible=true train.steps=60 optim.lr=1e-2 train.global_batch_size=12 checkpoint.every=1 checkpoint.keep=99 $states protect.domains=auto protect.gate_coeff=0.2"
for balance in "moe.balance=[quantile_balancing,seq_aux_loss] moe.seq_aux_loss_coeff=0.01" "moe.balance=[expert_bias,global_aux_loss]"; do
    expect 0 "$balance" train 1 whole $both $balance
    if grep -q '"event":"protection".*"protected":true,"exempt":true' whole/events.jsonl; then pass; else fail "no expert was protected"; fi
    if grep -q '"event":"protection".*"protected":false,"exempt":false' whole/events.jsonl; then pass; else fail "no protection ended"; fi
    if grep -q '"moe/gate_loss":[0-9]' whole/metrics.jsonl; then pass; else fail "no gate"; fi
    cuts="1:1:3"
    [ -n "${MPIEXEC:-}" ] && cuts="4:2:3 ${every:+3:1:2 1:1:1}"
    for cut in $cuts; do
        IFS=: read -r ranks ep micro <<< "$cut"
        expect 0 "on $cut" train "$ranks" split $both $balance parallel.ep="$ep" train.micro_batch_size="$micro"
        same_run whole split 60
        rm -r split
    done
    for step in 31 50; do
        expect 0 "from step $step" train 1 again $both $balance --resume "whole/checkpoints/$(printf 'step-%08d' $step)"
        same_metrics whole again exact $((step + 1)) 60
        same_checkpoint whole again 60
        rm -r again
    done
    rm -r whole
done

# ---------------------------------------------------------------- what they do
# Two of three tokens are of domain b. Its expert is exempt and gets them all; the others share the rest evenly.
steady="train.steps=150 moe.score_func=sigmoid train.global_batch_size=32 log.every=10 stats.every=50 stats.budget=0"
expect 0 "a carrier" train 1 carrier $steady "moe.balance=[quantile_balancing]" "protect.carriers={b: 3}" protect.gate_coeff=0.5 log.progress=line
says_once "a carrier" '^protected: expert 3 of each MoE layer for b; carriers: no balancing, domain gate 0\.5$'
first=$(value carrier 1 moe/gate_loss)
last=$(grep -o '"moe/gate_loss":[^,]*' carrier/metrics.jsonl | tail -1 | cut -d: -f2)
below "the gate learns" "$last" "$first / 2"
expect 0 "eval" on 1 "$MUSTER" eval carrier         # needs no labels
expect 0 "without exemption" train 1 balanced $steady "moe.balance=[quantile_balancing]" "protect.carriers={b: 3}" protect.exempt=false protect.gate_coeff=0
expect 0 "nothing protected" train 1 plain $steady "moe.balance=[quantile_balancing]"
same_metrics balanced plain exact
late() { tail -n 8 "$1/metrics.jsonl" | grep -o '"moe/max_vio":[^,]*' | cut -d: -f2 | awk '{ sum += $1 } END { print sum / NR }'; }
below "MaxVio with quantile_balancing" "$(late plain)" 0.15
below "MaxVio of an exempt expert that two of three tokens choose" 0.5 "$(late carrier)"
expect 0 "no balancing" train 1 none $steady "moe.balance=[none]"
below "MaxVio without balancing" "2 * $(late plain)" "$(late none)"

expect 0 "a carrier with softmax scores" train 1 dry "protect.carriers={b: 3}" --dry-run
says_once "a carrier with softmax scores" '^warning: protect.carriers with softmax scores: '
# Switched off and on by a resume.
expect 0 "off" train 1 carrier $steady train.steps=160 "moe.balance=[quantile_balancing]" log.progress=line
says "off" "protect.carriers: \{b: 3\} -> \{\}"
if [ -z "$(tail -n 1 carrier/metrics.jsonl | grep gate_loss)" ]; then pass; else fail "a gate without a protected expert"; fi
finish
