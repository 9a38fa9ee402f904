#!/usr/bin/env bash
# huggingface.sh - a tokenizer of one's own, a small Mixture-of-Experts model with it, and both in Hugging Face's format.
set -euo pipefail
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # these change the behaviour of cd, grep and bash
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."

usage() {
    cat <<'TEXT'
usage: scripts/huggingface.sh

After scripts/quickstart.sh, or instead of it: builds muster and fetches the texts in the same way, trains a BPE tokenizer on
them, trains a small model with it on two MPI ranks, and exports model and tokenizer as a folder that Hugging Face's
transformers read. Where Python has transformers and torch, the folder is read there, and both programs continue the
same prompts, side by side. About ten minutes on two cores, no GPU.

MUSTER_PYTHON=FILE: the Python to use (default: python3). Run it again to resume. To start over: rm -r runs/huggingface*
TEXT
}

case ${1:-} in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) echo "huggingface: unexpected argument $(printf %q "$1"); see --help" >&2; exit 64 ;;
esac

program=huggingface
. scripts/lib/guided.sh
prepare 7
[[ $texts -eq 0 ]] || fail "$texts" "this needs the texts, see above"
config=configs/bpe.yaml run=runs/huggingface
tokenizer=runs/huggingface-tokenizer.json exported=runs/huggingface-exported
prompts=("And the LORD said unto " "Permission is hereby granted " "mov ")

step "4/7 a BPE tokenizer of 4,096 tokens, trained on the texts (some seconds), in $tokenizer"
mkdir -p runs
[[ -e $tokenizer ]] || muster train-tokenizer --vocab-size 4096 --out "$tokenizer" texts

step "5/7 training with mpirun -n 2 (about four minutes), in $run/"
limit=300
train_or_resume data.tokenizer="$tokenizer"

step "6/7 export to Hugging Face's format, in $exported/"
rm -rf "$exported"
muster convert "$run" "$exported" --to hf
ls -l "$exported" | awk 'NR > 1 { printf "  %-28s %10d bytes\n", $NF, $5 }'

step "7/7 the same model in both programs"
python=${MUSTER_PYTHON:-python3}
if ! "$python" -c 'import torch, transformers' 2> /dev/null; then
    for prompt in "${prompts[@]}"; do
        printf '\n--- %s\n' "muster generate $run --prompt '$prompt' --tokens 40 --temperature 0"
        muster generate "$run" --prompt "$prompt" --tokens 40 --temperature 0
    done
    cat <<TEXT

NOTE: $python has no transformers and torch, so only muster's texts are shown. For both side by side (about 1 GB to download):
  python3 -m venv venv && venv/bin/pip install torch transformers && MUSTER_PYTHON=venv/bin/python scripts/huggingface.sh
TEXT
    exit 0
fi
texts_of=build/huggingface
mkdir -p "$texts_of"
for i in "${!prompts[@]}"; do
    muster generate "$run" --prompt "${prompts[i]}" --tokens 40 --temperature 0 > "$texts_of/muster-$i"
done
"$python" scripts/lib/continue_prompts.py "$exported" "$texts_of/transformers-" "${prompts[@]}" 2> "$texts_of/log" ||
    { tail -n 20 "$texts_of/log" >&2; fail 70 "transformers cannot read $exported, see above"; }
for i in "${!prompts[@]}"; do
    printf '\n%-50s%s\n' "muster generate" "transformers"
    for of in muster transformers; do fold -s -w 46 "$texts_of/$of-$i" > "$texts_of/$of-$i.folded"; done
    pr -m -t -w 100 "$texts_of/muster-$i.folded" "$texts_of/transformers-$i.folded"
    if cmp -s "$texts_of/muster-$i" "$texts_of/transformers-$i"; then echo "(equal)"; else echo "(not equal)"; fi
done

step "done"
where() { printf '  %-32s %s\n' "$@"; }
where "$tokenizer" "the tokenizer; also in $run/ and $exported/"
where "$run/report.html" "after build/muster report $run: one page about this run"
where "$exported/" "AutoModelForCausalLM.from_pretrained(\"$exported\")"
cat <<TEXT

Next:
  go on from these weights   mpirun -n 2 build/muster train $config run.dir=runs/mine --init-from $exported
  other texts                build/muster train-tokenizer --vocab-size 8192 --out mine.json FOLDER
  loss per byte              build/muster eval $run (bits per byte can be compared between tokenizers)
TEXT
