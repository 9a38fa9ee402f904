# lock.sh - a second job on the same run folder waits for it, then fails with 78 and does not disturb the first; the
# lock ends with its process, and is recreated when it is removed.
. "$(dirname "$0")/train_lib.sh"

options="train.steps=90 train.device=ref checkpoint.every=30"
expect 0 "alone" train 1 alone $options

# begin DIR OPTION...: a job in the background, up to its first steps; its process is $first, its output DIR.log
begin() {
    local dir=$1
    shift
    rm -rf "$dir"
    "$MUSTER" train tiny.yaml run.dir="$dir" $options "$@" > "$dir.log" 2>&1 &
    first=$!
    wait_for "the steps of $dir" "[ -s $dir/metrics.jsonl ]"
}
ended() {           # ended CODE WHAT PROCESS LOG: it ends with CODE; its output becomes ./log
    wait "$3" 2> /dev/null
    local code=$?
    cp "$4" log
    if [ $code = "$1" ]; then pass; else fail "$2: exit code $code, expected $1"; fi
}

# ---------------------------------------------------------------- a second job, while the first is held up
begin run
kill -STOP $first
"$MUSTER" train tiny.yaml run.dir=run $options > second.log 2>&1 &
second=$!
"$MUSTER" train tiny.yaml run.dir=run $options --resume never > third.log 2>&1 &
third=$!

# An orphan of a killed launcher: a folder in use by it is not a configuration error.
cp "$(command -v bash)" mpirun
./mpirun -c "\"$MUSTER\" train tiny.yaml run.dir=orphan $options train.steps=1000000 > orphan.log 2>&1; true" &
launcher=$!
wait_for "the orphan's steps" "[ -s orphan/metrics.jsonl ]"
kill -9 $launcher
wait $launcher 2> /dev/null
"$MUSTER" train tiny.yaml run.dir=orphan $options > fourth.log 2>&1 &
fourth=$!
if [ -n "${MPIEXEC:-}" ]; then
    expect 78 "a second job on two ranks" train 2 run $options parallel.ep=2
    says_once "a second job on two ranks" "^muster: error: run.dir run is in use"
fi
ended 78 "a second job" $second second.log
says "a second job" "^muster: run.dir run is in use; waiting up to 10 s for it"
says "a second job" "^muster: error: run.dir run is in use by another job \(process $first on "
ended 78 "a second job that wants a new run" $third third.log
orphan=$(sed -n 's/^process \([0-9]*\) .*/\1/p' orphan/lock)
ended 75 "a job behind an orphan" $fourth fourth.log
says "a job behind an orphan" "^muster: run.dir orphan is in use by an orphan of a job whose mpirun was killed \(process $orphan on "
expect 0 "looking is allowed" on 1 "$MUSTER" train tiny.yaml run.dir=run $options --dry-run

# Removed, and replaced by a copy: it is recreated.
kill -CONT $first
rm run/lock
wait_for "the lock to be back" "[ -s run/lock ]"
cp run/lock copy && mv copy run/lock
ended 0 "the first job" $first run.log
says "removed" "warning: run/lock was removed or replaced during this job; recreated"
same_metrics alone run exact
same_checkpoint alone run 90
if [ -e run/lock ] && ! [ -s run/lock ]; then pass; else fail "a finished job still has its name in the lock"; fi

# The orphan's end frees the folder while a job waits for it.
"$MUSTER" train tiny.yaml run.dir=orphan $options train.steps=1 optim.warmup_steps=1 --resume never > fifth.log 2>&1 &
fifth=$!
sleep 0.5
kill -KILL "$orphan"
ended 78 "a job that waited" $fifth fifth.log
says "a job that waited" "error: run.dir orphan already holds a run"

# ---------------------------------------------------------------- taken over: the first job stops and writes nothing more
begin run train.steps=100000
kill -STOP $first
rm run/lock
expect 0 "a job that finds no lock" train 1 run $options
kill -CONT $first
ended 78 "the job that lost its lock" $first run.log
says "the job that lost its lock" "error: run.dir run was taken over by another job \(it has ended since\)"
same_metrics alone run exact
same_checkpoint alone run 90

# ---------------------------------------------------------------- killed
begin run
wait_for "the checkpoint of step 30" "[ -e run/checkpoints/step-00000030 ]"
expect 0 "inspect while it runs" on 1 "$MUSTER" inspect run
says "inspect while it runs" "^run: running; last started "
kill -9 $first
wait $first 2> /dev/null
expect 0 "inspect after a kill" on 1 "$MUSTER" inspect run
says "inspect after a kill" "^run: crashed; last started "
expect 0 "after a kill the folder is free" train 1 run $options
says "after a kill" "resuming from run/checkpoints/step-"
same_metrics alone run exact
same_checkpoint alone run 90
finish
