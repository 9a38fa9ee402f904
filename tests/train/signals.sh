# signals.sh - USR1 and USR2 to mpirun, or any of USR1, USR2, TERM, INT and HUP to a single rank: a checkpoint, exit code 75,
# and a run that resumes bit-identically. Also while the program is still starting, and in the middle of a step.
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
lines() { cat "$1/metrics.jsonl" 2> /dev/null | grep -c train/tokens; }
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

catches_usr1() {        # the shell before exec catches it too: check the process name
    [ "$(readlink /proc/$job/exe)" = "$(readlink -f "$MUSTER")" ] &&
        [ $((0x$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/$job/status) & 0x200)) != 0 ]
}

for signal in USR1 ${every:+USR2}; do
    start $signal
    wait_for "three steps" '[ "$(lines $signal)" -ge 3 ]'
    kill -$signal $job
    ends_requeued "$signal to the job" $signal
done
for signal in TERM ${every:+HUP INT USR1}; do
    start rank-$signal
    wait_for "three steps" '[ "$(lines rank-$signal)" -ge 3 ]'
    kill -$signal "$(rank_pid rank-$signal $ranks)"
    ends_requeued "$signal to rank $((ranks - 1))" rank-$signal
done

# TERM to mpirun leaves no time: exit code 1, and the run resumes from its last checkpoint.
if [ $ranks = 2 ] && [ -n "${every:-}" ]; then
    start term
    wait_for "three steps" '[ "$(lines term)" -ge 3 ]'
    kill -TERM $job
    wait $job
    expect 1 "TERM to mpirun" [ $? = 0 ]
    expect 0 "TERM to mpirun, then again" train $ranks term $options
    same_metrics whole term exact
    same_checkpoint whole term 60

    # With a longer timeout of mpirun the checkpoint is written before mpirun exits with 1.
    export OMPI_MCA_odls_base_sigkill_timeout=20
    start patient
    wait_for "three steps" '[ "$(lines patient)" -ge 3 ]'
    kill -INT $job
    wait $job
    expect 1 "INT to a patient mpirun" [ $? = 0 ]
    has_steps patient "$(lines patient)"

    # A step that took long because the job was suspended is not a slow step.
    export OMPI_MCA_odls_base_sigkill_timeout=1
    options="$options train.steps=100000" start still
    wait_for "five steps" '[ "$(lines still)" -ge 5 ]'
    kill -STOP "$(rank_pid still 1)"
    sleep 1.5
    before=$(lines still)
    kill -CONT "$(rank_pid still 1)"
    wait_for "further steps" '[ "$(lines still)" -gt $((before + 5)) ]'
    kill -USR1 $job
    wait $job
    if grep -q "mpirun kills its ranks" log; then fail "a warning of slow steps after a stop"; else pass; fi
    export OMPI_MCA_odls_base_sigkill_timeout=0
fi

# In the middle of a long step, between its micro-batches: the step is abandoned, and computed again.
long="train.steps=3 optim.warmup_steps=1 train.global_batch_size=320 train.micro_batch_size=2 train.device=ref parallel.ep=$ranks"
expect 0 "a long step undisturbed" train $ranks long $long
options=$long
start middle
wait_for "the first long step" '[ "$(lines middle)" -ge 1 ]'
kill -USR1 $job
wait $job
code=$?
if [ $code = 75 ]; then pass; else fail "in the middle of a step: exit code $code"; fi
has_steps middle 1          # step 2 was not finished
expect 0 "in the middle of a step, then again" train $ranks middle $long
same_metrics long middle exact
same_checkpoint long middle 3
options="train.steps=60 train.device=ref train.threads=1 parallel.ep=$ranks"

# Twice, and between two checkpoints.
options="$options checkpoint.every=1 checkpoint.keep=1"
start twice
wait_for "three steps" '[ "$(lines twice)" -ge 3 ]'
kill -USR1 $job
sleep 0.02
kill -USR2 $job 2> /dev/null
ends_requeued "two signals" twice

# Ctrl-C once saves; twice ends at once. The start says how to stop.
ranks=1
options="train.steps=100000 train.device=ref log.progress=line log.every=1"
start ctrl-c
wait_for "three steps" '[ "$(lines ctrl-c)" -ge 3 ]'
kill -STOP $job
kill -INT $job
kill -CONT $job
wait $job
expect 0 "Ctrl-C" [ $? = 75 ]
says "Ctrl-C" "^to stop: Ctrl-C, or kill $job, saves a checkpoint after the current step and exits with 75"
options="train.steps=3 optim.warmup_steps=1 train.global_batch_size=512 train.device=ref"
start twice-ctrl-c
wait_for "the handlers" "catches_usr1"
kill -INT $job
sleep 0.1
kill -INT $job 2> /dev/null
wait $job
case $? in 130 | 75) pass ;; *) fail "Ctrl-C twice: another exit code" ;; esac

# At any moment of the start, once the handlers are there: the job ends with 75, and never in another way. (Before
# a rank exists mpirun itself has the signal, so this asks a single process.)
ranks=1
options="train.steps=60 train.device=ref"
expect 0 "one rank undisturbed" train 1 single $options
for delay in 0 ${every:+0.02 0.05 0.1 0.15 0.2}; do
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
