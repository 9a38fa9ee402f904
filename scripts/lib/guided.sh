# guided.sh - sourced by the guided scripts: packages, program and texts; training on two ranks, for a limited time. They set
# `program`, the name in messages and of the log in build/, and before training `config` and `run`.
# shellcheck shell=bash disable=SC2154
. scripts/lib/steps.sh

# Both ranks are on this machine: Open MPI needs no network, more ranks than cores are fine, and so is root.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_odls_base_sigkill_timeout=20        # Ctrl-C leaves time for a checkpoint
export OMPI_MCA_btl=^tcp,ofi,openib,uct,usnic OMPI_MCA_btl_vader_single_copy_mechanism=none
muster() { build/muster "$@"; }

# train OPTION...: at most $limit seconds; then the run is signalled to write a checkpoint and exits with 75.
# Messages are shown afterwards; after a pause (which mpirun reports like a crash) only warnings.
limit=200
train() {
    local code=0 messages=build/train.log
    timeout --foreground --preserve-status --signal=USR1 "$limit" \
        mpirun --oversubscribe -n 2 build/muster train "$config" run.dir="$run" "$@" 2> "$messages" || code=$?
    if [[ $code -eq 75 ]]; then grep '^muster: warning' "$messages" >&2 || true; else cat "$messages" >&2; fi
    return "$code"
}

# prepare TOTAL: the first three steps. Sets `texts`: 0, or 3 when there are none here.
prepare() {
    step "1/$1 packages of the distribution (half a minute when all are missing)"
    bash scripts/lib/install-deps.sh run || fail $? "without these packages muster cannot be built"

    step "2/$1 the program, in build/ (half a minute the first time)"
    mkdir -p build
    local log=build/$program.log
    : > "$log"
    quietly "$log" cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF
    quietly "$log" cmake --build build --target muster_program --parallel "$(nproc)"
    muster --version

    step "3/$1 texts, in texts/ (half a minute the first time)"
    texts=0
    scripts/get-texts.sh texts || texts=$?
    if [[ $texts -eq 3 ]]; then          # the package lists may never have been fetched
        as_root=()
        [[ $(id -u) -eq 0 ]] || as_root=(sudo -n)
        if "${as_root[@]}" apt-get -qq -o APT::Update::Error-Mode=any update > /dev/null 2>&1; then
            echo "retrying with fresh package lists"
            texts=0
            scripts/get-texts.sh texts || texts=$?
        fi
    fi
}

# A quickstart takes at most ten minutes, also on slow and busy machines: a paused run resumes from its checkpoint with
# a shorter schedule.
steps_of_run() { sed -n 's/^  steps: *\([0-9]*\).*/\1/p' "$run/config.resolved.yaml"; }
finish_early() {
    local newest=("$run"/checkpoints/step-????????) reached full steps
    reached=$((10#${newest[-1]##*-})) full=$(steps_of_run)
    steps=$((reached + reached / 10 + 1))
    ((steps > 100)) || steps=101            # no fewer than the warm-up
    if ((steps < full)); then
        echo "NOTE: this machine is slower than expected, or busy. To save time training ends early,"
        echo "at step $steps, with a schedule to fit: the losses below would be lower after all $full steps."
    else
        steps=$full
        echo "(slow machine; training the few remaining steps)"
    fi
    train train.steps="$steps"
}

# train_or_resume OPTION...: all steps, or as many as there is time for.
train_or_resume() {
    local goal=() code=0
    if [[ -e $run/config.resolved.yaml ]]; then
        goal=(train.steps="$(steps_of_run)")
        echo "$run/ exists: an unfinished run resumes, results of a finished one are shown again"
    fi
    train "$@" "${goal[@]}" || code=$?
    while [[ $code -eq 75 ]]; do code=0; finish_early || code=$?; done
    [[ $code -eq 0 ]] ||
        fail "$code" "training failed (exit $code), see above; run this again to resume from the last checkpoint, or" \
            "start over with: rm -r $run"
}
