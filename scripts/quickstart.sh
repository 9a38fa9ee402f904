#!/usr/bin/env bash
# quickstart.sh - from a fresh machine to a trained Mixture-of-Experts model, in one command.
set -euo pipefail
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # these change the behaviour of cd, grep and bash
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."

usage() {
    cat <<'TEXT'
usage: scripts/quickstart.sh

Installs missing packages of the distribution (and lists them), builds muster in build/, fetches
texts of eight domains into texts/, trains a small Mixture-of-Experts model on them with two MPI ranks for
about two minutes, and shows the results. About five minutes in total on two cores, no GPU.

After an interruption, run it again to resume from the last checkpoint; after the end, it
shows the results again. Without access to texts it trains on synthetic domains, with a note.
To start over: rm -r runs/quickstart
TEXT
}

case ${1:-} in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: unexpected argument $(printf %q "$1"); see --help" >&2; exit 64 ;;
esac

program=quickstart
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

# ---------------------------------------------------------------- packages, program, texts

step "1/5 packages of the distribution (half a minute when all are missing)"
bash scripts/lib/install-deps.sh run || fail $? "without these packages muster cannot be built"

step "2/5 the program, in build/ (half a minute the first time)"
mkdir -p build
: > build/quickstart.log
quietly build/quickstart.log cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF
quietly build/quickstart.log cmake --build build --target muster_program --parallel "$(nproc)"
muster --version

step "3/5 texts, in texts/ (half a minute the first time)"
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
case $texts in
    0) config=configs/first.yaml run=runs/quickstart ;;
    3) config=configs/synthetic.yaml run=runs/quickstart-synthetic
       echo "NOTE: texts are not available here, so the model is trained on labelled synthetic domains of the built-in" \
            "generator: it will not write words. Everything below is about synthetic data." ;;
    *) fail "$texts" "preparing the texts failed, see above" ;;
esac

# ---------------------------------------------------------------- training

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

step "4/5 training with mpirun -n 2 (about two minutes, about four on a slow machine), in $run/"
goal=()
if [[ -e $run/config.resolved.yaml ]]; then
    goal=(train.steps="$(steps_of_run)")
    echo "$run/ exists: an unfinished run resumes, results of a finished one are shown again"
fi
code=0
train "${goal[@]}" || code=$?
while [[ $code -eq 75 ]]; do code=0; finish_early || code=$?; done
[[ $code -eq 0 ]] ||
    fail "$code" "training failed (exit $code), see above; run this again to resume from the last checkpoint, or" \
        "start over with: rm -r $run"

# ---------------------------------------------------------------- results

step "5/5 generated text (some seconds)"
if [[ $texts -eq 0 ]]; then
    prompts=("And the LORD said unto " "Anarchists argue that " "mov ")
    echo "After two minutes of training it spells words and imitates the style of the texts, but makes little sense."
else
    prompts=("!0" '"0')
    echo "The minimal loss of these domains is 0.74 nats/token; decoy is random, so there the loss only shows memorisation."
    echo "Below, common-1 and common-2: they share 64 symbols, but each has its own order."
fi
for prompt in "${prompts[@]}"; do
    printf '\n--- %s\n' "muster generate $run --prompt '$prompt' --tokens 160 --temperature 0.6"
    muster generate "$run" --prompt "$prompt" --tokens 160 --temperature 0.6
done

step "done"
muster report "$run" 2> /dev/null || echo "(no report: see build/muster report $run)"
muster inspect "$run" | sed -n 's/^ *\(.*parameters,.*\)/model: \1/p'
echo "In the tables above, the difference of \"unigram\" and \"loss\" has been learned; expert load 1.00 is the mean of the layer."
echo
where() { printf '  %-47s %s\n' "$@"; }
where "$run/report.html" "START HERE: one page about this run, for a browser"
where "$run/checkpoints/" "the model: HDF5 files with hashes (build/muster verify $run)"
where "$run/metrics.jsonl" "every logged step, one JSON object per line"
where "$run/routing.h5" "load of every expert, step by step"
where "$run/tensorboard/" "the numbers for TensorBoard (tensorboard --logdir $run)"
where "$run/config.resolved.yaml" "all options of this run (see build/muster --help-config)"
[[ $texts -ne 0 ]] || where "texts/SOURCES.txt" "sources of the texts, and their licences"
cat <<TEXT

Next:
  longer      mpirun -n 2 build/muster train $config run.dir=$run train.steps=$((2 * $(steps_of_run)))
  details     build/muster inspect $run
  compare     build/muster compare $run runs/ANOTHER (after a second run, with other options)
  experts     build/muster generate $run --prompt '${prompts[-1]}' --tokens 20 --show-experts
  own texts   mpirun -n 2 build/muster train $config run.dir=runs/mine data.train='[{domain: mine, path: FOLDER}]'
TEXT
if [[ $(id -u) -eq 0 ]]; then
    echo "As root mpirun also needs: export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
fi
