# golden.sh - the run folder that an earlier muster wrote (tests/fixtures/golden-v1.yaml says how) still verifies, and
# resumes with the losses that the program of then had, on one rank and on two.
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
    tail -n +$((lines + 1)) "$dir/metrics.jsonl" > new.jsonl
    if "$MUSTER_COMPARE" metrics "$fixtures/golden-v1.expected.jsonl" new.jsonl 1e-9 31 33 > log 2>&1; then pass; else fail "losses on $n"; fi
    has_steps "$dir" "33"
    if head -1 "$dir/checkpoints/step-00000033/manifest.json" | grep -q '"version":2,.*"val_split":"tail"'; then pass; else fail "split of $dir"; fi
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
finish
