# advice.sh - what goes wrong with the routing is told once, with the option that would help; following it helps.
. "$(dirname "$0")/train_lib.sh"

sed -i 's/num_experts: 8/num_experts: 64/; s/progress: quiet/progress: line/; s/global_batch_size: 8/global_batch_size: 32/' tiny.yaml
echo 'stats: {every: 10, window: 20}' >> tiny.yaml

value() { grep "\"$2\":" "$1/metrics.jsonl" | tail -1 | sed "s|.*\"$2\":\([0-9.e-]*\).*|\1|"; }
less() { if awk "BEGIN { exit !($2 < $3) }"; then pass; else fail "$1: $2 is not less than $3"; fi; }

# Without a balancing method and with a high rate most experts die.
wild="train.steps=100 optim.lr=3e-2 log.every=5"
expect 0 "no balancing" train 1 none $wild moe.balance=none
says_once "no balancing" "^advice: layer [01]: expert [0-9]+ got 9[0-9] % of the tokens in the last 10 steps, an even load is 3 %: routing collapses; balance the load: moe.balance=\[global_aux_loss\] \(now \[none\]\)\$"
says_once "no balancing" "^advice: [0-9]+ of 128 experts are in the state dead, or for at least three windows in the state starved, and no domain is known to need them: .*; balance the load: moe.balance=\[global_aux_loss\] \(now \[none\]\)\$"
if [ "$(grep -c '"event":"advice"' none/events.jsonl)" = 2 ] && grep -q '"topic":"collapse","text":"layer .*","option":"moe.balance","value":"\[none\]","xxh3"' none/events.jsonl
then pass; else fail "the advice in events.jsonl"; fi
expect 0 "the same run, extended" train 1 none $wild moe.balance=none train.steps=110
if grep -q '^advice' log; then fail "advice is repeated after a resume"; else pass; fi
expect 0 "balanced" train 1 balanced $wild moe.balance=global_aux_loss
if grep -q 'routing collapses' log; then fail "routing collapses with global_aux_loss"; else pass; fi
less "load imbalance" "$(value balanced moe/load_imbalance)" "0.6 * $(value none moe/load_imbalance)"
less "starved and dead experts" "$(value balanced moe/starved_frac) + $(value balanced moe/dead_frac)" "0.6 * ($(value none moe/starved_frac) + $(value none moe/dead_frac))"

# A coefficient that leaves nothing for the texts, and a capacity below an even load.
expect 0 "a coefficient of 10" train 1 strong train.steps=40 moe.aux_loss_coeff=10
says_once "a coefficient of 10" "^advice: moe.aux_loss_coeff=10 makes its term [0-9]+ % of the gradient of the routers, .*: lower it \(the default is 0.01\)\$"
expect 0 "a capacity factor of 0.5" train 1 tight train.steps=40 moe.capacity_factor=0.5
says_once "a capacity factor of 0.5" "^advice: [0-9]+ % of the assignments were dropped: raise moe.capacity_factor \(now 0.5; even a balanced load needs 1; 0 drops none\)\$"
expect 0 "neither" train 1 well train.steps=40
if grep -q '^advice' log; then fail "advice without need"; else pass; fi
less "loss" "$(value well train/ce_loss)" "$(value strong train/ce_loss)"
less "loss" "$(value well train/ce_loss)" "$(value tight train/ce_loss)"
finish
