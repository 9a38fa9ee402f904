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
. scripts/lib/guided.sh

prepare 5
case $texts in
    0) config=configs/first.yaml run=runs/quickstart ;;
    3) config=configs/synthetic.yaml run=runs/quickstart-synthetic
       echo "NOTE: texts are not available here, so the model is trained on labelled synthetic domains of the built-in" \
            "generator: it will not write words. Everything below is about synthetic data." ;;
    *) fail "$texts" "preparing the texts failed, see above" ;;
esac

# ---------------------------------------------------------------- training

step "4/5 training with mpirun -n 2 (about two minutes, about four on a slow machine), in $run/"
train_or_resume

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
