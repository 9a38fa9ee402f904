# nonfinite.sh - a loss or a gradient that is not finite: all ranks stop with 76, one message names step, rank and
# layer, and nothing is written. Also reports of experts without tokens.
. "$(dirname "$0")/train_lib.sh"

wild="optim.lr=1000 optim.min_lr=0 optim.warmup_steps=0 optim.grad_clip=0 checkpoint.every=1 checkpoint.keep=99"
expect 76 "far too large a rate" train 1 wild $wild
says_once "far too large a rate" "^muster: error: step [0-9]+, rank 0, (layer [01]|head): .* is not finite; nothing was written"
says "far too large a rate" "; the last checkpoint is intact$"
cp log log.wild
expect 76 "before the first checkpoint" train 1 none $wild checkpoint.every=0
says "before the first checkpoint" "; no checkpoint was written yet$"
mv log.wild log
step=$(grep -o 'step [0-9]*' log | tail -1 | cut -d' ' -f2)
if [ "$(steps_in wild | sed 's/.* //')" = $((step - 1)) ] && [ "$(tail -1 wild/metrics.jsonl | grep -o '"step":[0-9]*')" = "\"step\":$((step - 1))" ]
then pass; else fail "checkpoints of '$(steps_in wild)' beside step $step"; fi
if grep -Eq '"(train/(ce_)?loss|optim/grad_norm|moe/[^"]*)":null' wild/metrics.jsonl; then fail "metrics hold what is not finite"; else pass; fi
expect 0 "what was written is finite" on 1 "$MUSTER" verify wild
expect 76 "it cannot go on like that" train 1 wild $wild
expect 0 "but with a smaller rate from an earlier step" train 1 calm --resume wild/checkpoints/step-00000001 train.steps=5
if [ -n "${MPIEXEC:-}" ]; then
    expect 76 "on 4 ranks, accumulating" train 4 wild-4 $wild parallel.ep=2 train.micro_batch_size=1
    says_once "on 4 ranks" "^muster: error: step $step, rank [0-3], .* is not finite"
fi

if [ "${MUSTER_HAS_FAULTS:-}" = 1 ]; then       # one weight of one rank turns into NaN
    MUSTER_FAULT=step:0:nan:4 expect 76 "a NaN" train 1 nan checkpoint.every=3
    says "a NaN" "step 4, rank 0, layer 1: its output is not finite"
    has_steps nan "3"
    for cut in 2:1:1 2:2:0 4:2:3; do
        [ -n "${MPIEXEC:-}" ] || continue
        IFS=: read -r ranks ep rank <<< "$cut"
        MUSTER_FAULT=step:$rank:nan:6 expect 76 "a NaN, $cut" train "$ranks" nan-"$cut" parallel.ep="$ep" checkpoint.every=3
        says_once "a NaN, $cut" "^muster: error: step 6, rank $rank, layer 1: its output is not finite"
        has_steps nan-"$cut" "3"
    done
fi

# ---------------------------------------------------------------- dead experts
lonely="moe.balance=[none] moe.z_loss_coeff=0 moe.top_k=1 moe.norm_topk_prob=false moe.force_skew=true log.progress=line"
expect 0 "one expert takes all" train 1 lonely $lonely train.steps=203 log.every=1 stats.every=20
says "starved at first" "^experts: 2 healthy, 14 starved"
says_once "in words" "^  layer 0: expert 1 is starved \(load 0.00 of the mean, below 0.25\)\$"
says_once "in words" "^  layer 0: expert 1 is dead \(load 0.000 of the mean, no token so far\)\$"
says "few words" "^  and 10 more: events.jsonl\$"
says "dead after five windows" "^experts: 2 healthy, 14 dead; worst domain [ab] [0-9.]+ \(\+[0-9.]+\)\$"
says_once "what is missing" "^  note: no domain is rare \(stats.rare_domain=0.02, the rarest has 33.3 % of the texts\), so no expert is found to be a carrier"
if [ "$(grep -c '"from":"healthy","to":"starved"' lonely/events.jsonl) $(grep -c '"step":120,"event":"state",.*"to":"dead"' lonely/events.jsonl)" = "14 14" ]
then pass; else fail "events: $(head -3 lonely/events.jsonl)"; fi
says "named at the end" "  layer 1: 7 of 8 experts dead \(no tokens for 200 steps\): 1-7"
if grep '"train/tokens"' lonely/metrics.jsonl | tail -1 | grep -q '"moe/layer_1/dead":\[1,2,3,4,5,6,7\]'; then pass; else fail "the dead are not in the metrics"; fi
if grep '"train/tokens"' lonely/metrics.jsonl | tail -1 | grep -q '"moe/dead_frac":0.875'; then pass; else fail "dead_frac"; fi
expect 0 "the same after a resume" train 1 lonely $lonely train.steps=205 log.every=1
says "after a resume" "  layer 0: 7 of 8 experts dead \(no tokens for 200 steps\): 1-7"
expect 0 "inspect" on 1 "$MUSTER" inspect lonely
says "inspect" "layer 0: 7 of 8 experts dead \(no tokens for 200 steps\): 1-7$"
# The window may change on resume: reports state its number of steps.
expect 0 "a short window" train 1 short $lonely stats.window=20 train.steps=50
says "a short window" "^expert load, last 20 steps"
says "a short window" "  layer 0: 7 of 8 experts dead \(no tokens for 20 steps\): 1-7"
expect 0 "a longer window" train 1 short $lonely stats.window=40 train.steps=60
says "a longer window" "  stats.window: 20 -> 40"
says "a longer window" "  layer 0: 7 of 8 experts dead \(no tokens for 30 steps\): 1-7"
says "a longer window" "^expert load, last 30 steps"
expect 0 "a shorter window" train 1 short $lonely stats.window=25 train.steps=70
says "a shorter window" "^expert load, last 25 steps"
expect 0 "checkpoints of other windows" on 1 "$MUSTER" verify short
expect 0 "inspect after a change of the window" on 1 "$MUSTER" inspect short
says "inspect after a change of the window" "^expert load, last 25 steps"
expect 78 "a window that says nothing" train 1 short $lonely stats.window=19
says "a window that says nothing" "stats.window.*19"
expect 0 "eight that are used" train 1 lively train.steps=25 log.progress=line
says "eight that are used" "no dead experts, none below 10 % of the mean load"
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "on 4 ranks, three of them without a row" train 4 lonely-4 $lonely train.steps=25 parallel.ep=4
    says_once "on 4 ranks" "  layer 0: 7 of 8 experts dead \(no tokens for 25 steps\): 1-7"
fi
finish
