# stats.sh - muster stats: the same tables on one rank and on two, on a terminal or in a pipe; texts the run never saw; bad input.
. "$(dirname "$0")/train_lib.sh"

expect 0 "a run" train 1 run checkpoint.every=0
mkdir -p texts
for i in 1 2 3 4 5 6 7 8 9; do echo "Text number $i of a folder: seven times $i is $((7 * i)), and so on, and on." > texts/$i.txt; done
stats() { local n=$1; shift; on "$n" "$MUSTER" stats "$@"; }

expect 0 "two domains" stats 1 run a=synthetic own=texts
cp log one
says "two domains" "^run/checkpoints/step-00000020, step 20: 2 domains, [0-9]+ tokens$"
says "two domains" "^a +199904 +[0-9.]+ +[0-9.]+$"              # all whole sequences of 200 kB
says "two domains" "^own +[0-9]+ +[0-9.]+ +[0-9.]+$"
says "two domains" "^layer 1$"
says "two domains" "^  own( +[0-9.]+){8}$"
says "two domains" "^  (a|own) +[0-7] +[0-9.]+% +[+-][0-9.]+ +-?[0-9.]+$"
says "two domains" "^0 +[1-8]\.[0-9]+ +[0-7]\.[0-9]+ +[01]\.[0-9]+ +[0-9.]+ +[0-9.]+ +[01]\.[0-9]+ +[0-9.]+ +[01]\.[0-9]+ +[0-9.]+"
says "two domains" "^0 +[0-2]\.[0-9]{4} +[0-9]+\.[0-9]{4} +[01]\.[0-9]{4}$"    # router entropy up to ln 8, margins
says "two domains" "^  layer 0   mean cosine -?0\.[0-9]+, mean linear CKA -?0\.[0-9]+; most alike: experts [0-7] and [0-7], cosine"
if grep -Eqi '\bnan\b|\binf\b' log; then fail "not a number"; else pass; fi
# Each row of 8 experts adds up to 8, up to rounding.
if awk '/^  (all|a|own) / && NF == 9 { n++; s = 0; for (i = 2; i <= 9; i++) s += $i; if (s < 7.9 || s > 8.1) bad = 1 } END { exit bad || n != 6 }' log
then pass; else fail "loads do not add up"; fi
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "on two ranks" stats 2 run a=synthetic own=texts
    if cmp -s log one; then pass; else fail "two ranks print other tables"; fi
fi
expect 0 "one domain, another probe" stats 1 run own=texts stats.probe_tokens=64 train.threads=1
says "one domain, another probe" "on 64 tokens of all domains together"
printf '{"body": "%s"}\n' "$(seq -s ' ' 1 300)" > body.jsonl
expect 0 "texts under another key" stats 1 run own=body.jsonl data.text_key=body
says "texts under another key" "^own +1088 "

# Where no expert is preferred there is a sentence, not an empty table.
expect 0 "two experts for every token" train 1 even moe.num_experts=2 train.steps=1 optim.warmup_steps=0
expect 0 "two experts for every token" stats 1 even a=synthetic
says "two experts for every token" '^layer 1: none; at most 1.00 times, expert 0 of a$'
if grep -Eq '^layer 1$|too few' <(sed '1,/^experts that get/d' log); then fail "an empty table"; else pass; fi

# A domain that has left the training data keeps its probe, and criticality for it is measured on.
expect 0 "a domain leaves" train 1 left stats.every=5 stats.budget=1 "data.phases=[{until_step: 10, mix: {a: 1, b: 1}}, {until_step: 20, mix: {a: 1}}]"
if [ "$(grep -c '"stats/steps".*"probe/a/ce_loss".*"probe/b/ce_loss".*"moe/layer_1/criticality_step"' left/metrics.jsonl)" = 4 ]; then pass
else fail "probes of a domain that left"; fi

# What a last step off schedule measures leaves no trace: extended, the run measures the same as one that did not end.
schedule="stats.every=6 stats.budget=1 optim.schedule=constant"
expect 0 "ends off schedule" train 1 ended $schedule
expect 0 "extended" train 1 ended $schedule train.steps=24
expect 0 "in one go" train 1 whole $schedule train.steps=24
statistics() { grep '"stats/steps"' "$1/metrics.jsonl" | grep -v '^{"step":20,' | sed 's/"stats.seconds_share":[^,]*,//; s/"xxh3".*//'; }
if [ "$(statistics whole | grep -c '"stats/saturation_steps":.*"moe/layer_1/criticality"')" = 4 ] && cmp -s <(statistics ended) <(statistics whole); then pass
else fail "statistics of an extended run"; fi
if grep '^{"step":20,' ended/metrics.jsonl | grep -q '"probe/a/ce_loss".*"stats/seconds_share":0'; then pass; else fail "statistics of a last step off schedule"; fi

expect 0 "a dense run" train 1 dense moe.num_experts=0 train.steps=1 optim.warmup_steps=0
expect 64 "no text" stats 1 run
says_once "no text" "stats needs at least one DOMAIN=PATH"
expect 64 "nothing" stats 1
expect 64 "the same domain twice" stats 1 run a=synthetic a=texts
expect 64 "no path" stats 1 run a
expect 66 "a missing text" stats 1 run a=nowhere
expect 66 "a missing run" stats 1 nowhere a=synthetic
expect 65 "a dense model" stats 1 dense a=synthetic
says_once "a dense model" "is of a dense model: there are no experts"
echo short > short.txt
expect 65 "a short text" stats 1 run a=synthetic b=short.txt
says_once "a short text" "domain 'b' has 7 tokens, fewer than one sequence of 32 and a target"
expect 78 "another option" stats 1 run a=synthetic moe.top_k=1
says_once "another option" "moe.top_k=1: stats .* accepts only"
finish
