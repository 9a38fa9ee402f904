# commands.sh - every sub-command as a user runs it: help, output and errors.
. "$(dirname "$0")/train_lib.sh"

m() { on 1 "$MUSTER" "$@"; }
refuses() {         # refuses CODE PATTERN ARGUMENTS...: exit code, one error that matches, nothing left behind
    local code=$1 pattern=$2
    shift 2
    expect "$code" "muster $*" m "$@"
    says_once "muster $*" "^muster: error: .*$pattern"
}

# ---------------------------------------------------------------- help
for command in train eval generate inspect verify report compare tokenize train-tokenizer; do
    expect 0 "$command --help" m $command --help
    says "$command --help" "^muster $command "
    expect 0 "help $command" m help $command
    expect 0 "$command --help on top of nonsense" m $command --nonsense --help
done
expect 0 "--version" m --version
says "--version" "^muster [0-9]+\.[0-9]+\.[0-9]+ "
expect 0 "--help" m --help
for command in train eval generate inspect verify report compare tokenize train-tokenizer; do says "--help" "  muster $command "; done
expect 0 "--help-config" m --help-config
for key in hidden_size num_experts capacity_factor ep global_batch_size keep_every warmup_steps val_fraction; do says "--help-config" "$key"; done
expect 64 "no command" m
refuses 64 'unknown command "trian"; did you mean "train"\?' trian tiny.yaml

# ---------------------------------------------------------------- dry run: under a second, nothing is written
TIMEFORMAT='%U %S'
cpu=$( { time m train tiny.yaml --dry-run model.hidden_size=1024 model.num_heads=8 model.num_layers=12 moe.num_experts=64 \
    moe.moe_ffn_hidden_size=512 stats.window=10000 > /dev/null; } 2>&1 | awk '{ print ($1 + $2 < 1) ? "fast" : $1 + $2 " s" }')
if [ "$cpu" = fast ]; then pass; else fail "a dry run took $cpu of processor time"; fi
for pattern in '^run:' 'dir: run' '^parameters: [0-9]+ total, [0-9]+ active' 'FLOPs:' 'memory of the busiest rank' '^  expert load statistics +29\.7$' 'experts of each MoE layer' 'rank 0: 0 1 2 3 4 5 6 7'; do
    says "dry run" "$pattern"
done
if [ -e run ]; then fail "a dry run made the run folder"; else pass; fi
# Planned ranks, and missing texts.
cpu=$( { time m train tiny.yaml --dry-run --ranks 64 train.global_batch_size=64 moe.num_experts=64 parallel.ep=16 \
    "data.train=[{domain: a, path: nowhere}, {domain: b, path: synthetic}]" > /dev/null; } 2>&1 | awk '{ print ($1 + $2 < 1) ? "fast" : $1 + $2 " s" }')
if [ "$cpu" = fast ]; then pass; else fail "a dry run of 64 ranks took $cpu of processor time"; fi
says_once "64 planned ranks" '^note: domain "a": nowhere: No such file or directory; the memory estimate leaves out its texts'
says "64 planned ranks" "^ranks: 64 = dp 4 x ep 16, 1 micro-batch of 1 sequences"
says "64 planned ranks" "^  rank 15: 60 61 62 63"
refuses 64 "--ranks needs --dry-run" train tiny.yaml --ranks 4
refuses 64 "ranks 0: expected a whole number" train tiny.yaml --dry-run --ranks 0
refuses 64 "ranks two: expected a whole number" train tiny.yaml --dry-run --ranks=two
refuses 78 "not a multiple of 3 ranks" train tiny.yaml --dry-run --ranks 3

# Its memory estimate, compared with the use of rank 0 of two. (A sanitizer needs more.)
if [ -n "${MPIEXEC:-}" ] && ! grep -q __asan_init "$MUSTER"; then
    model="model.hidden_size=256 model.num_heads=4 model.num_kv_heads=4 model.num_layers=4 model.max_seq_len=256 moe.moe_ffn_hidden_size=512
        train.seq_len=256 train.global_batch_size=8 train.steps=2 optim.warmup_steps=0 moe.force_balanced=true"
    for way in "parallel.ep=1" "parallel.ep=2" "train.micro_batch_size=1"; do
        expect 0 "a plan of two ranks, $way" m train tiny.yaml --dry-run --ranks 2 $model $way
        planned=$(sed -n 's/^  total *//p' log)
        expect 0 "two ranks, $way" train 2 memory $model $way
        taken=$(grep mem/rss_gib memory/metrics.jsonl | tail -1 | sed 's/.*"mem\/rss_gib":\([0-9.]*\).*/\1/')
        if awk "BEGIN { x = $planned / ($taken * 1024); exit !(x > 0.95 && x < 1.15) }"; then pass
        else fail "memory of a rank, $way: $planned MiB planned, $taken GiB taken"; fi
        rm -rf memory
    done
fi

# ---------------------------------------------------------------- bad configurations, all ranks, one message
refuses 64 "needs a configuration file" train
refuses 64 "unknown option --nonsense" train tiny.yaml --nonsense
refuses 64 "unexpected argument .tiny.yaml.; overrides are section.key=value" train tiny.yaml tiny.yaml
refuses 66 "nowhere.yaml" train nowhere.yaml
refuses 66 "directory" train .
refuses 66 "path 'nowhere' of domain 'a': No such file" train tiny.yaml "data.train=[{domain: a, path: nowhere}]"
refuses 78 "unknown key 'step' in section train; did you mean 'steps'\?" train tiny.yaml train.step=5
refuses 78 "train.steps: '1e6' is not an integer" train tiny.yaml train.steps=1e6
refuses 78 "run.dir" train tiny.yaml run.dir=
refuses 78 "does not divide moe.num_experts 8" train tiny.yaml parallel.ep=3
refuses 78 "does not divide the number of ranks" train tiny.yaml parallel.ep=2
refuses 78 "not a multiple of 1 rank x micro_batch_size 3 = 3; 6 and 9 are the nearest that fit" train tiny.yaml train.micro_batch_size=3
refuses 74 "passwd" train tiny.yaml run.dir=/etc/passwd/run
mkdir -p locked && chmod 555 locked
if ! touch locked/x 2> /dev/null; then refuses 74 "locked/run: .*Permission denied" train tiny.yaml run.dir=locked/run; fi
if [ -n "${MPIEXEC:-}" ]; then
    for bad in "78 train.global_batch_size=6" "78 parallel.ep=3" "78 moe.top_k=9" "66 data.train=[{domain: a, path: nowhere}]" "64 --nonsense" \
        "74 run.dir=/etc/passwd/run"; do
        expect "${bad%% *}" "4 ranks: ${bad#* }" train 4 run "${bad#* }"
        says_once "4 ranks: ${bad#* }" "^muster: error: "
    done
fi
[ -n "${MPIEXEC:-}" ] && expect 66 "4 ranks: nowhere to resume from" train 4 other --resume=nowhere && says_once "4 ranks" "^muster: error: --resume nowhere"
expect 78 "several errors at once" m train tiny.yaml moe.top_k=9 model.num_heads=3 optim.lr=nan train.seq_len=33
for key in moe.top_k model.hidden_size optim.lr train.seq_len; do says "several at once" "$key: "; done
if [ -e run ]; then fail "a refused configuration made the run folder"; else pass; fi

# ---------------------------------------------------------------- own texts
mkdir -p texts/more empty short
for i in 1 2 3; do seq -s ' ' $i 900 > texts/$i.txt; done
printf '{"text": "line %s of a file of lines"}\n' $(seq 1 200) > texts/more/lines.jsonl
: > empty/nothing.txt
echo "too short" > short/short.txt
printf '{"text": "fine"}\n{"text": 7}\n' > wrong.jsonl
printf '{"text": "fine"}\n{"text": "cut\n' > cut.jsonl
printf 'bytes \0 with a NUL' > nul.txt
own() { refuses "$1" "$2" train tiny.yaml "data.train=[{domain: own, path: $3}]"; }
own 65 "no text in empty" empty
own 65 "11 tokens are too few" short
own 65 "wrong.jsonl:2: no string named \"text\"" wrong.jsonl
own 65 "cut.jsonl:2: bad JSON" cut.jsonl
own 65 "nul.txt: .*NUL" nul.txt
own 65 "neither a folder nor named" tiny.yaml
rm -rf run
ln -s texts linked
for dir in texts/run texts linked/more/new/run texts/more/../../linked/run; do
    refuses 78 "run.dir $dir lies inside the texts of domain own \(texts\); choose" train tiny.yaml run.dir=$dir "data.train=[{domain: own, path: texts}]"
done
if [ -e texts/run ] || [ -e texts/more/new ]; then fail "a run folder was made among the texts"; else pass; fi
domains="data.train=[{domain: own, path: texts},{domain: one, path: texts/1.txt}]"
expect 0 "training on texts" train 1 run "$domains" train.eval_every=10 log.progress=line
for pattern in '^step 20/20 loss .* dead [0-9]+/16( load<10% [0-9]+/16)? ETA 0:00$' '^step 10: validation loss ' '^  own  ' '^  one  ' '^expert load, last 20 steps' '^checkpoint of step 20 written'; do
    says "training on texts" "$pattern"
done
says_once "overlapping texts" '^muster: note: domains "one" and "own" have texts in common'
for file in config.resolved.yaml run.json metrics.jsonl statistics.rec routing.h5 checkpoints/step-00000020/manifest.json; do
    if [ -s run/$file ]; then pass; else fail "run/$file is missing"; fi
done
if [ -s run/tensorboard/events.out.tfevents.* ]; then pass; else fail "run/tensorboard has not one file with events"; fi

# ---------------------------------------------------------------- eval, inspect, verify, generate
loss() { sed -n 's/^.*: \([0-9.]*\) nats\/token, mean of the domains.*$/\1/p' log; }
expect 0 "eval" m eval run
first=$(loss)
says "eval" "^  own .* [0-9.]+ +[0-9.]+ +[0-9.]+$"
trained=$(grep '"val/ce_loss"' run/metrics.jsonl | tail -1 | sed 's/.*"val\/ce_loss":\([0-9.]*\).*/\1/')
if [ "$(printf '%.5f' "$first")" = "$(printf '%.5f' "$trained")" ]; then pass; else fail "eval says $first, the run said $trained"; fi
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "eval on 4 ranks" on 4 "$MUSTER" eval run
    if [ "$(loss | cut -c1-6)" = "$(echo "$first" | cut -c1-6)" ]; then pass; else fail "eval on 4 ranks: $(loss), on one $first"; fi
fi
mv texts moved
refuses 66 'domain "own": texts' eval run
expect 0 "eval of texts that have moved" m eval run "data.train=[{domain: own, path: moved},{domain: one, path: moved/1.txt}]"
if [ "$(loss)" = "$first" ]; then pass; else fail "texts that have moved: $(loss) and $first"; fi
mv moved texts
refuses 64 "needs a run folder" eval
refuses 66 "nowhere: no such file or folder" eval nowhere
for command in eval inspect verify; do
    refuses 65 "texts is neither a run folder or checkpoint nor a model of Hugging Face" $command texts
    refuses 65 "tiny.yaml is a file; name the folder" $command tiny.yaml
done
mkdir bare && : > bare/model.safetensors
for command in eval inspect verify "train tiny.yaml run.dir=none --init-from"; do
    refuses 65 "bare has weights in safetensors, but no config.json; put the model's there" $command bare
done
refuses 65 "bare has weights in safetensors, but no config.json" convert bare none --to muster
mv bare/model.safetensors bare/pytorch_model.bin
refuses 65 "bare has weights in pytorch_model.bin, which is not read; transformers' from_pretrained and save_pretrained make" eval bare
rm -r bare
mkdir -p bare/checkpoints
for command in eval inspect verify; do refuses 65 "bare is a run folder without checkpoints" $command bare; done

expect 0 "inspect" m inspect run
for pattern in '^run: finished; last started 20' '^  checkpoints of step' '^  [0-9]+ logged steps; training loss [0-9.]+ \(step 20\)' '^  step 20 of 20, 5120 tokens seen, written by 1 rank' '[0-9]+ parameters, [0-9]+ active per token' 'shard-0000.h5' '^state \(format version [0-9]+; --state' '^  other state +[0-9]+ arrays, 0 of them sharded' '^  layer 1 ' 'hidden_size: 32'; do
    says "inspect" "$pattern"
done
expect 0 "inspect --state" m inspect run --state
says "inspect --state" '^  /norm/weight +f32  \[32\] +replicated +128$'
says "inspect --state" '^  /layers/1/mlp/experts/7/up_proj/weight +f32  \[16, 32\] +sharded +2048$'
says "inspect --state" '^  /optim/steps/layers/1/mlp/experts/7/up_proj/weight +i64  \[1\] +sharded +8$'
says "inspect --state" '^  /state/window/counts +i64  \[200, 2, 8\] +replicated +25600$'
listed=$(grep -Ec '^  /.* (sharded|replicated) +[0-9]+$' log)
summed=$(sed -n 's/^  [a-z ]* \([0-9]*\) arrays, [0-9]* of them sharded, [0-9]* bytes$/\1/p' log | awk '{ n += $1 } END { print n }')
if [ "$listed" = "$summed" ]; then pass; else fail "inspect --state lists $listed arrays and sums up $summed"; fi
parameters=$(sed -n 's/^  \([0-9]*\) parameters, .*/\1/p' log)
says "the weights are the parameters" "^  weights +[0-9]+ arrays, [0-9]+ of them sharded, $((4 * parameters)) bytes$"
tensors=$(sed -n 's/^  weights *\([0-9]*\) arrays.*/\1/p' log)
says "two moments of each, and steps of each tensor" "^  optimizer +$((3 * tensors)) arrays, [0-9]+ of them sharded, $((8 * parameters + 8 * tensors)) bytes$"
expect 0 "inspect --state of a checkpoint" m inspect --state run/checkpoints/step-00000020
says "inspect --state of a checkpoint" '^  /state/step +i64  \[1\] +replicated +8$'
refuses 64 "inspect needs one run folder or checkpoint" inspect --stat run
expect 0 "inspect one checkpoint" m inspect run/checkpoints/step-00000020/
refuses 66 "nowhere: no such file or folder" inspect nowhere
expect 0 "verify" m verify run
says "verify" "^ok       run/checkpoints/step-00000020: step 20, [0-9]+ tensors in 1 shard"
expect 0 "verify one checkpoint" m verify run/checkpoints/step-00000020
refuses 64 "needs one run folder" verify
refuses 66 "nowhere: no such file or folder" verify nowhere

text() { grep -av "^muster: [0-9]* tokens in " log; }        # without the timing
expect 0 "generate" m generate run --prompt "1 2 3" --tokens 20 --seed 5
text > once
expect 0 "generate again" m generate run --tokens=20 --seed=5 --prompt="1 2 3"
if text | cmp -s once -; then pass; else fail "the same seed gives other text"; fi
expect 0 "another seed" m generate run --prompt "1 2 3" --tokens 20 --seed 6
if text | cmp -s once -; then fail "another seed gives the same text"; else pass; fi
expect 0 "the likeliest" m generate run --prompt "1 2 3" --tokens 9 --temperature 0
text > once
expect 0 "the likeliest, any seed" m generate run --prompt "1 2 3" --tokens 9 --temperature 0 --seed 9
if text | cmp -s once -; then pass; else fail "temperature 0 depends on the seed"; fi
expect 0 "experts" m generate run --prompt "abc" --tokens 40 --top-p 0.9 --show-experts
says "experts" "^experts of each token"
says "experts" "^  token +\| layer 0 +\| layer 1"
refuses 64 "needs --prompt" generate run
expect 0 "an empty prompt" m generate run --prompt "" --tokens 5 --temperature 0 --show-experts
says "an empty prompt" "^  256 "
says "an empty prompt" "prompt of 1"
refuses 64 "tokens 2.5: expected a whole number" generate run --prompt x --tokens 2.5
refuses 64 "top-p 2: expected a number" generate run --prompt x --top-p 2
refuses 64 "prompt needs a value" generate run --prompt
refuses 64 "unknown option --topp" generate run --prompt x --topp 1
refuses 66 "nowhere: no such file or folder" generate nowhere --prompt x

# ---------------------------------------------------------------- verify checks the manifest against the model
manifest=signed/checkpoints/step-00000020/manifest.json
resigned() {        # resigned PATTERN SED: verify of the manifest, changed by SED and signed again, prints PATTERN
    rm -rf signed && cp -r run signed
    head -1 $manifest | sed "$2" > line && mv line $manifest && "$MUSTER_SIGN" $manifest
    expect 65 "verify after $2" m verify signed
    says_once "verify after $2" "^damaged  signed/checkpoints/step-00000020: .*$1"
}
resigned 'manifest.json: the shards have [0-9]+ bytes, but the model of its configuration needs' 's/hidden_size: 32/hidden_size: 64/'
resigned 'manifest.json: the shards have [0-9]+ bytes, but the model of its configuration needs' 's/window: 200/window: 100000/'
resigned 'shard-0000.h5: /state/window/counts: expected i64 \[100, 2, 8\], found i64 \[200, 2, 8\]' 's/window: 200/window: 100/'
resigned 'lists [0-9]+ tensors, but the model of its configuration has' 's/num_experts: 8/num_experts: 16/'
resigned 'lists [0-9]+ tensors, but the model of its configuration has' 's/num_experts: 8/num_experts: 4/'
resigned 'lists [0-9]+ tensors, but the model of its configuration has' 's/"tensors":{/"tensors":{"\/x":0,/'
resigned 'names no tensor /norm/weight' 's/"\/norm\/weight"/"\/norm\/w"/'
resigned 'manifest.json names 2 domains; its configuration has 1' 's/\\n *- {domain: one[^}]*}//'
resigned '/state/seed.0. is 7, must be in .8, 8.' 's/seed: 7/seed: 8/'
resigned 'a field is missing, out of its range or of the wrong type' 's/"val_split":"documents_by_hash"/"val_split":"other"/'
resigned 'made with another tokenizer "bytes": fingerprint 01234567890123456789012345678901, not' \
    's/"tokenizer_fingerprint":"[0-9a-f]*"/"tokenizer_fingerprint":"01234567890123456789012345678901"/'
resigned 'made with tokenizer "none", not "bytes"' 's/"tokenizer":"bytes"/"tokenizer":"none"/'
if [ -n "${MPIEXEC:-}" ]; then
    expect 64 "verify on 2 ranks" on 2 "$MUSTER" verify run
    says_once "verify on 2 ranks" "^muster: error: verify runs on one rank"
    expect 66 "inspect of nothing on 2 ranks" on 2 "$MUSTER" inspect nowhere
    says_once "inspect of nothing on 2 ranks" "^muster: error: nowhere: no such file or folder"
fi

# ---------------------------------------------------------------- eval: texts and number of sequences
expect 0 "eval of two sequences" m eval run train.eval_sequences=2 train.threads=1 train.device=ref
says "eval of two sequences" "over at most 2 validation sequences per domain"
if [ "$(loss)" = "$first" ]; then fail "eval takes no notice of train.eval_sequences"; else pass; fi
expect 0 "eval of all" m eval run train.eval_sequences=0
says "eval of all" "over all validation sequences"
if grep -q "texts differ" log; then fail "eval does not know its texts"; else pass; fi
if [ "$(loss)" = "$first" ]; then pass; else fail "eval of all: $(loss), by itself $first"; fi
refuses 78 "train.seq_len=16: eval accepts only data.train, data.text_key, data.val_fraction, data.cache_mib, train.device, train.dtype, train.threads, train.eval_sequences" eval run train.seq_len=16
refuses 78 "top_k=1: eval accepts only" eval run moe.top_k=1
expect 0 "eval of other texts" m eval run "data.train=[{domain: own, path: texts/2.txt}]"
says_once "eval of other texts" "^note: the texts differ from the training texts"
refuses 66 "nowhere.*data.train='\[\{domain: own, path: ...\}, ...\]'" eval run "data.train=[{domain: own, path: nowhere}]"

# ---------------------------------------------------------------- no validation text
nothing="no validation data: data.val_fraction is 0 or the texts are too short"
seq -s ' ' 1 17 | cut -c1-40 > tiny.txt
expect 0 "training without validation" train 1 blind data.val_fraction=0 train.eval_every=10 log.progress=line
says_once "training without validation" "^note: $nothing"
says_once "training without validation" "Not measured: validation loss; what experts know"
says "training without validation" "^  b +[0-9]+ +0 +[0-9.]+% +- +- +-$"
if grep -Eqi '\bnan\b|^validation' log; then fail "validation of nothing"; else pass; fi
if grep -q '"val/' blind/metrics.jsonl; then fail "metrics of no validation"; else pass; fi
expect 0 "the finished run without validation" train 1 blind data.val_fraction=0 train.eval_every=10 log.progress=line
if grep -Eqi '\bnan\b|^validation' log; then fail "validation of nothing, once more"; else pass; fi
refuses 65 "$nothing" eval blind
expect 0 "one domain without validation" train 1 half "data.train=[{domain: own, path: texts}, {domain: one, path: tiny.txt}]" \
    train.eval_every=10 log.progress=line
says "one domain without validation" "^step 20: validation loss [0-9.]+ \(nats/token\), 1 domain$"
says "one domain without validation" "^  one .* - +[0-9.]+ +-$"
if grep -q '"val/own/ce_loss"' half/metrics.jsonl && ! grep -q '"val/one/' half/metrics.jsonl; then pass; else fail "metrics of one domain"; fi
if grep '"val/' half/metrics.jsonl | grep -q null; then fail "null metrics"; else pass; fi
expect 0 "eval with one domain" m eval half
if grep -Eqi '\bnan\b' log; then fail "eval says nan"; else pass; fi

# ---------------------------------------------------------------- tokenize
expect 0 "tokenize" m tokenize --out tokens.h5 own=texts one=texts/1.txt
says "tokenize" "^own +[0-9]+ tokens in 203 documents"
fingerprint=$(sed -n 's/.*fingerprint //p' log)
if grep -q "\"data_fingerprint\":\"$fingerprint\"" run/run.json; then pass; else fail "texts and token file have different fingerprints"; fi
expect 0 "training on a token file" train 1 tokens "data.train=[{domain: own, path: tokens.h5},{domain: one, path: tokens.h5}]" train.eval_every=10
same_metrics run tokens exact
# A dry run counts each domain of a token file once, and only those in data.train.
seq 1 200000 > many.txt
expect 0 "a larger token file" m tokenize --out both.h5 many=many.txt few=texts/1.txt
texts_of() { m train tiny.yaml --dry-run "data.train=[$1]"; sed -n 's/^  texts *//p' log; }
for domains in "{domain: few, path: both.h5} 0.0 0.2" "{domain: many, path: both.h5} 2.4 3.2" "{domain: many, path: both.h5}, {domain: few, path: both.h5} 2.4 3.2"; do
    bounds=${domains##*\}} found=$(texts_of "${domains% * *}")
    if awk -v x="$found" -v b="$bounds" 'BEGIN { split(b, at, " "); exit !(x >= at[1] && x <= at[2]) }'; then pass
    else fail "a dry run says $found MiB of texts for $domains"; fi
done
# The same texts, compressed and under another key: the same run.
mkdir packed && gzip -c texts/1.txt > packed/1.txt.gz && cp texts/[23].txt packed && sed 's/"text"/"body"/' texts/more/lines.jsonl | gzip > packed/more.jsonl.gz
expect 0 "tokenize with another key" m tokenize --text-key body --out packed.h5 own=packed one=packed/1.txt.gz
says "tokenize with another key" "fingerprint $fingerprint$"
expect 0 "eval with another key" m eval run data.text_key=body "data.train=[{domain: own, path: packed},{domain: one, path: packed/1.txt.gz}]"
if grep -q "texts differ" log; then fail "eval: the texts are others when they are compressed"; else pass; fi
refuses 65 "packed/more.jsonl.gz:1: no string named \"text\"; data.text_key, or --text-key of a command, selects another key" tokenize --out other.h5 own=packed
head -c 100 packed/1.txt.gz > cut.txt.gz
own 65 "cut.txt.gz: truncated: the file ends at byte 100" cut.txt.gz
cp tokens.h5 damaged.h5
"$MUSTER_FLIP" damaged.h5 3000
own 65 "damaged.h5: .*damaged\?" damaged.h5
head -c 2000 tokens.h5 > cut.h5
own 65 "cut.h5: cannot be read" cut.h5
refuses 65 "tokens.h5: .*other.* not in the file" train tiny.yaml "data.train=[{domain: other, path: tokens.h5}]"
mkdir other.h5.tmp && cp -r run texts/old && cp run/metrics.jsonl other.h5.tmp/mine
echo precious > precious.h5
refuses 64 "--out precious.h5 exists and is not a token file; choose another name or remove it" tokenize --out precious.h5 own=texts/1.txt
if [ "$(cat precious.h5)" = precious ]; then pass; else fail "tokenize replaced a file"; fi
expect 0 "tokenize beside a run" m tokenize --out other.h5 own=texts one=texts/1.txt
says_once "tokenize beside a run" 'note: not read in texts: 1 folder of a run \(old\)$'
if cmp -s other.h5 tokens.h5 && [ -s other.h5.tmp/mine ]; then pass; else fail "tokenize beside a run and a folder other.h5.tmp"; fi
expect 0 "tokenize over a token file" m tokenize --out other.h5 own=texts/1.txt
says_once "tokenize over a token file" "^replaced the previous token file, fingerprint [0-9a-f]{32}$"
if cmp -s other.h5 tokens.h5; then fail "tokenize did not replace a token file"; else pass; fi
refuses 64 "must end in .h5" tokenize --out other.h5.tmp own=texts
ln -s other.h5 linked.h5
refuses 64 "--out linked.h5 is a symbolic link" tokenize --out=linked.h5 own=texts
if [ -n "$(ls -A | grep '\.tmp-')" ]; then fail "tokenize left a temporary file"; else pass; fi
rm -r texts/old
HOME=$work expect 0 "paths from home, without a shell" m tokenize --out "~/at-home.h5" "own=~/texts"
HOME=$work expect 0 "a configuration's paths from home" m train tiny.yaml --dry-run "run.dir=~/own" "data.train=[{domain: own, path: ~/at-home.h5}]"
says "a configuration's paths from home" "^  dir: .*$work/own"
if [ -f at-home.h5 ] && ! grep -q "^note:" log; then pass; else fail "~ is not the home directory"; fi
HOME=$work refuses 66 "resume $work/nothing: no such file" train tiny.yaml run.dir=other "--resume=~/nothing"
for command in eval inspect verify "generate --prompt x"; do HOME=$work expect 0 "$command, from home" m $command "~/run"; done
HOME=$work refuses 64 "~bob/run: ~USER is not expanded" verify "~bob/run"
HOME=$work refuses 66 "$work/none.yaml: No such file" train "~/none.yaml"
refuses 64 "needs --out" tokenize a=texts
refuses 78 'unknown tokenizer "words"; available: bytes' tokenize --tokenizer words --out x.h5 a=texts
refuses 78 'unknown tokenizer "words"' train tiny.yaml run.dir=x data.tokenizer=words
refuses 78 'unknown tokenizer "words"' train tiny.yaml run.dir=x data.tokenizer=words --dry-run
refuses 66 "tokenizer ./none.json: no such file" train tiny.yaml run.dir=x data.tokenizer=./none.json
refuses 65 "tokenizer tiny.yaml: bad JSON" train tiny.yaml run.dir=x data.tokenizer=tiny.yaml
refuses 64 "at least one DOMAIN=PATH" tokenize --out x.h5
refuses 64 "expected DOMAIN=PATH" tokenize --out x.h5 texts
refuses 64 "appears twice" tokenize --out x.h5 a=texts a=texts
refuses 66 "nowhere" tokenize --out x.h5 a=nowhere
refuses 74 "nowhere/x.h5" tokenize --out nowhere/x.h5 a=texts
if [ -n "${MPIEXEC:-}" ]; then
    expect 64 "tokenize on 2 ranks" on 2 "$MUSTER" tokenize --out x.h5 a=texts
    says_once "tokenize on 2 ranks" "^muster: error: tokenize runs on one rank"
fi

# ---------------------------------------------------------------- a full disk behind standard output
for words in "--help-config" "--help" "inspect run"; do
    "$MUSTER" $words > /dev/full 2> log
    if [ $? = 74 ] && grep -q "standard output could not be written" log; then pass; else fail "muster $words > /dev/full"; fi
done
finish
