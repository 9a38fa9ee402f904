# lock.sh - a second job on the same run folder is refused with 78 and does not disturb the first; the lock goes
# with its process, however that ends.
. "$(dirname "$0")/train_lib.sh"

options="train.steps=150 train.device=ref checkpoint.every=50"
expect 0 "alone" train 1 alone $options

"$MUSTER" train tiny.yaml run.dir=run $options > first.log 2>&1 &
first=$!
wait_for "the first job's steps" "[ -s run/metrics.jsonl ]"
expect 78 "a second job" train 1 run $options
says "a second job" "^muster: error: run.dir run is in use by another job \(process $first on "
if [ -n "${MPIEXEC:-}" ]; then
    expect 78 "a second job on two ranks" train 2 run $options parallel.ep=2
    says_once "a second job on two ranks" "^muster: error: run.dir run is in use"
fi
expect 78 "a second job that wants a new run" train 1 run $options --resume never
expect 0 "looking is allowed" on 1 "$MUSTER" train tiny.yaml run.dir=run $options --dry-run
wait $first
expect 0 "the first job" [ $? = 0 ]
same_metrics alone run exact
same_checkpoint alone run 150

rm -rf run
"$MUSTER" train tiny.yaml run.dir=run $options > first.log 2>&1 &
first=$!
wait_for "the checkpoint of step 50" "[ -e run/checkpoints/step-00000050 ]"
kill -9 $first
wait $first 2> /dev/null
expect 0 "after a kill the folder is free" train 1 run $options
says "after a kill" "resuming from run/checkpoints/step-"
same_metrics alone run exact
same_checkpoint alone run 150
finish
