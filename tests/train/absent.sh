# absent.sh - protected domains that are absent from the samples (protect.domains): replay and the anchor act from the step in which a domain
# leaves, in a fork too; they do not depend on ranks, ep, micro-batches and resuming; without them nothing changes; up-sampling.
. "$(dirname "$0")/train_lib.sh"

sed -i 's/^  train: .*/&\n  phases: [{until_step: 8, mix: {a: 1, b: 1}}, {until_step: 14, mix: {a: 1}}, {until_step: 16, mix: {b: 3, a: 0.5}}]/' tiny.yaml
sed -i 's/{domain: b, path: synthetic, weight: 2}/&, {domain: c, path: synthetic}/' tiny.yaml
all="checkpoint.every=1 checkpoint.keep=1000 stats.every=5 protect.domains=[b,c] protect.replay_sequences=8 protect.gate_coeff=0"
replay="$all protect.replay=0.2 protect.anchor=0"
anchor="$all protect.replay=0 protect.anchor=1000"
both="$all protect.replay=0.2 protect.anchor=1000"
differs() { if "$MUSTER_COMPARE" metrics "$1/metrics.jsonl" "$2/metrics.jsonl" exact "$3" "$4" > /dev/null; then fail "$1 and $2 are equal in steps $3 to $4"; else pass; fi; }

expect 0 "plain" train 1 plain checkpoint.every=1 checkpoint.keep=1000 stats.every=5
expect 0 "nothing protects" train 1 off $all protect.replay=0 protect.anchor=0
same_metrics plain off exact
if grep -q absence off/events.jsonl; then fail "events without protection"; else pass; fi
for kind in replay anchor both; do
    expect 0 "$kind" train 1 $kind ${!kind} log.progress=line
    says_once "$kind" "^protected: b, c; carriers: no balancing; while absent: $(case $kind in replay) echo 'replay 0\.2' ;; anchor) echo 'anchor 1000' ;; *) echo 'replay 0\.2, anchor 1000' ;; esac)\$"
    same_metrics plain $kind exact 1 8
    differs plain $kind 9 14
    [ $kind = anchor ] || says_once "$kind" '^b is absent from step 9 on: 20 % of the samples are its last 8 sequences$'
    [ $kind = replay ] || says_once "$kind" '^b is absent from step 9 on: 0\.0[0-9] M weights are anchored, by 8 of its sequences \(largest Fisher information '
    expect 0 "$kind is whole" on 1 "$MUSTER" verify $kind
done
differs both anchor 9 14
expect 0 "a dry run" train 1 dry $all protect.domains=auto protect.dormant_lr=0.1 --dry-run
says_once "a dry run" '^protected: domains with at most 2 % of the training tokens; carriers: no balancing, learning rate x 0\.1 while dormant; while absent: replay 0\.01$'
expect 0 "a dry run without effect" train 1 dry $all protect.exempt=false protect.replay=0 protect.anchor=0 --dry-run
says_once "a dry run without effect" '^protected: b, c; all options that act are off$'
if [ "$(grep -o '"step":[0-9]*,"event":"absence","intervention":"[a-z]*","domain":"[a-z]*"' both/events.jsonl)" = '"step":9,"event":"absence","intervention":"replay","domain":"b"
"step":9,"event":"absence","intervention":"anchor","domain":"b"' ]; then pass; else fail "events: $(cat both/events.jsonl)"; fi

# Samples of each domain in steps 9 to 14, from the records of statistics.rec: 2 layers, 8 experts, 3 domains.
head=$(od -A n -t d8 -j 16 -N 8 replay/statistics.rec | tr -d ' ')
drawn() { od -A n -v -w408 -t d8 -j "$head" "$1/statistics.rec" | awk '$1 >= 9 && $1 <= 14 { for (i = 0; i < 48; i++) n[i % 3] += $(i + 3) } END { print n[0] / 128, n[1] / 128, n[2] / 128 }'; }
read -r of_a of_b of_c <<< "$(drawn replay)"
if [ "$of_a" -ge 30 ] && [ "$of_b" -ge 3 ] && [ $((of_a + of_b)) = 48 ] && [ "$of_c" = 0 ]; then pass; else fail "samples of steps 9 to 14: $of_a, $of_b, $of_c"; fi
counted=$(grep -o '"protect/replayed":[0-9]*' replay/metrics.jsonl | awk -F: '{ n += $2; lines++ } END { print n, lines }')
if [ "$counted" = "$of_b 6" ]; then pass; else fail "replayed samples and steps: $counted, not $of_b 6"; fi
if grep -q 'protect/replayed' anchor/metrics.jsonl; then fail "replayed samples without replay"; else pass; fi
if [ "$(drawn anchor)" = "48 0 0" ]; then pass; else fail "samples without replay: $(drawn anchor)"; fi

expect 0 "report" on 1 "$MUSTER" report both --no-texts
shows() { if grep -Eq -- "$2" "$1/report.html"; then pass; else fail "the report of $1: nothing like '$2'"; fi; }
shows both '<tr><td>b</td><td>9</td><td>14</td>.*>replay: 20 % of the samples; sequences to replay: 8; anchor: 0[.]0[0-9] M weights, strength 1000</td></tr>'
shows both "<dt>replayed samples</dt><dd>$(grep -o '"protect/replayed":[0-9]*' both/metrics.jsonl | awk -F: '{ n += $2 } END { print n }')<small>"
shows both '<dt>memory of the anchor</dt><dd>0[.][0-9] MB'
shows both '<dt>time to protect</dt><dd>[0-9.]+ %'
expect 0 "report" on 1 "$MUSTER" report plain --no-texts
shows plain '<tr><td>b</td><td>9</td><td>14</td>.*>nothing</td></tr>'

# Resumed within a phase, at a border and beside it; the option switched on while the domain is absent.
for step in 7 8 9 13 14 15; do
    cp -r both again
    for found in $(steps_in again); do [ "$found" -gt "$step" ] && rm -r "again/checkpoints/$(printf 'step-%08d' "$found")"; done
    expect 0 "resumed from $step" train 1 again $both
    same_metrics both again exact
    same_checkpoint both again 20
    if cmp -s both/events.jsonl again/events.jsonl; then pass; else fail "resumed from $step: other events"; fi
    rm -r again
done
cp -r off late && rm -r late/checkpoints/step-0000001[1-9] late/checkpoints/step-00000020
expect 0 "switched on later" train 1 late $anchor log.progress=line
says_once "switched on later" '^b is absent from step 11 on: 0\.0[0-9] M weights are anchored'

# b is back from step 15 on: the anchor lets go.
cp -r anchor free && rm -r free/checkpoints/step-0000001[5-9] free/checkpoints/step-00000020
expect 0 "without the anchor from step 15 on" train 1 free $all protect.replay=0 protect.anchor=0
same_metrics anchor free exact 15 20

# A fork without the domain: from its first step on, and what the run before held is kept.
without="data.phases=[{mix: {a: 1, c: 1}}]"
expect 0 "a fork" train 1 forked $both "$without" log.progress=line --fork both/checkpoints/step-00000007
says_once "a fork" '^b is absent from step 8 on: 20 % of the samples are its last 8 sequences$'
says_once "a fork" '^b is absent from step 8 on: .* anchored'
cp -r forked again && rm -r again/checkpoints/step-0000001[0-9] again/checkpoints/step-00000020
expect 0 "the fork resumed" train 1 again $both "$without"
same_metrics forked again exact
same_checkpoint forked again 20
expect 0 "a fork of an anchored run" train 1 held $both "$without" log.progress=line --fork both/checkpoints/step-00000010
says_once "a fork of an anchored run" '^b is absent from step 11 on: 20 % of the samples'
if grep -q anchored log; then fail "anchored twice"; else pass; fi

# Any split of the batch.
exact="$both train.reproducible=true train.micro_batch_size"
expect 0 "reproducible" train 1 whole $exact=0
expect 0 "in micro-batches" train 1 micro $exact=2
same_metrics whole micro exact
same_checkpoint whole micro 20
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "four ranks, ep 2" train 4 four $exact=1 parallel.ep=2
    same_metrics whole four exact
    same_checkpoint whole four 20
    cmp -s whole/events.jsonl four/events.jsonl && pass || fail "four ranks: other events"
    expect 0 "one rank in double precision" train 1 wide $both train.device=ref
    expect 0 "two ranks in double precision" train 2 two $both train.device=ref
    same_metrics wide two 1e-9
fi

# ---------------------------------------------------------------- a dense model, up-sampling, errors
expect 0 "a dense model" train 1 dense $both moe.num_experts=0 log.progress=line
says_once "dense" '^b is absent from step 9 on: .* anchored'
expect 0 "up-sampling" train 1 up $all protect.upsample=0.5 log.progress=line
says_once "up-sampling" '^samples with protect.upsample 0.5, phase 1 of 3: a 50 % \(50 % by the weights\), b 50 % \(50 % by the weights\)$'
says_once "up-sampling" '^samples with protect.upsample 0.5, phase 3 of 3: a 29 % \(14.3 % by the weights\), b 71 % \(85.7 % by the weights\)$'
if grep -q '^warning' log; then fail "a warning about repeats"; else pass; fi
expect 0 "its checkpoints are whole" on 1 "$MUSTER" verify up
rm -r again
cp -r up again && rm -r again/checkpoints/step-0000001[5-9] again/checkpoints/step-00000020
expect 0 "resumed" train 1 again $all protect.upsample=0.5
same_metrics up again exact
expect 78 "another exponent" train 1 up $all protect.upsample=0.6 train.steps=30
says_once "another exponent" '  protect\.upsample was 0\.5 and is now 0\.6'
mkdir few && printf 'A text of its own. %s\n' "$(seq -s ', ' 50)" > few/1.txt
expect 0 "many repeats" train 1 many $all "data.train=[{domain: a, path: synthetic}, {domain: b, path: few}]" data.phases=[] protect.domains=none protect.upsample=0.2 log.progress=line
says_once "many repeats" '^warning: b: this run is to draw each of its [0-9]+ sequences [0-9.]+ times; more than 4 times is of little use; raise protect.upsample, or add text$'
finish
