# golden.sh - a run folder of an earlier version (made as in tests/fixtures/golden-v1.yaml) still verifies, and
# resumes with the losses of that version, on one rank and on two. A run keeps its validation split.
. "$(dirname "$0")/train_lib.sh"

fixtures=$MUSTER_SOURCE/tests/fixtures
options="train.device=ref train.steps=33 log.every=1"
copy() { rm -rf "$1" && cp -r "$fixtures/golden-v1" "$1"; }
resumed() {     # resumed N DIR OPTION...: on N ranks, from step 30 to 33
    local n=$1 dir=$2 lines
    shift 2
    copy "$dir"
    expect 0 "resume on $n" on "$n" "$MUSTER" train "$fixtures/golden-v1.yaml" run.dir="$dir" $options "$@"
    says "resume on $n" "resuming from $dir/checkpoints/step-00000030 \(step 30, written by 2 ranks\)"
    lines=$(wc -l < "$fixtures/golden-v1/metrics.jsonl")
    if head -n "$lines" "$dir/metrics.jsonl" | cmp -s - "$fixtures/golden-v1/metrics.jsonl"; then pass; else fail "old lines of $dir/metrics.jsonl"; fi
    tail -n +$((lines + 1)) "$dir/metrics.jsonl" | grep -v '"stats/steps":' > new.jsonl
    if "$MUSTER_COMPARE" metrics "$fixtures/golden-v1.expected.jsonl" new.jsonl 1e-9 31 33 > log 2>&1; then pass; else fail "losses on $n"; fi
    has_steps "$dir" "33"
    if head -1 "$dir/checkpoints/step-00000033/manifest.json" | grep -qE '"version":[0-9]+,.*"val_split":"tail"'; then pass; else fail "split of $dir"; fi
    if grep -q '"order":' "$dir/checkpoints/step-00000033/manifest.json"; then fail "$dir has another order now"; else pass; fi
}

copy looked
expect 0 "verify" on 1 "$MUSTER" verify looked
expect 0 "inspect" on 1 "$MUSTER" inspect looked
says "inspect" "step 30 of 30"
resumed 1 one parallel.ep=1
if [ -n "${MPIEXEC:-}" ]; then
    resumed 2 two
    same_metrics one two 1e-9
fi
copy source
expect 0 "fork" on 1 "$MUSTER" train "$fixtures/golden-v1.yaml" run.dir=forked $options parallel.ep=1 --fork source
says "fork" "^forked from source/checkpoints/step-00000030 \(step 30, written by 2 ranks\)"
grep -v '"stats/steps":' forked/metrics.jsonl > new.jsonl
if "$MUSTER_COMPARE" metrics "$fixtures/golden-v1.expected.jsonl" new.jsonl 1e-9 31 33 > log 2>&1; then pass; else fail "losses of a fork"; fi
resumed 1 short parallel.ep=1 stats.window=20       # the old names of the window, and another length
resumed 1 long parallel.ep=1 stats.window=300
expect 0 "inspect a longer window" on 1 "$MUSTER" inspect long
says "inspect a longer window" "^expert load, last 33 steps"

# A run with the split "documents": set in its manifest, signed again; the split itself is tested in test_data.c.
set_up="optim.warmup_steps=0 train.eval_every=2 checkpoint.every=2"
expect 0 "two steps" train 1 now $set_up train.steps=2
cp -r now then
manifest=then/checkpoints/step-00000002/manifest.json
head -1 $manifest | sed 's/"documents_by_hash"/"documents"/' > line && mv line $manifest && "$MUSTER_SIGN" $manifest
split() { head -1 "$1/checkpoints/step-0000000$2/manifest.json" | grep -o '"val_split":"[a-z_]*"'; }
expect 0 "on with the split of now" train 1 now $set_up train.steps=6
expect 0 "on with the split of then" train 1 then $set_up train.steps=6
cp -r then twice && rm -r twice/checkpoints/step-00000006
expect 0 "once more from step 4" train 1 twice $set_up train.steps=6
same_metrics then twice exact
if "$MUSTER_COMPARE" metrics now/metrics.jsonl then/metrics.jsonl exact > log 2>&1; then fail "two splits train alike"; else pass; fi
if [ "$(split now 6) $(split then 6)" = '"val_split":"documents_by_hash" "val_split":"documents"' ]; then pass
else fail "splits at step 6: $(split now 6), $(split then 6)"; fi
if [ "$(grep -c '"order":"computed"' now/checkpoints/step-0000000[26]/manifest.json | cut -d: -f2 | tr '\n' ' ')" = "1 1 " ]; then pass
else fail "order of a new run"; fi
finish
