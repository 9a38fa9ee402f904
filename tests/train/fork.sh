# fork.sh - train --fork: a new run from another run's checkpoint, with its optimizer state and step. The same configuration gives the losses
# of the resumed original; seed, data, batch and coefficients may change, the shape of the model may not; lineage; errors. The source is
# never changed.
. "$(dirname "$0")/train_lib.sh"

texts() { for i in 1 2 3 4 5 6; do printf '%s %d: %s\n' "$2" $i "$(seq -s "$3" $((i * 7)) $((i * 7 + 90)))" > "$1/$i.txt"; done; }
mkdir one two && texts one Document ', ' && texts two Page ' and '
sed -i 's/train: \[.*\]/train: [{domain: a, path: one}, {domain: b, path: two, weight: 2}]/' tiny.yaml
all="checkpoint.every=5 checkpoint.keep=9 train.eval_every=10 train.eval_sequences=4"
# resumed DIR OPTION...: DIR as a crash after step 15 would have left it gives the same steps 16 to 20
resumed() {
    local dir=$1
    shift
    cp -r "$dir" again && rm -r again/checkpoints/step-00000020
    expect 0 "$dir resumed" train 1 again $all "$@"
    same_metrics "$dir" again exact
    same_checkpoint "$dir" again 20
    rm -r again
}

expect 0 "the original" train 1 old $all train.steps=10
cp -r old on
expect 0 "the original resumed" train 1 on $all
sums() { find old -type f -exec cksum {} + | sort; }
before=$(sums)

# ---------------------------------------------------------------- the same configuration
expect 0 "the same configuration" train 1 same $all --fork old
says_once "the same" '^forked from old/checkpoints/step-00000010 \(step 10, written by 1 rank\)$'
says_once "the same" '^  texts that continue: a \(after [1-9][0-9]* samples\), b \(after [1-9][0-9]* samples\)$'
says_once "the same" '^  expert statistics continue$'
same_metrics on same exact 11 20
has_steps same "10 15 20"
resumed same
for run in on same; do "$MUSTER" eval $run 2> /dev/null | grep -E '^  [ab] ' > eval-$run; done
if [ -s eval-on ] && cmp -s eval-on eval-same; then pass; else fail "eval of the fork"; fi
expect 0 "its lineage" on 1 "$MUSTER" inspect same
says_once "its lineage" "^  forked from $work/old at step 10\$"
parent="\"parent\":{\"run\":\"$work/old\",\"checkpoint\":\"$work/old/checkpoints/step-00000010\",\"step\":10,\"tokens\":2560,\"manifest_hash\":\"$(sed -n 2p old/checkpoints/step-00000010/manifest.json)\"}"
for file in run.json checkpoints/step-00000010/manifest.json checkpoints/step-00000020/manifest.json; do
    if grep -qF "$parent" same/$file; then pass; else fail "no parent in same/$file"; fi
done
expect 0 "the same command again" train 1 same $all --fork old
says_once "again" '^note: same already holds a checkpoint, which is resumed; --fork old has no effect$'
says "again" "already at step"
expect 0 "resumed under --fork" train 1 same $all train.steps=22 --fork=old
says "resumed under --fork" "resuming from same/checkpoints/step-00000020 "
expect 78 "never, where a run is" train 1 same $all --fork old --resume never

if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "in double precision" train 1 wide train.device=ref train.steps=10
    expect 0 "forked on one rank" train 1 alone train.device=ref --fork wide run.seed=9
    expect 0 "forked on two" train 2 pair train.device=ref parallel.ep=2 --fork wide run.seed=9
    same_metrics alone pair 1e-9
fi

# ---------------------------------------------------------------- other options
expect 0 "another coefficient" train 1 coefficient $all moe.aux_loss_coeff=0.1 optim.lr=1e-3 --fork old/checkpoints/step-00000005
says "another coefficient" '^  moe\.aux_loss_coeff: 0\.01 -> 0\.1$'
says "another coefficient" '^  expert statistics continue$'
has_steps coefficient "5 10 15 20"
expect 0 "another seed" train 1 seed $all run.seed=8 --fork old
says "another seed" '^  run\.seed: 7 -> 8$'
says "another seed" '^  texts that continue: a .*, b '
resumed seed run.seed=8
if "$MUSTER_COMPARE" metrics on/metrics.jsonl seed/metrics.jsonl exact 11 20 > /dev/null; then fail "another seed changes nothing"; else pass; fi
other="data.train=[{domain: b, path: two}, {domain: c, path: synthetic}, {domain: a, path: two}]"
phases="data.phases=[{until_step: 12, mix: {b: 1, c: 1}}, {mix: {a: 1, b: 2, c: 1}}]"
expect 0 "other texts" train 1 texts $all "$other" "$phases" --fork old
says_once "other texts" '^  texts that continue: b \(after [1-9][0-9]* samples\)$'
says_once "other texts" '^  texts that begin anew: c, a$'
says_once "other texts" '^  expert statistics begin anew: other domains, or other assignments per step$'
resumed texts "$other" "$phases"
batch="train.global_batch_size=4 train.seq_len=16 moe.top_k=3 moe.score_func=sigmoid moe.balance=expert_bias"
expect 0 "another batch and router" train 1 batch $all $batch --fork old
resumed batch $batch
if grep '^{"step":20,' batch/metrics.jsonl | grep -q '"train/tokens":3200,'; then pass; else fail "tokens of a fork with another batch"; fi
expect 0 "all whole" on 1 "$MUSTER" verify batch
expect 0 "a fork of a fork" train 1 second $all train.steps=21 --fork batch
says "a fork of a fork" '^  expert statistics begin anew'
expect 0 "its lineage" on 1 "$MUSTER" inspect second/checkpoints/step-00000021
says "its lineage" "^  forked from $work/batch at step 20\$"
says "its lineage" "^    that one from $work/old at step 10\$"
if grep -qF "\"ancestors\":[$(sed 's/"parent"://' <<< "$parent")]" second/run.json; then pass; else fail "no ancestors in second/run.json"; fi
says "its tokens" '  step 21 of 21, 3456 tokens seen'

# ---------------------------------------------------------------- what is left of a fork without a checkpoint
mkdir left && cp on/metrics.jsonl on/statistics.rec left && echo '{"step":12}' > left/events.jsonl
expect 0 "files of an earlier job" train 1 left $all --fork old
says "earlier job" 'left/metrics\.jsonl is from an earlier job and there is no checkpoint to resume from: moved aside to left/metrics\.jsonl\.aside'
same_metrics same left exact 11 20
if [ -f left/statistics.rec.aside ] && [ -f left/events.jsonl.aside ] && cmp -s same/events.jsonl left/events.jsonl; then pass; else fail "other files of an earlier job"; fi

# ---------------------------------------------------------------- of a run that saves all the time and keeps one checkpoint
"$MUSTER" train tiny.yaml run.dir=busy train.steps=1000000 log.every=0 stats.every=0 checkpoint.every=1 checkpoint.keep=1 > busy.log 2>&1 &
busy=$!
for i in $(seq 100); do ls busy/checkpoints 2> /dev/null | grep -q 'step-[0-9]*$' && break; sleep 0.1; done
for i in 1 2 3 4 5; do
    "$MUSTER" train tiny.yaml run.dir=busy-$i train.steps=1000000 log.every=1 stats.every=0 checkpoint.every=0 --fork busy > busy-$i.log 2>&1 &
    child=$!
    for j in $(seq 200); do grep -q '^step ' busy-$i.log && break; kill -0 $child 2> /dev/null || break; sleep 0.1; done
    kill -USR1 $child 2> /dev/null
    code=0; wait $child || code=$?
    if [ $code -eq 75 ] && grep -q '^forked from busy' busy-$i.log; then pass; else fail "a busy run, $i: exit $code: $(tail -1 busy-$i.log)"; fi
done
kill $busy && wait $busy

# ---------------------------------------------------------------- damage and errors
if [ "$(sums)" = "$before" ]; then pass; else fail "a fork changed its source"; fi
cp -r old hurt && "$MUSTER_FLIP" hurt/checkpoints/step-00000010/shard-0000.h5 4000
expect 0 "a damaged checkpoint" train 1 back $all --fork hurt
says_once "damaged" "warning: checkpoint of step 10 skipped, failed verification"
says "damaged" '^forked from hurt/checkpoints/step-00000005 '
expect 65 "a damaged checkpoint that is named" train 1 named $all --fork hurt/checkpoints/step-00000010
says "named" "hurt/checkpoints/step-00000010/shard-0000.h5 is damaged"
expect 78 "another shape" train 1 shape $all model.hidden_size=64 moe.num_experts=4 moe.top_k=3 model.rope_theta=5000 --fork old
says_once "another shape" "cannot fork from old/checkpoints/step-00000010: its tensors have another shape; these options must not change:"
for key in model.hidden_size moe.num_experts; do says_once "shape" "^  $key was .* and is now"; done
if grep -Eq '^  (moe.top_k|model.rope_theta) was' log; then fail "options of another shape: too many are named"; else pass; fi
expect 78 "no step left" train 1 late $all train.steps=10 --fork old
says_once "no step left" "train\.steps is 10, and old/checkpoints/step-00000010 is of step 10: a fork goes on from there"
expect 66 "nothing there" train 1 none --fork nowhere
says_once "nothing there" "\-\-fork nowhere: no such file or folder"
expect 65 "no checkpoint there" train 1 none --fork one
says_once "no checkpoint there" "\-\-fork one: no checkpoint found"
expect 64 "no value" train 1 none --fork
says "no value" "\-\-fork needs the path of a run folder or a checkpoint"
expect 64 "an empty value" train 1 none --fork=
says "an empty value" "\-\-fork needs the path"
expect 64 "two sources" train 1 none --fork old --resume on
says "two sources" "\-\-fork old and \-\-resume on exclude each other"
finish
