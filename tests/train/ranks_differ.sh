# ranks_differ.sh - ranks that were started with other options, other texts or another run folder end before the first step,
# with one message that names the rank, its host and what differs; so does a run folder that cannot be written.
. "$(dirname "$0")/train_lib.sh"

# Before the first step: an unwritable run folder costs none.
mkdir run && ln -s /nonexistent/scratch run/checkpoints
expect 74 "a dangling link as checkpoints" train 1 run
says "a dangling link" "error: run/checkpoints: cannot be"
if [ -e run/metrics.jsonl ]; then fail "a dangling link: steps were made"; else pass; fi
mkdir file && touch file/checkpoints
expect 74 "a file as checkpoints" train 1 file
expect 0 "a new run with --resume never" train 1 other train.steps=5 --resume never
rm -rf other/checkpoints/step-* other/metrics.jsonl
expect 0 "a run folder without steps is new" train 1 other train.steps=5 --resume never
needs_ranks

host=$(uname -n)
# two OPTIONS OPTIONS: rank 0 and rank 1, each in a folder of its own, on one run folder
two() {
    rm -rf shared
    timeout -k 5 60 "$MPIEXEC" --oversubscribe -n 1 --wdir "$work/n0" "$MUSTER" train ../tiny.yaml run.dir="$work/shared" $1 \
        : -n 1 --wdir "$work/n1" "$MUSTER" train ../tiny.yaml run.dir="$work/shared" $2 > log 2>&1
}
mkdir -p n0/texts n1/texts
seq 1 4000 > n0/texts/a.txt
seq 1 4000 | tr 0-9 a-j > n1/texts/a.txt
texts='data.train=[{domain: x, path: texts}]'
two_texts() {
    timeout -k 5 60 "$MPIEXEC" --oversubscribe -n 1 --wdir "$work/n0" "$MUSTER" train ../tiny.yaml run.dir="$work/shared" "$texts" \
        : -n 1 --wdir "$work/n1" "$MUSTER" train ../tiny.yaml run.dir="$1" "$texts" > log 2>&1
}
differs() {         # differs CODE WHAT PATTERN
    says_once "$2" "^muster: error: rank 1 on $host: "
    says "$2" "$3"
    if [ -e shared/metrics.jsonl ]; then fail "$2: steps were made"; else pass; fi
}

expect 65 "other texts" two_texts "$work/shared"
differs 65 "other texts" "^  domain x: [0-9]+ tokens in 1 documents, fingerprint [0-9a-f]{32}, on rank 0: [0-9]+ tokens"
cp n0/texts/a.txt n1/texts/a.txt
expect 78 "another run folder" two_texts elsewhere
differs 78 "another run folder" "^  run.dir: elsewhere, on rank 0: $work/shared"
expect 0 "the same" two_texts "$work/shared"
rm -rf shared
cp tiny.yaml n0 && sed 's/lr: 3e-3/lr: 3e-2/' tiny.yaml > n1/tiny.yaml
for pair in "optim.lr=3e-3 optim.lr=3e-1 optim.lr: 0.3, on rank 0: 0.003" "run.seed=1 run.seed=2 run.seed: 2, on rank 0: 1" \
    "moe.top_k=2 moe.top_k=3 moe.top_k: 3, on rank 0: 2" "train.steps=6 train.steps=5 train.steps: 5, on rank 0: 6" \
    "train.steps=20 --dry-run --dry-run: yes, on rank 0: no" "train.steps=20 --resume=never --resume: never, on rank 0: auto"; do
    set -- $pair
    expect 78 "$1 and $2" two "$1" "$2"
    differs 78 "$1 and $2" "^  $(echo "$pair" | cut -d' ' -f3- | sed 's/-/[-]/')"
done

# The same name, but a folder of each host's own.
ranks_apart() {
    timeout -k 5 60 "$MPIEXEC" --oversubscribe -n 1 --wdir "$work/n0" "$MUSTER" train ../tiny.yaml run.dir=mine \
        : -n 1 --wdir "$work/n1" "$MUSTER" train ../tiny.yaml run.dir=mine > log 2>&1
}
expect 78 "a run folder that is not shared" ranks_apart
says_once "a run folder that is not shared" "^muster: error: rank 1 on $host: run.dir mine \(it is not there\) is not the folder that rank 0 uses"
if [ -e n0/mine/metrics.jsonl ]; then fail "a run folder that is not shared: steps were made"; else pass; fi
mkdir -p n1/mine/checkpoints
expect 78 "two run folders of one name" ranks_apart
says_once "two run folders of one name" "^muster: error: rank 1 on $host: run.dir mine \($work/n1/mine\) is not the folder"

# eval: arguments and texts.
expect 0 "a run to look at" train 1 looked "$(echo "$texts" | sed "s#texts}#$work/n0/texts}#")"
eval_apart() {
    timeout -k 5 60 "$MPIEXEC" --oversubscribe -n 1 "$MUSTER" eval looked : -n 1 "$MUSTER" eval looked/ > log 2>&1
}
expect 64 "eval with other arguments" eval_apart
says_once "eval with other arguments" "^  argument 2: looked/, on rank 0: looked"
finish
