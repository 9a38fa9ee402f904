#!/usr/bin/env bash
# convert.sh - muster convert: a run on two ranks to Hugging Face's files and back gives the same weights, whoever reads them; nothing is
# overwritten and nothing half done stays; what does not fit is refused with its exit code.
. "${MUSTER_SOURCE:?}/tests/train/train_lib.sh"

# expect CODE PATTERN COMMAND...
expect() {
    local code=$1 pattern=$2; shift 2
    on 1 "$@"
    local got=$?
    [ "$got" = "$code" ] && grep -qE "$pattern" log && pass || fail "${*:2}: exit code $got, expected $code and '$pattern'"
}
greedy() { timeout 60 "$MUSTER" generate "$1" --prompt "a b" --tokens 20 --temperature 0 train.threads=1 2> log; }

sed -i 's/warmup_steps: 5/warmup_steps: 1/' tiny.yaml
ranks=1
[ -n "${MPIEXEC:-}" ] && ranks=2
on $ranks "$MUSTER" train tiny.yaml parallel.ep=$ranks train.steps=3 || fail "training"

# to Hugging Face, in several files, and back
expect 0 'qwen3_moe, fp32' "$MUSTER" convert run hf --to hf --shard-size 20KB
[ "$(ls hf | tr '\n' ' ' | sed 's/model-[0-9]*-of-[0-9]*.safetensors/model-N/g')" != "" ] && [ -f hf/model.safetensors.index.json ] &&
    [ -f hf/config.json ] && [ -f hf/generation_config.json ] && [ -f hf/tokenizer.json ] && [ -f hf/tokenizer_config.json ] && pass || fail "files: $(ls hf)"
expect 0 'weights of' "$MUSTER" convert hf back --to muster
expect 0 '^ok .*step 0' "$MUSTER" verify back
expect 0 '^  weights only' "$MUSTER" inspect back --state
grep -qE '^  max_seq_len: 32$' log && grep -qE '^  num_experts: 8$' log && ! grep -qE 'tokens seen|step 0 of|/state/|fingerprint|lr:|aux_loss|optimizer state|seq_len: 2$' log &&
    pass || fail "inspect shows more than is known of weights, or less: $(cat log)"
for command in report watch "compare run"; do
    expect 66 'error: back holds weights only .muster convert., no run' "$MUSTER" $command back
    expect 66 'error: hf is a model of Hugging Face, no run' "$MUSTER" $command hf
done
expect 0 'qwen3_moe, fp32' "$MUSTER" convert back/checkpoints/step-00000000 hf2 --to hf --shard-size 20KB
for f in hf/*; do
    cmp -s "$f" "hf2/$(basename "$f")" && pass || fail "$f differs after a round trip"
done
# what belongs to a model and not to its weights, also from the checkpoint inside
cp -r hf noted && echo '{"eos_token_id": [5, 7]}' > noted/generation_config.json && echo '{{ messages }}' > noted/chat_template.jinja
echo '{"eos_token": "<|endoftext|>"}' > noted/special_tokens_map.json
sed -i 's/"bos_token_id": null/"bos_token_id": 3/; s/"eos_token_id": 256/"eos_token_id": [256, 5]/; s/"pad_token_id": null/"pad_token_id": 7/
    s/"router_aux_loss_coef": [^,]*/"router_aux_loss_coef": 0.0012/; s/"initializer_range": [^,]*/"initializer_range": 0.006/' noted/config.json
[ "$(grep -cE '_token_id|0.0012|0.006' noted/config.json)" = 5 ] && pass || fail "the test's own config.json"
expect 0 'weights of' "$MUSTER" convert noted back2 --to muster
expect 0 'qwen3_moe' "$MUSTER" convert back2 noted2 --to hf
expect 0 'qwen3_moe' "$MUSTER" convert back2/checkpoints/step-00000000 noted3 --to hf
for f in config.json generation_config.json chat_template.jinja special_tokens_map.json; do
    for copy in noted2 noted3; do cmp -s noted/$f $copy/$f && pass || fail "$f is lost or changed in $copy"; done
done
rm noted/generation_config.json && sed -i '/pad_token_id/d; s/"eos_token_id": \[256, 5\],/"eos_token_id": 256/' noted/config.json
expect 0 'weights of' "$MUSTER" convert noted back3 --to muster
expect 0 'qwen3_moe' "$MUSTER" convert back3 noted4 --to hf
cmp -s noted/config.json noted4/config.json && [ ! -e noted4/generation_config.json ] && pass || fail "what was not there is there"

# a text ends at any of the ids of generation_config.json, or else of config.json
first=$(greedy hf | tail -c +4 | head -c 1 | od -An -tu1 | tr -d ' ')
echo '{"eos_token_id": [1, '"$first"']}' > back2/generation_config.json
sed -i 's/"eos_token_id": 256/"eos_token_id": '"$first"'/' noted/config.json
for model in noted back2; do [ "$(greedy $model)" = "a b" ] && pass || fail "$model goes on behind its last id"; done
echo '{"eos_token_id": "end"}' > back2/generation_config.json
expect 65 'generation_config.json: eos_token_id: must be an id, a list of ids, or null' "$MUSTER" generate back2 --prompt x
want=$(greedy run)
for model in hf back hf2; do [ -n "$want" ] && [ "$(greedy $model)" = "$want" ] && pass || fail "$model generates other text"; done
expect 0 'qwen3_moe, bf16' "$MUSTER" convert run half --to hf --dtype bf16
[ "$(stat -c %s half/model.safetensors)" -lt 120000 ] && pass || fail "bf16 is not half as large"

# a run begins with them on any number of ranks; weights alone are no run to resume
on $ranks "$MUSTER" train tiny.yaml --init-from back run.dir=new parallel.ep=$ranks train.steps=1 && pass || fail "--init-from a converted checkpoint"
on 1 "$MUSTER" train tiny.yaml --init-from hf run.dir=new1 train.steps=1 && pass || fail "--init-from a folder of Hugging Face"
expect 78 'holds weights only' "$MUSTER" train tiny.yaml --resume back run.dir=other data.tokenizer=hf
expect 78 'holds weights only' "$MUSTER" train tiny.yaml --fork back run.dir=other data.tokenizer=hf

# refusals
expect 64 'hf exists' "$MUSTER" convert run hf --to hf
expect 64 'format already' "$MUSTER" convert hf hf3 --to hf
expect 64 'run is of muster already, no model of Hugging Face' "$MUSTER" convert run hf3 --to muster
expect 64 'run/hf3 lies inside run, which is not changed' "$MUSTER" convert run run/hf3 --to hf
expect 64 'hf/new/run3 lies inside hf' "$MUSTER" convert hf hf/new/run3 --to muster
expect 64 'shard-size 9KB: at least 10000 bytes' "$MUSTER" convert run hf3 --to hf --shard-size 9KB
expect 64 'needs --to' "$MUSTER" convert run hf3
expect 64 'fp32 or bf16' "$MUSTER" convert run hf3 --to hf --dtype fp16
expect 64 'not a size' "$MUSTER" convert run hf3 --to hf --shard-size much
expect 64 'is fp32' "$MUSTER" convert hf run3 --to muster --dtype bf16
expect 66 'none: no such file or folder' "$MUSTER" convert none hf3 --to hf
on 1 "$MUSTER" train tiny.yaml run.dir=biased train.steps=1 moe.balance='[expert_bias]' || fail "training"
expect 78 'moe.balance has expert_bias' "$MUSTER" convert biased hf3 --to hf
cp -r hf bad && rm bad/model-00002-of-*.safetensors
expect 66 'model-00002' "$MUSTER" convert bad run3 --to muster
cp -r half bad2 && truncate -s -2 bad2/model.safetensors
expect 65 'truncated' "$MUSTER" convert bad2 run3 --to muster
cp -r half bad3 && rm bad3/tokenizer.json
expect 65 'no tokenizer.json' "$MUSTER" convert bad3 run3 --to muster
cp -r half bad4 && sed -Ei 's/"added_tokens": ?\[/&{"id":257,"content":"<x>","special":true},/' bad4/tokenizer.json
more='tokenizer .*bad4/tokenizer.json has 258 ids, but the weights have 257 rows for them: it is not the tokenizer of this model'
expect 65 "$more" "$MUSTER" generate bad4 --prompt x
for how in "" --dry-run; do expect 65 "$more" "$MUSTER" train tiny.yaml --init-from bad4 run.dir=new2 train.steps=1 $how; done
[ -z "$(ls -d hf3* run3* 2>/dev/null)" ] && pass || fail "left behind: $(ls -d hf3* run3*)"
if [ -n "${MPIEXEC:-}" ]; then
    on 2 "$MUSTER" convert run hf3 --to hf
    [ $? = 64 ] && grep -q 'runs on one rank' log && pass || fail "convert on two ranks"
fi
finish
