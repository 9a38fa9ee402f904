# signals.sh - USR1 and USR2 to mpirun, or any of USR1, USR2, TERM and INT to a single rank: a checkpoint, exit code 75, and
# a run that goes on bit-identically. Also while the program is still starting.
. "$(dirname "$0")/train_lib.sh"

ranks=1
[ -n "${MPIEXEC:-}" ] && ranks=2
options="train.steps=60 train.device=ref train.threads=1 parallel.ep=$ranks"
expect 0 "undisturbed" train $ranks whole $options

# start DIR: the job in the background, its id in $job
start() {
    if [ $ranks = 1 ]; then "$MUSTER" train tiny.yaml run.dir="$1" $options > log 2>&1 &
    else "$MPIEXEC" --oversubscribe -n $ranks "$MUSTER" train tiny.yaml run.dir="$1" $options > log 2>&1 &
    fi
    job=$!
}
rank_pid() { grep -o '"pid":[0-9]*' "$1/run.json" | sed -n "$2p" | cut -d: -f2; }
lines() { cat "$1/metrics.jsonl" 2> /dev/null | wc -l; }
# ends_requeued WHAT DIR: the job ends with 75 and its checkpoint, and the same command finishes the run
ends_requeued() {
    wait $job
    local code=$?
    if [ $code = 75 ]; then pass; else fail "$1: exit code $code, expected 75"; fi
    says_once "$1" "^muster: stop signal received; checkpoint saved at step [0-9]+\. Run the same command to resume"
    has_steps "$2" "$(lines "$2")"
    expect 0 "$1, then again" train $ranks "$2" $options
    same_metrics whole "$2" exact
    same_checkpoint whole "$2" 60
}

for signal in USR1 USR2; do
    start $signal
    wait_for "three steps" '[ "$(lines $signal)" -ge 3 ]'
    kill -$signal $job
    ends_requeued "$signal to the job" $signal
done
for signal in TERM INT USR1; do
    start rank-$signal
    wait_for "three steps" '[ "$(lines rank-$signal)" -ge 3 ]'
    kill -$signal "$(rank_pid rank-$signal $ranks)"
    ends_requeued "$signal to rank $((ranks - 1))" rank-$signal
done

# TERM to mpirun leaves no time: exit code 1, and the run goes on from its last checkpoint.
if [ $ranks = 2 ]; then
    start term
    wait_for "three steps" '[ "$(lines term)" -ge 3 ]'
    kill -TERM $job
    wait $job
    expect 1 "TERM to mpirun" [ $? = 0 ]
    expect 0 "TERM to mpirun, then again" train $ranks term $options
    same_metrics whole term exact
    same_checkpoint whole term 60
fi

# Twice, and between two checkpoints.
options="$options checkpoint.every=1 checkpoint.keep=1"
start twice
wait_for "three steps" '[ "$(lines twice)" -ge 3 ]'
kill -USR1 $job
sleep 0.02
kill -USR2 $job 2> /dev/null
ends_requeued "two signals" twice

# At any moment of the start, once the handlers are there: the job ends with 75, and never in another way. (Before
# a rank exists mpirun itself has the signal, so this asks a single process.)
ranks=1
options="train.steps=60 train.device=ref"
expect 0 "one rank undisturbed" train 1 single $options
catches_usr1() {        # the shell that becomes the program catches it too: look at who it is
    [ "$(readlink /proc/$job/exe)" = "$(readlink -f "$MUSTER")" ] &&
        [ $((0x$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/$job/status) & 0x200)) != 0 ]
}
for delay in 0 0.02 0.05 0.1 0.15 0.2; do
    rm -rf early
    start early
    if [ -e /proc/$job/status ]; then wait_for "the handlers" "catches_usr1 || [ ! -e /proc/$job ]"; else sleep 0.2; fi
    sleep $delay
    kill -USR1 $job 2> /dev/null
    wait $job
    code=$?
    case $code in 75 | 0) pass ;; *) fail "USR1 after $delay s: exit code $code" ;; esac
done
expect 0 "after that" train 1 early $options
same_checkpoint single early 60
finish
