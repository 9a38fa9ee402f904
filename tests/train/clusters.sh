# clusters.sh - muster tokenize --clusters: documents without labels, and a model trained on the clusters.
. "$(dirname "$0")/train_lib.sh"

m() { on 1 "$MUSTER" "$@"; }
refuses() {         # refuses CODE PATTERN ARGUMENTS...: exit code and one error that matches
    local code=$1 pattern=$2
    shift 2
    expect "$code" "muster $*" m "$@"
    says_once "muster $*" "^muster: error: .*$pattern"
}

mkdir numbers docs sources
for i in 1 2 3 4 5 6 7 8; do seq $((i * 1000)) 7 $((i * 1000 + 9000)) > numbers/$i.txt; done
cp "$MUSTER_SOURCE"/data/unicode.c sources/unicode.txt && cp "$MUSTER_SOURCE"/data/loader.c sources/loader.txt
cp "$MUSTER_SOURCE"/docs/files.md docs/files.txt && cp "$MUSTER_SOURCE"/docs/running.md docs/running.txt

# ---------------------------------------------------------------- three kinds of texts, three clusters, with any number of threads
expect 0 "clusters" m tokenize --clusters 3 --out pool.h5 numbers=numbers docs=docs sources=sources --threads 1
for name in numbers docs sources; do says "clusters" "^cluster-0[0-2] +[0-9]+ tokens in [0-9]+ documents, (9[0-9.]+|100.0) % $name"; done
says "clusters" "^clusters and the names given: mutual information [0-9.]+ nats, (0.9|1.0)[0-9]* normalised"
for i in 0 1 2; do says "clusters" "^    - \{domain: cluster-0$i, path: pool.h5\}    # [0-9.]+ %$"; done
says "clusters" "^written to pool.h5, tokenizer bytes, fingerprint [0-9a-f]{32}$"
sed -n '/^data:/,/^$/p' log > train.yaml
expect 0 "clusters, 4 threads" m tokenize --clusters=3 --seed=1 --out again.h5 numbers=numbers docs=docs sources=sources --threads 4
if cmp -s pool.h5 again.h5; then pass; else fail "4 threads give other clusters"; fi

# ---------------------------------------------------------------- the lines that it prints are a configuration
sed '/^data:/,/train:/d' tiny.yaml > own.yaml && cat train.yaml >> own.yaml
expect 0 "training on clusters" m train own.yaml train.steps=5 train.eval_every=5
if grep -q '"val/cluster-02/ce_loss"' run/metrics.jsonl; then pass; else fail "no validation loss of cluster-02"; fi

# ---------------------------------------------------------------- one name: nothing to compare with; a tokenizer with other tokens
expect 0 "a tokenizer" m train-tokenizer --vocab-size 500 --out tokenizer.json docs sources
expect 0 "one path" m tokenize --clusters 2 --tokenizer tokenizer.json --out one.h5 all=docs
says "one path" "^  tokenizer: tokenizer.json$"
if grep -q "mutual information" log; then fail "mutual information with one name"; else pass; fi

# ---------------------------------------------------------------- errors
refuses 64 "clusters 1: expected 2 to 1000" tokenize --clusters 1 --out x.h5 a=docs
refuses 64 "clusters 1001: expected 2 to 1000" tokenize --clusters 1001 --out x.h5 a=docs
refuses 64 "clusters many: expected a whole number" tokenize --clusters many --out x.h5 a=docs
refuses 64 "seed is for --clusters" tokenize --seed 2 --out x.h5 a=docs
refuses 65 "900 clusters of [0-9]+ pieces: the texts are cut into pieces of 4 KiB" tokenize --clusters 900 --out x.h5 a=docs
if [ -e x.h5 ]; then fail "a file is left behind"; else pass; fi
finish
