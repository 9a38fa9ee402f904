#!/usr/bin/env bash
# quickstart.sh - from a fresh machine to a trained Mixture-of-Experts model, in one command.
set -euo pipefail
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # which change what cd, grep and bash itself do
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."

usage() {
    cat <<'TEXT'
usage: scripts/quickstart.sh

Installs what is missing from the distribution's packages (and says what), builds muster in build/, fetches
texts of eight domains into texts/, trains a small Mixture-of-Experts model on them with two MPI ranks for
about two minutes, and shows what came out. About five minutes altogether on two cores, no GPU.

Run it again after an interruption and it goes on from the last checkpoint; run it after the end and it
shows the results once more. Where texts cannot be had it trains on synthetic domains and says so.
To begin anew: rm -r runs/quickstart
TEXT
}

case ${1:-} in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: it takes no arguments, not $(printf %q "$1"); --help says what it does" >&2; exit 64 ;;
esac

program=quickstart
. scripts/lib/steps.sh

# Both ranks are on this machine: Open MPI needs no network, more ranks than cores are fine, and so is root.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_odls_base_sigkill_timeout=20        # Ctrl-C leaves time for a checkpoint
export OMPI_MCA_btl=^tcp,ofi,openib,uct,usnic OMPI_MCA_btl_vader_single_copy_mechanism=none
muster() { build/muster "$@"; }

# train OPTION...: never longer than $limit seconds; then the run is asked to write a checkpoint and exits with 75.
# Messages are shown afterwards, those about a pause (mpirun makes it sound like a crash) only as warnings.
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
if [[ $texts -eq 3 ]]; then          # the package lists may just never have been fetched
    as_root=()
    [[ $(id -u) -eq 0 ]] || as_root=(sudo -n)
    if "${as_root[@]}" apt-get -qq -o APT::Update::Error-Mode=any update > /dev/null 2>&1; then
        echo "once more, with fresh package lists"
        texts=0
        scripts/get-texts.sh texts || texts=$?
    fi
fi
case $texts in
    0) config=configs/first.yaml run=runs/quickstart ;;
    3) config=configs/synthetic.yaml run=runs/quickstart-synthetic
       echo "NOTE: no texts are to be had here, so the model learns made-up, labelled domains of the built-in" \
            "generator: no words will come out of it. All that follows is about synthetic data." ;;
    *) fail "$texts" "the texts could not be made, see above" ;;
esac

# ---------------------------------------------------------------- training

# The ten minutes of a quickstart hold on slow and busy machines too: a paused run goes on from its checkpoint with
# a schedule that ends soon.
steps_of_run() { sed -n 's/^  steps: *\([0-9]*\).*/\1/p' "$run/config.resolved.yaml"; }
finish_early() {
    local newest=("$run"/checkpoints/step-????????) reached full steps
    reached=$((10#${newest[-1]##*-})) full=$(steps_of_run)
    steps=$((reached + reached / 10 + 1))
    ((steps > 100)) || steps=101            # no fewer than the warm-up
    if ((steps < full)); then
        echo "NOTE: this machine is slower than expected, or busy. So that it does not take too long, training ends early,"
        echo "at step $steps, with a schedule to fit: the losses below would be lower after all $full steps."
    else
        steps=$full
        echo "(that took long; the little that is left follows)"
    fi
    train train.steps="$steps"
}

step "4/5 training with mpirun -n 2 (about two minutes, about four on a slow machine), in $run/"
goal=()
if [[ -e $run/config.resolved.yaml ]]; then
    goal=(train.steps="$(steps_of_run)")
    echo "$run/ is there already: an unfinished run goes on, a finished one is shown again"
fi
code=0
train "${goal[@]}" || code=$?
while [[ $code -eq 75 ]]; do code=0; finish_early || code=$?; done
[[ $code -eq 0 ]] ||
    fail "$code" "training failed (exit $code), see above; run this again to go on from the last checkpoint, or" \
        "begin anew with: rm -r $run"

# ---------------------------------------------------------------- what came out

step "5/5 what the model writes (some seconds)"
if [[ $texts -eq 0 ]]; then
    prompts=("And the LORD said unto " "Anarchists argue that " "mov ")
    echo "After two minutes it spells, and has the manner of the texts, if not always of the right one; sense takes longer."
else
    prompts=("!0" '"0')
    echo "Of what these domains hold, 0.74 nats a token cannot be known; in decoy nothing can, so there the loss only shows"
    echo "memorising. Below, common-1 and common-2: they share 64 symbols, but each has an order of its own."
fi
for prompt in "${prompts[@]}"; do
    printf '\n--- %s\n' "muster generate $run --prompt '$prompt' --tokens 160 --temperature 0.6"
    muster generate "$run" --prompt "$prompt" --tokens 160 --temperature 0.6
done

step "done"
muster inspect "$run" | sed -n 's/^ *\(.*parameters,.*\)/model: \1/p'
echo "\"loss\" below \"unigram\" in the table above is what was learned; 1.00 in the table of expert load is the mean of its layer."
echo
where() { printf '  %-47s %s\n' "$@"; }
where "$run/checkpoints/" "the model: HDF5 files with hashes (build/muster verify $run)"
where "$run/metrics.jsonl" "every logged step, one JSON object a line"
where "$run/routing.h5" "which expert took how much, step by step"
where "$run/config.resolved.yaml" "all options of this run (build/muster --help-config explains them)"
[[ $texts -ne 0 ]] || where "texts/SOURCES.txt" "what the texts are, and their licences"
cat <<TEXT

Next:
  longer      mpirun -n 2 build/muster train $config run.dir=$run train.steps=$((2 * $(steps_of_run)))
  a look      build/muster inspect $run
  experts     build/muster generate $run --prompt '${prompts[-1]}' --tokens 20 --show-experts
  own texts   mpirun -n 2 build/muster train $config run.dir=runs/mine data.train='[{domain: mine, path: FOLDER}]'
TEXT
if [[ $(id -u) -eq 0 ]]; then
    echo "For root mpirun also wants: export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
fi
