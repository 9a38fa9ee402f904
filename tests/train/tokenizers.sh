# tokenizers.sh - train a tokenizer, tokenize texts with it, train a model on them: commands, output, errors.
. "$(dirname "$0")/train_lib.sh"

m() { on 1 "$MUSTER" "$@"; }
refuses() {         # refuses CODE PATTERN ARGUMENTS...: exit code and one error that matches
    local code=$1 pattern=$2
    shift 2
    expect "$code" "muster $*" m "$@"
    says_once "muster $*" "^muster: error: .*$pattern"
}
same() { if cmp -s "$2" "$3"; then pass; else fail "$1: $2 and $3 differ"; fi; }

mkdir -p texts/docs other special
cp "$MUSTER_SOURCE"/docs/*.md texts/docs && for f in texts/docs/*.md; do mv "$f" "${f%.md}.txt"; done
for i in 1 2 3 4 5; do printf '{"text": "number %d, the keeper counted %d boats\\n", "body": "only %d"}\n' $i $((i * 7919)) $i; done > texts/lines.jsonl
gzip -k texts/lines.jsonl && mv texts/lines.jsonl.gz texts/more.jsonl.gz

# ---------------------------------------------------------------- train-tokenizer
expect 0 "train-tokenizer" m train-tokenizer --vocab-size 600 --out tokenizer.json texts --threads 1
says "train-tokenizer" "^written to tokenizer.json: vocabulary of 600 \(1 special, 256 bytes, 343 merges\), pattern gpt2, fingerprint [0-9a-f]{32}$"
says "train-tokenizer" "^[0-9]+ documents, [0-9.]+ MB of text, [0-9]+ distinct pieces"
for threads in 2 4; do
    expect 0 "train-tokenizer, $threads threads" m train-tokenizer --vocab-size=600 --out=again.json texts/lines.jsonl texts/more.jsonl.gz texts/docs --threads $threads
    same "$threads threads" tokenizer.json again.json
done
says "train-tokenizer over a tokenizer" "^replaced again.json: "
expect 0 "options" m train-tokenizer --vocab-size 400 --out special/tokenizer.json --pattern qwen2 --min-frequency 3 --special "<|end|>" --special "<|user|>" \
    --text-key body texts/lines.jsonl
says "options" "^muster: warning: the texts give a vocabulary of [0-9]+, not 400: no other pair of tokens occurs 3 times"
says "options" "2 special, 256 bytes, [0-9]+ merges\), pattern qwen2"
refuses 64 "needs --vocab-size N, --out" train-tokenizer --out x.json texts
refuses 64 "needs --vocab-size N, --out" train-tokenizer --vocab-size 300 texts
refuses 64 "needs --vocab-size N, --out" train-tokenizer --vocab-size 300 --out x.json
refuses 64 "vocab-size 8k: expected a whole number" train-tokenizer --vocab-size 8k --out x.json texts
refuses 64 "vocabulary size 256: expected 257" train-tokenizer --vocab-size 256 --out x.json texts
refuses 64 'unknown pattern "gpt3"; available: gpt2, ' train-tokenizer --vocab-size 300 --pattern gpt3 --out x.json texts
refuses 64 "unknown option --size" train-tokenizer --size 300 --out x.json texts
refuses 64 'special token "the" could be an ordinary token' train-tokenizer --vocab-size 300 --special the --out x.json texts
refuses 64 "must end in .json" train-tokenizer --vocab-size 300 --out x.h5 texts
refuses 66 "nowhere: No such file" train-tokenizer --vocab-size 300 --out x.json nowhere
refuses 74 "nowhere/x.json" train-tokenizer --vocab-size 300 --out nowhere/x.json texts
printf '{"precious": 1}' > mine.json
refuses 64 "mine.json exists and is not a tokenizer" train-tokenizer --vocab-size 300 --out mine.json texts
if [ "$(cat mine.json)" = '{"precious": 1}' ]; then pass; else fail "train-tokenizer replaced a file"; fi
ln -s tokenizer.json linked.json
refuses 64 "linked.json is a symbolic link" train-tokenizer --vocab-size 300 --out linked.json texts
: > empty.txt
refuses 65 "no text in empty.txt" train-tokenizer --vocab-size 300 --out x.json empty.txt
(ulimit -f 8; refuses 74 "tokenizer.json.tmp" train-tokenizer --vocab-size 600 --out tokenizer.json texts; [ "$failed" = 0 ]) || fail "a full disk"
same "a full disk" tokenizer.json again.json
if [ -n "$MPIEXEC" ]; then
    expect 64 "train-tokenizer on 2 ranks" on 2 "$MUSTER" train-tokenizer --vocab-size 300 --out x.json texts
    says_once "train-tokenizer on 2 ranks" "^muster: error: train-tokenizer runs on one rank"
fi

# ---------------------------------------------------------------- tokenize, with any number of threads
for threads in 1 2 4; do
    expect 0 "tokenize, $threads threads" m tokenize --tokenizer tokenizer.json --out $threads.h5 docs=texts/docs lines=texts/lines.jsonl --threads $threads
    says "tokenize" "^docs +[0-9]+ tokens in [0-9]+ documents"
    same "tokenize, $threads threads" 1.h5 $threads.h5
done
refuses 64 "threads two: expected a whole number" tokenize --tokenizer tokenizer.json --out x.h5 --threads two docs=texts/docs
if [ -e x.h5 ] || [ -e x.json ] || [ -n "$(ls -A | grep '\.tmp-')" ]; then fail "files are left behind: $(ls -A)"; else pass; fi

# ---------------------------------------------------------------- a model on them, from texts and from the token file: the same
train_on() { train 1 "$1" data.tokenizer=tokenizer.json "data.train=[{domain: docs, path: $2}, {domain: lines, path: $3}]" train.steps=6 train.eval_every=3 train.seq_len=16 train.threads=$4; }
expect 0 "training on texts" train_on texts-run texts/docs texts/more.jsonl.gz 2
expect 0 "training on a token file" train_on file-run 1.h5 1.h5 1
same_metrics texts-run file-run exact

# ---------------------------------------------------------------- bits per byte: of the bytes of the tokens that were predicted
# Almost every token of this text is " boat", five bytes, so a bit per byte is a fifth of a bit per token.
yes ' boat' | head -n 20000 | tr -d '\n' > boats.txt
expect 0 "a tokenizer of boats" m train-tokenizer --vocab-size 261 --out other/tokenizer.json boats.txt
expect 0 "training on boats" train 1 boats data.tokenizer=other/tokenizer.json "data.train=[{domain: boats, path: boats.txt}]" train.steps=5 train.eval_every=5
bytes=$(sed -n 's|.*"val/boats/ce_loss":\([0-9.e-]*\).*"val/boats/bits_per_byte":\([0-9.e-]*\).*|\1 \2|p' boats/metrics.jsonl | awk '{ print $1 / log(2) / $2 }' | tail -n 1)
if awk "BEGIN { exit !(${bytes:-0} > 4.98 && ${bytes:-0} <= 5.0001) }"; then pass; else fail "'$bytes' bytes per token, expected 5"; fi
finish
