# watchdog.sh - a job with a hanging rank ends with 70 and names it; long steps, evaluations, checkpoints and a
# suspended job do not trigger the watchdog.
. "$(dirname "$0")/train_lib.sh"
needs_ranks
needs_faults

host=$(uname -n)
rank_pid() { grep -o '"pid":[0-9]*' "$1/run.json" | sed -n "$2p" | cut -d: -f2; }
# start DIR OPTION...: two ranks in the background, their output in ./log
start() {
    local dir=$1
    shift
    "$MPIEXEC" --oversubscribe -n 2 "$MUSTER" train tiny.yaml run.dir="$dir" train.steps=1000000 "$@" > log 2>&1 &
    job=$!
    wait_for "the steps of $dir" "[ -s $dir/metrics.jsonl ]"
}

start frozen run.watchdog=3 parallel.ep=2
victim=$(rank_pid frozen 2)
kill -STOP "$victim"
before=$SECONDS
wait $job
if [ $? = 70 ]; then pass; else fail "a frozen rank: another exit code than 70"; fi
if [ $((SECONDS - before)) -le 10 ]; then pass; else fail "a frozen rank: it took $((SECONDS - before)) s"; fi
says_once "a frozen rank" "warning: rank 0 on $host has waited [1-3] s for the others without progress: step [0-9]+, .*; no message from rank 1 on $host"
says_once "a frozen rank" "error: rank 0: no rank has made progress for [3-6] s; a process, a disk or the network hangs"
says "a frozen rank" "run.watchdog sets this time limit"
says "a frozen rank" "  rank 1 on $host: no message for [0-9]+ s; its last report: step [0-9]+, "
says "a frozen rank" "  rank 0 on $host: waiting for the others; step [0-9]+, "
wait_for "the end of the frozen rank" "! kill -0 $victim" && pass

export MUSTER_FAULT=collective:1:skip:3
expect 70 "a rank that leaves out a collective" train 2 skips run.watchdog=2 train.steps=1000000
unset MUSTER_FAULT

# The whole job stopped for longer than the watchdog waits, as a suspended laptop or a scheduler does.
start stopped run.watchdog=2
first=$(rank_pid stopped 1) second=$(rank_pid stopped 2)
kill -STOP "$first" "$second"
sleep 3
lines=$(wc -l < stopped/metrics.jsonl)
kill -CONT "$first" "$second"
wait_for "steps after the stop" "[ \"\$(wc -l < stopped/metrics.jsonl)\" -gt \$((lines + 20)) ]"
kill -USR1 $job
wait $job
if [ $? = 75 ]; then pass; else fail "a job stopped as a whole: another exit code than 75"; fi
if grep -q "without progress" log; then fail "a job stopped as a whole set the watchdog off"; else pass; fi

# Steps and evaluations of more than a second, a checkpoint per step, and one rank that reads all of it back.
expect 0 "slow steps" train 2 slow run.watchdog=1 train.device=ref train.steps=2 optim.warmup_steps=1 train.global_batch_size=128 train.eval_every=1 \
    train.eval_sequences=64 checkpoint.every=1
expect 0 "slow steps, resumed" train 2 slow run.watchdog=1 train.device=ref train.steps=3 optim.warmup_steps=1 train.global_batch_size=128 train.eval_every=1 \
    train.eval_sequences=64
if grep -q "without progress" log; then fail "slow steps set the watchdog off"; else pass; fi
finish
