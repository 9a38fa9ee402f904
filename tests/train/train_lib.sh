# train_lib.sh - shared by the tests of the program; to be sourced.
#
# It provides a new folder ($work, the current one, removed at the end), tiny.yaml in it, and functions that run
# the program, compare runs and count. A script ends with `finish`.
set -u
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # these change the behaviour of cd, grep and bash
work=$(mktemp -d)
cd "$work" || exit 1
trap 'cd /; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# One node, shared memory: without this Open MPI looks for networks for up to a second in every start.
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=^tcp,ofi,openib,uct,usnic OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_odls_base_sigkill_timeout=0     # after one rank fails, do not wait seconds for the others
export OMP_WAIT_POLICY=passive
unset MUSTER_FAULT

passed=0
failed=0

pass() { passed=$((passed + 1)); }
fail() {            # fail WHAT...: one failure, with the last output of the program
    failed=$((failed + 1))
    echo "FAILED: $*"
    [ -s log ] && tail -n 8 log | sed 's/^/    | /'
    if [ "$failed" = 12 ]; then echo "too many failures, stopping here"; finish; fi
}
finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
    exit
}
skip() { echo "skipped: $*"; exit 77; }
needs_ranks() { [ -n "${MPIEXEC:-}" ] || skip "this build has no MPI"; }
needs_faults() { [ "${MUSTER_HAS_FAULTS:-}" = 1 ] || skip "this build has no fault points (MUSTER_FAULTS=ON)"; }

# A model that takes a millisecond per step: 2 layers, 8 experts, 8 sequences of 32 tokens.
cat > tiny.yaml <<'END'
run: {dir: run, seed: 7}
model: {hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, max_seq_len: 32}
moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 16}
data:
  train: [{domain: a, path: synthetic}, {domain: b, path: synthetic, weight: 2}]
optim: {lr: 3e-3, warmup_steps: 5}
train: {steps: 20, global_batch_size: 8, seq_len: 32, eval_every: 0, threads: 1}
checkpoint: {every: 0}
log: {every: 1, progress: quiet}
END

# The options of other families of models, together; they want shared experts.
families="model.embedding_multiplier=3 model.attention_multiplier=0.3 model.residual_multiplier=0.5 model.logits_scaling=1.5 \
    model.qkv_bias=true model.qk_norm_over=all model.clip_qkv=2 moe.num_shared_experts=1 moe.shared_expert_gate=true"

# on N COMMAND...: the command on N ranks (1: without mpirun), output in ./log, its exit code as result (124: more
# than two minutes, or $limit seconds)
on() {
    local n=$1
    shift
    if [ "$n" = 1 ]; then timeout -k 5 "${limit:-120}" "$@" > log 2>&1
    else timeout -k 5 "${limit:-120}" "$MPIEXEC" --oversubscribe -n "$n" "$@" > log 2>&1
    fi
}

# train N DIR OPTION...: tiny.yaml on N ranks into run folder DIR; each option is an override or a flag
train() {
    local n=$1 dir=$2
    shift 2
    on "$n" "$MUSTER" train tiny.yaml run.dir="$dir" "$@"
}

# wait_for WHAT CONDITION: until the condition holds, at most a minute
wait_for() {
    local tries=0
    until eval "$2" 2> /dev/null; do
        tries=$((tries + 1))
        if [ $tries = 3000 ]; then fail "waited a minute for $1"; return 1; fi
        sleep 0.02
    done
}

# expect CODE WHAT COMMAND...: passes when the command ends with this exit code
expect() {
    local code=$1 what=$2 got
    shift 2
    "$@"
    got=$?
    if [ "$got" = "$code" ]; then pass; else fail "$what: exit code $got, expected $code"; return 1; fi
}

# says WHAT PATTERN: passes when ./log has a line with the (extended) pattern
says() {
    if grep -Eq -- "$2" log; then pass; else fail "$1: no line like '$2'"; fi
}
# says_once: exactly one such line, however many ranks there were
says_once() {
    local n
    n=$(grep -Ec -- "$2" log)
    if [ "$n" = 1 ]; then pass; else fail "$1: $n lines like '$2', expected one"; fi
}

# same_metrics A B HOW [FIRST LAST]: run folders; HOW as in tools/compare.c
same_metrics() {
    local a=$1 b=$2 result
    shift 2
    if result=$("$MUSTER_COMPARE" metrics "$a/metrics.jsonl" "$b/metrics.jsonl" "$@" 2>&1); then
        pass
        [ -n "${VERBOSE:-}" ] && echo "$a, $b: $result"
    else
        fail "metrics of $a and $b ($*): $result"
    fi
    return 0
}
# same_checkpoint A B STEP: run folders
same_checkpoint() {
    local step result
    step=$(printf 'step-%08d' "$3")
    if result=$("$MUSTER_COMPARE" checkpoints "$1/checkpoints/$step" "$2/checkpoints/$step" 2>&1); then pass
    else fail "checkpoints of $1 and $2, step $3: $result"; fi
}
# steps_in DIR: the steps whose checkpoints are there, in order, on one line
steps_in() { ls "$1/checkpoints" 2> /dev/null | sed -n 's/^step-0*\([0-9][0-9]*\)$/\1/p' | sort -n | paste -sd ' ' -; }
has_steps() {
    local found
    found=$(steps_in "$1")
    if [ "$found" = "$2" ]; then pass; else fail "$1 has checkpoints of steps '$found', expected '$2'"; fi
}
