# ranks_differ.sh - ranks started with different options, texts or run folders fail before the first step,
# with one message that names the rank, its host and the difference; so does an unwritable run folder.
. "$(dirname "$0")/train_lib.sh"

# Before the first step: an unwritable run folder costs none.
mkdir run && ln -s /nonexistent/scratch run/checkpoints
expect 74 "a dangling link as checkpoints" train 1 run
says "a dangling link" "error: run/checkpoints: cannot be"
if [ -e run/metrics.jsonl ]; then fail "a dangling link: steps were made"; else pass; fi
mkdir file && touch file/checkpoints
expect 74 "a file as checkpoints" train 1 file

# User files with names that muster uses are kept; those of another run are replaced.
for name in run.json config.resolved.yaml lock; do
    mkdir user
    echo "mine: true" > user/$name
    expect 78 "a user's $name" train 1 user
    says_once "a user's $name" "^muster: error: user/$name was not written by muster"
    if [ "$(cat user/$name)" = "mine: true" ] && [ ! -e user/checkpoints ]; then pass; else fail "a user's $name was replaced"; fi
    rm user/$name && ln -s elsewhere user/$name
    expect 78 "a link $name" train 1 user
    says_once "a link $name" "^muster: error: user/$name is a symbolic link"
    rm user/$name && mkfifo user/$name
    expect 78 "a pipe $name" train 1 user
    says_once "a pipe $name" "^muster: error: user/$name is a pipe"
    rm -r user
done
expect 0 "a new run with --resume never" train 1 other train.steps=5 --resume never
rm -rf other/checkpoints/step-* other/metrics.jsonl
expect 0 "a run folder without steps is new" train 1 other train.steps=5 --resume never
needs_ranks

host=$(uname -n)
# apart CODE WHAT COMMAND FIRST SECOND: two ranks, each in a folder of its own; COMMAND is followed by FIRST on rank 0 and by
# SECOND on rank 1 (words).
cat > apart <<'END'
#!/bin/bash
rank=${OMPI_COMM_WORLD_RANK:-$PMIX_RANK}
cd "n$rank" || exit 1
extra=$((rank + 2))
read -r -a words <<< "${!extra}"
exec "$MUSTER" $1 "${words[@]}"
END
chmod +x apart
export MUSTER
apart() {
    local code=$1 what=$2
    shift 2
    rm -rf shared
    expect "$code" "$what" on 2 ./apart "$@"
}
mkdir -p n0/texts n1/texts
seq 1 4000 > n0/texts/a.txt
seq 1 4000 | tr 0-9 a-j > n1/texts/a.txt
for n in n0 n1; do sed 's/train: \[.*/train: [{domain: x, path: texts}]/' tiny.yaml > $n/tiny.yaml; done
differs() {         # differs WHAT PATTERN
    says_once "$1" "^muster: error: rank 1 on $host: "
    says "$1" "$2"
    if [ -e shared/metrics.jsonl ]; then fail "$1: steps were made"; else pass; fi
}
train="train tiny.yaml run.dir=$work/shared"

apart 65 "other texts" "$train" "" ""
differs "other texts" "^  domain x: [0-9]+ tokens in 1 documents, fingerprint [0-9a-f]{32}, on rank 0: [0-9]+ tokens"
cp n0/texts/a.txt n1/texts/a.txt
apart 78 "another run folder" "train tiny.yaml" "run.dir=$work/shared" "run.dir=elsewhere"
differs "another run folder" "^  run.dir: elsewhere, on rank 0: $work/shared"
apart 0 "the same" "$train" "" ""
for pair in "optim.lr=3e-3|optim.lr=3e-1|optim.lr: 0.3, on rank 0: 0.003" "run.seed=1|run.seed=2|run.seed: 2, on rank 0: 1" \
    "moe.top_k=2|moe.top_k=3|moe.top_k: 3, on rank 0: 2" "train.steps=6|train.steps=5|train.steps: 5, on rank 0: 6" \
    "|--dry-run|--dry-run: yes, on rank 0: no" "|--resume=never|--resume: never, on rank 0: auto"; do
    IFS='|' read -r first second said <<< "$pair"
    apart 78 "'$first' and '$second'" "$train" "$first" "$second"
    differs "'$first' and '$second'" "^  ${said/--/[-]-}"
done
mv n1/tiny.yaml n1/other.yaml
apart 66 "a configuration that only one rank has" "$train" "" ""
says_once "a configuration that only one rank has" "^muster: error: rank 1 on $host: .*tiny.yaml: No such file"
mv n1/other.yaml n1/tiny.yaml
mv n0/tiny.yaml n0/other.yaml
apart 66 "a configuration that rank 0 alone has not" "$train" "" ""
says_once "a configuration that rank 0 alone has not" "^muster: error: rank 0 on $host: .*tiny.yaml: No such file"
mv n0/other.yaml n0/tiny.yaml
mv n0/texts n0/none
apart 66 "texts that rank 0 alone has not" "$train" "" ""
says_once "texts that rank 0 alone has not" "^muster: error: rank 0 on $host: "
mv n0/none n0/texts

# The same path, but a different folder on each host.
apart 78 "a run folder that is not shared" "train tiny.yaml run.dir=mine" "" ""
says_once "a run folder that is not shared" "^muster: error: rank 1 on $host: run.dir mine \(not found\) is not the folder that rank 0 uses"
if [ -e n0/mine/metrics.jsonl ]; then fail "a run folder that is not shared: steps were made"; else pass; fi
mkdir -p n1/mine/checkpoints
apart 78 "two run folders of one name" "train tiny.yaml run.dir=mine" "" ""
says_once "two run folders of one name" "^muster: error: rank 1 on $host: run.dir mine \($work/n1/mine\) is not the folder"

# eval: arguments and texts.
expect 0 "a run to look at" train 1 looked "data.train=[{domain: x, path: $work/n0/texts}]"
apart 64 "eval with other arguments" eval "$work/looked" "$work/looked/"
says_once "eval with other arguments" "^  argument 2: $work/looked/, on rank 0: $work/looked$"
finish
