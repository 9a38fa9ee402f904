# init_from.sh - train --init-from: a new run with the weights of a checkpoint, a run or a folder of safetensors, and its architecture;
# optimizer, step, schedule and data are new. Keys that contradict it, wrong and missing tensors, lineage, ranks and ep.
. "$(dirname "$0")/train_lib.sh"

sed 's/^model:.*/model: {max_seq_len: 32}/; s/^moe:.*/moe: {aux_loss_coeff: 0.02}/; s/warmup_steps: 5/warmup_steps: 0/' tiny.yaml > bare.yaml
# from N DIR PATH OPTION...: bare.yaml, which has nothing of the architecture
from() {
    local n=$1 dir=$2 path=$3
    shift 3
    on "$n" "$MUSTER" train bare.yaml run.dir="$dir" --init-from "$path" "$@"
}
# loss RUN STEP: of its validation; val RUN|PATH OPTION...: that of eval, to as many digits
loss() { sed -n "s/^{\"step\":$2,.*\"val\/ce_loss\":\([0-9.]*\).*/\1/p" "$1/metrics.jsonl"; }
val() { "$MUSTER" eval "$@" 2> /dev/null | sed -n 's/.*: \([0-9.]*\) nats\/token.*/\1/p'; }
near() { if awk -v a="$2" -v b="$3" 'BEGIN { exit !(a > 0 && b > 0 && a - b < 1e-5 && b - a < 1e-5) }'; then pass; else fail "$1: '$2' and '$3'"; fi; }
all="checkpoint.every=5 checkpoint.keep=9"
still="optim.lr=1e-30 train.steps=1 train.eval_every=1 train.eval_sequences=0"      # the weights stay as they are

expect 0 "the source" train 1 old $all train.steps=10 train.device=ref moe.balance=[global_aux_loss,expert_bias] moe.score_func=sigmoid
want=$(val old train.device=ref)

# ---------------------------------------------------------------- its weights, and only these
for n in 1 2; do
    [ $n = 2 ] && { [ -n "${MPIEXEC:-}" ] || continue; }
    expect 0 "on $n" from $n still$n old $still train.device=ref parallel.ep=$n
    says_once "on $n" "^weights from $work/old/checkpoints/step-00000010\$"
    near "the loss before the first step, on $n" "$(loss still$n 1)" "$want"
done
expect 0 "trained" from 1 new old $all
has_steps new "5 10 15 20"
if grep -q '^  hidden_size: 32 ' new/config.resolved.yaml && grep -q '^  aux_loss_coeff: 0.02 ' new/config.resolved.yaml; then pass; else fail "its configuration"; fi
if grep '^{"step":1,' new/metrics.jsonl | grep -q '"train/tokens":256,'; then pass; else fail "tokens of the source are counted"; fi
expect 0 "its lineage" on 1 "$MUSTER" inspect new
says_once "its lineage" "^  first weights from $work/old/checkpoints/step-00000010\$"
origin="\"init_from\":{\"path\":\"$work/old/checkpoints/step-00000010\",\"step\":10,\"manifest_hash\":\"$(sed -n 2p old/checkpoints/step-00000010/manifest.json)\"}"
for file in run.json checkpoints/step-00000010/manifest.json; do
    if grep -qF "$origin" new/$file; then pass; else fail "no origin in new/$file"; fi
done
expect 0 "all whole" on 1 "$MUSTER" verify new
expect 0 "an older checkpoint" from 1 older old/checkpoints/step-00000005 train.steps=1
says_once "an older checkpoint" "^weights from $work/old/checkpoints/step-00000005\$"
expect 0 "a dry run" from 1 none old --dry-run --ranks 2 parallel.ep=2
says "a dry run" '^  hidden_size: 32 '

# ---------------------------------------------------------------- resuming
cp -r new again && rm -r again/checkpoints/step-000000[12]* && mv old gone
expect 0 "the same command again, without the source" from 1 again old $all
says_once "again" '^note: again already holds a checkpoint, which is resumed; --init-from old has no effect$'
same_metrics new again exact
same_checkpoint new again 20
mv gone old
expect 0 "without the option" on 1 "$MUSTER" train bare.yaml run.dir=again $all train.steps=25
has_steps again "5 10 15 20 25"
if grep -q '^note: .*init-from' log; then fail "the option is named where it was not given"; else pass; fi
expect 78 "without the option, another width" on 1 "$MUSTER" train bare.yaml run.dir=again train.steps=30 model.hidden_size=64
says_once "without the option, another width" "model\.hidden_size: 64 contradicts the weights of again, which have 32"
expect 0 "a fork of it" on 1 "$MUSTER" train bare.yaml run.dir=forked train.steps=22 model.hidden_size=32 model.num_layers=2 \
    model.num_heads=2 model.num_kv_heads=1 moe.moe_ffn_hidden_size=16 moe.score_func=sigmoid moe.balance=[expert_bias] checkpoint.keep=9 --fork new
expect 0 "a fork of it, whole" on 1 "$MUSTER" verify forked

# ---------------------------------------------------------------- keys that contradict
expect 78 "other values" from 1 none old model.hidden_size=64 model.rope_theta=5000 moe.top_k=3 moe.num_experts=4 model.init_std=0.5
says_once "width" "model\.hidden_size: 64 contradicts the weights of old, which have 32; leave the key out to take theirs"
says_once "theta" "model\.rope_theta: 5000 contradicts the weights of old, which have 10000"
says_once "top_k" "moe\.top_k: 3 contradicts the weights of old, which have 2"
says_once "experts" "moe\.num_experts: 4 contradicts the weights of old, which have 8"
if grep -q 'init_std' log; then fail "an option of the initialisation is compared"; else pass; fi
expect 78 "without the biases" from 1 none old 'moe.balance=[global_aux_loss]'
says_once "without the biases" "moe\.balance: must contain expert_bias or quantile_balancing: the weights of --init-from old have selection biases"
expect 0 "equal values" from 1 equal old train.steps=1 model.hidden_size=32 model.num_kv_heads=1 model.head_dim=0 model.vocab_size=257 moe.score_func=sigmoid
expect 78 "too few rows" from 1 none old model.vocab_size=300
says_once "rows" "model\.vocab_size: 300 contradicts the weights of old, which have 257"

# ---------------------------------------------------------------- rows without a token
expect 0 "more rows than tokens" train 1 rows train.steps=3 optim.warmup_steps=0 model.vocab_size=300
expect 0 "from those" from 1 rows2 rows train.steps=1
if grep -q '^  vocab_size: 300 ' rows2/config.resolved.yaml; then pass; else fail "rows are not taken"; fi
expect 0 "generated" on 1 "$MUSTER" generate rows2 --prompt a --tokens 20
expect 0 "inspected" on 1 "$MUSTER" inspect rows
says "inspected" 'vocabulary 300 \(bytes\)'
expect 78 "fewer rows than tokens" train 1 none model.vocab_size=200
says_once "fewer" "model\.vocab_size is 200, but the tokenizer bytes has 257 ids; use at least 257"
expect 78 "fewer rows than tokens, planned" train 1 none model.vocab_size=200 --dry-run
says_once "fewer, planned" "model\.vocab_size is 200"

# ---------------------------------------------------------------- the run's copy of a tokenizer
# tokenizer LAST: byte level, with two merges, of which LAST is the second
tokenizer() {
    local b n=0
    printf '{"version":"1.0","added_tokens":[{"id":256,"content":"<|endoftext|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],'
    printf '"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{'
    for ((b = 0; b < 256; b++)); do
        if ((b < 33 || (b > 126 && b < 161) || b == 173)); then printf '"\\u%04x":%d,' $((256 + n++)) $b; else printf '"\\u%04x":%d,' $b $b; fi
    done
    printf '"<|endoftext|>":256,"en":257,"%s":258},"merges":["e n","%s %s"]}}\n' "$1" "${1:0:1}" "${1:1}"
}
mkdir texts words
tokenizer um > words/tokenizer.json
for i in 1 2 3 4 5 6; do printf 'Document number %d: %s\n' $i "$(seq -s ' then ' $((i * 7)) $((i * 7 + 90)))" > texts/$i.txt; done
sed -i 's/train: \[.*\]/train: [{domain: a, path: texts}]/' bare.yaml tiny.yaml
expect 0 "a tokenizer file" train 1 bpe $all data.tokenizer=words/tokenizer.json
expect 0 "its copy" on 1 "$MUSTER" tokenize --tokenizer words/tokenizer.json --out there.h5 a=texts
there=$(grep -o 'fingerprint .*' log)
expect 0 "its copy" on 1 "$MUSTER" tokenize --tokenizer bpe/tokenizer.json --out copy.h5 a=texts
says_once "its copy" "^written to copy.h5, tokenizer bpe, $there\$"

# ---------------------------------------------------------------- Hugging Face's files
expect 0 "exported" on 1 "$MUSTER" convert bpe hf --to hf
own="data.train=[{domain: a, path: texts}]"
want=$(val bpe train.device=ref)
near "eval of Hugging Face's files" "$(val hf "$own" train.seq_len=32 train.device=ref)" "$want"
for n in 1 2; do
    [ $n = 2 ] && { [ -n "${MPIEXEC:-}" ] || continue; }
    expect 0 "safetensors on $n" from $n hf$n hf $still train.device=ref parallel.ep=$n
    says_once "safetensors on $n" "^weights from $work/hf\$"
    near "the loss before the first step, of safetensors on $n" "$(loss hf$n 1)" "$want"
done
if grep -qF "\"init_from\":{\"path\":\"$work/hf\"}" hf1/run.json && grep -q "^  tokenizer: $work/hf/tokenizer.json " hf1/config.resolved.yaml; then pass; else fail "lineage of safetensors"; fi
"$MUSTER" generate bpe --prompt 'Document n' --tokens 20 --temperature 0 --mask 0:1 > ours 2> /dev/null
expect 0 "generated from Hugging Face's files" on 1 "$MUSTER" generate hf --prompt 'Document n' --tokens 20 --temperature 0 --mask 0:1
if [ -s ours ] && grep -qF "$(head -n 1 ours)" log; then pass; else fail "other text from Hugging Face's files"; fi
expect 0 "counted in Hugging Face's files" on 1 "$MUSTER" stats hf a=texts
expect 64 "no texts" on 1 "$MUSTER" eval hf
says_once "no texts" "hf was not trained on texts that muster knows: add data\.train="
expect 78 "another length" on 1 "$MUSTER" eval bpe train.seq_len=16
expect 78 "another width" from 1 none hf model.hidden_size=64 data.tokenizer=bytes
says_once "another width" "model\.hidden_size: 64 contradicts the weights of hf, which have 32"
expect 78 "another tokenizer than that of safetensors" from 1 none hf data.tokenizer=bytes
cp -r hf wrong && sed -i 's/"moe_intermediate_size": 16/"moe_intermediate_size": 24/' wrong/config.json
for how in "" --dry-run; do
    expect 65 "a wrong shape $how" from 1 none wrong $how
    says_once "a wrong shape $how" 'tensor model\.layers\.0\.mlp\.experts\.0\.gate_proj\.weight has shape \[16, 32\], but the model needs \[24, 32\]'
done
cp hf/config.json wrong && sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' wrong/config.json
expect 65 "a missing tensor" from 1 none wrong
says_once "a missing tensor" 'tensor model\.layers\.2\..* is missing; the model needs it with shape \['
rm wrong/tokenizer.json && cp hf/config.json wrong
expect 78 "no tokenizer there" from 1 none wrong
says_once "no tokenizer there" "data\.tokenizer: must be given: wrong has no tokenizer\.json"
expect 0 "converted" on 1 "$MUSTER" convert hf converted --to muster
near "eval of weights only" "$(val converted "$own" train.seq_len=32 train.device=ref)" "$want"
expect 0 "weights only" from 1 more converted $still train.device=ref
near "the loss before the first step, of weights only" "$(loss more 1)" "$want"
expect 78 "a fork of weights only" train 1 none data.tokenizer=words/tokenizer.json --fork converted

mkdir elsewhere && mv bpe words elsewhere
expect 0 "moved, without its file: evaluated" on 1 "$MUSTER" eval elsewhere/bpe
expect 0 "generated" on 1 "$MUSTER" generate elsewhere/bpe --prompt 'Document <|endoftext|>' --tokens 5
expect 0 "counted" on 1 "$MUSTER" stats elsewhere/bpe a=texts
expect 0 "verified" on 1 "$MUSTER" verify elsewhere/bpe
expect 0 "reported" on 1 "$MUSTER" report elsewhere/bpe --out report.html
expect 0 "resumed" train 1 elsewhere/bpe $all data.tokenizer=words/tokenizer.json train.steps=22
expect 0 "resumed with the file at its new place" train 1 elsewhere/bpe $all data.tokenizer=elsewhere/words/tokenizer.json train.steps=23
says "at its new place" '^  data.tokenizer: words/tokenizer.json -> elsewhere/words/tokenizer.json \(the same tokenizer\)$'
expect 0 "forked" train 1 branch data.tokenizer=words/tokenizer.json train.steps=25 --fork elsewhere/bpe/checkpoints/step-00000020
expect 0 "its weights" from 1 next elsewhere/bpe train.steps=1
if grep -q "^  tokenizer: $work/elsewhere/bpe/tokenizer.json " next/config.resolved.yaml && [ -f next/tokenizer.json ]; then pass; else fail "the tokenizer of the source is not taken"; fi
mv elsewhere/bpe hidden
expect 0 "the same command again" from 1 next elsewhere/bpe train.steps=2
if grep -q 'data\.tokenizer' log; then fail "the name of the tokenizer changes on resume"; else pass; fi
mv hidden elsewhere/bpe
expect 66 "a new run without the file" train 1 none data.tokenizer=words/tokenizer.json
mkdir words && tokenizer er > words/tokenizer.json
expect 78 "resumed with another tokenizer" train 1 elsewhere/bpe $all data.tokenizer=words/tokenizer.json train.steps=24
says_once "another tokenizer" 'data\.tokenizer is words/tokenizer\.json, but elsewhere/bpe/checkpoints/step-00000023: made with another tokenizer "bpe": fingerprint'
expect 78 "weights of another tokenizer" from 1 none elsewhere/bpe data.tokenizer=words/tokenizer.json
says_once "weights of another tokenizer" 'data\.tokenizer is words/tokenizer\.json, but elsewhere/bpe/.*: made with another tokenizer'
expect 78 "weights of bytes" from 1 none old data.tokenizer=words/tokenizer.json
says_once "weights of bytes" 'made with tokenizer "bytes", not "bpe"'
cp words/tokenizer.json elsewhere/bpe/tokenizer.json
expect 0 "a copy of another, and the file" on 1 "$MUSTER" eval elsewhere/bpe
mv elsewhere/words/tokenizer.json kept.json
expect 65 "a copy of another, and no file" on 1 "$MUSTER" eval elsewhere/bpe
says_once "a copy of another" 'made with another tokenizer "bpe"'
mv kept.json elsewhere/words/tokenizer.json
expect 0 "a copy of another is replaced" train 1 elsewhere/bpe $all data.tokenizer=elsewhere/words/tokenizer.json train.steps=24
says_once "replaced" 'warning: elsewhere/bpe/tokenizer\.json is not the tokenizer of this run: renamed to elsewhere/bpe/tokenizer\.json\.aside$'
expect 0 "and is right" on 1 "$MUSTER" eval elsewhere/bpe
rm elsewhere/bpe/tokenizer.json elsewhere/words/tokenizer.json
expect 66 "neither copy nor file" on 1 "$MUSTER" eval elsewhere/bpe
says_once "neither" "the tokenizer of $work/elsewhere/bpe: neither $work/elsewhere/bpe/tokenizer\.json nor elsewhere/words/tokenizer\.json exists"
expect 0 "verified without it" on 1 "$MUSTER" verify elsewhere/bpe

# ---------------------------------------------------------------- damage and errors
cp -r old hurt && "$MUSTER_FLIP" hurt/checkpoints/step-00000010/shard-0000.h5 4000
expect 0 "a damaged checkpoint" from 1 back hurt train.steps=1
says_once "damaged" "warning: checkpoint of step 10 skipped, failed verification"
says_once "damaged" "^weights from $work/hurt/checkpoints/step-00000005\$"
expect 66 "nothing there" from 1 none nowhere
says_once "nothing there" "nowhere"
mkdir empty
expect 65 "no weights there" from 1 none empty
expect 64 "no value" train 1 none --init-from
expect 64 "two sources" train 1 none --init-from old --fork old
says "two sources" "\-\-init-from old and \-\-fork old exclude each other"
expect 64 "resumed from elsewhere" train 1 none --init-from old --resume new
expect 78 "a folder with a run" from 1 new old --resume never
finish
