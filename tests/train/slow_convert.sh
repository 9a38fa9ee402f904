#!/usr/bin/env bash
# slow_convert.sh - models between Hugging Face and muster, with Hugging Face's own classes on the other side: random models of every type
# (save_pretrained: several files, F32, BF16, F16) become checkpoints and models of Hugging Face again. Their weights are the same bits, no
# key is missing or unexpected, and all of them continue a prompt greedily as Hugging Face does in double precision, for 64 tokens. Needs
# MUSTER_PYTHON, a python with torch, transformers 5, tokenizers and safetensors.
. "${MUSTER_SOURCE:?}/tests/train/train_lib.sh"
models=$MUSTER_SOURCE/tests/train/convert_models.py
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
[ -n "${MUSTER_PYTHON:-}" ] || skip "MUSTER_PYTHON is not set"
"$MUSTER_PYTHON" -c 'import torch, transformers, tokenizers, safetensors; assert int(transformers.__version__.split(".")[0]) >= 5' 2>/dev/null ||
    skip "$MUSTER_PYTHON has no torch, transformers 5, tokenizers and safetensors"

value() { "$MUSTER_PYTHON" -c 'import json, sys; d = json.load(open(sys.argv[1])); print(d["prompt"] + "".join(map(chr, d["greedy"])))' "$1"; }

mkdir hf muster back
"$MUSTER_PYTHON" "$models" make hf > log 2>&1 || fail "the models were not made"
for facts in hf/*.json; do
    name=$(basename "$facts" .json) dtype=fp32
    [[ $name == *-bf16 ]] && dtype=bf16
    on 1 "$MUSTER" convert "hf/$name" "muster/$name" --to muster || { fail "$name to muster"; continue; }
    on 1 "$MUSTER" verify "muster/$name" && pass || fail "verify $name"
    on 1 "$MUSTER" convert "muster/$name" "back/$name" --to hf --dtype $dtype --shard-size 60KB || { fail "$name to Hugging Face"; continue; }
    for folder in hf muster back; do
        timeout 120 "$MUSTER" generate "$folder/$name" --prompt "The wind " --tokens 64 --temperature 0 train.threads=1 > text 2> log
        [ "$(cat text)" = "$(value "$facts")" ] && pass || fail "$folder/$name continues differently: $(cat text)"
    done
done
count=$(ls hf/*.json | wc -l)
timeout 580 "$MUSTER_PYTHON" "$models" check hf back/* > log 2>&1 || fail "Hugging Face disagrees"
[ "$(grep -c ': ok$' log)" = "$count" ] && pass || fail "not all of $count models were checked"

# A run of several ranks, with the tokenizer "bytes", becomes one whole model.
if [ -n "${MPIEXEC:-}" ]; then
    on 2 "$MUSTER" train tiny.yaml parallel.ep=2 train.steps=30 || fail "training"
    on 1 "$MUSTER" convert run run-hf --to hf || fail "a run to Hugging Face"
    "$MUSTER" generate run --prompt "abc" --tokens 64 --temperature 0 train.threads=1 > text 2> log
    "$MUSTER_PYTHON" - > theirs 2> log <<'END' || fail "Hugging Face does not load the run"
import torch, transformers
m, info = transformers.AutoModelForCausalLM.from_pretrained("run-hf", output_loading_info=True)
assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
t = transformers.AutoTokenizer.from_pretrained("run-hf")
ids = t("abc", return_tensors="pt").input_ids
with torch.no_grad():
    for _ in range(28):
        ids = torch.cat((ids, m(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)), 1)
print(t.decode(ids[0]), end="")
END
    [ "$(head -c 24 text)" = "$(head -c 24 theirs)" ] && pass || fail "the run continues differently: $(cat text), $(cat theirs)"
fi
finish
