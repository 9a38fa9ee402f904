# chosen_experts.sh - experts that are chosen by hand, not by the router alone: moe.force_domains.
. "$(dirname "$0")/train_lib.sh"

domains="data.train=[{domain: a, path: synthetic}, {domain: b, path: synthetic, weight: 2}, {domain: c, path: synthetic}]"
table="moe.force_domains={a: 3, c: 0, b: 3}"

# ---------------------------------------------------------------- moe.force_domains: an oracle router
common="train.eval_every=10 train.reproducible=true train.micro_batch_size=1 train.steps=10"
expect 0 "forced domains" train 1 forced $common "$domains" "$table"
# In each layer tokens of a and b are those of expert 3, and tokens of c those of expert 0: 256 together.
loads=$(sed -n 's/.*"train\/tokens".*"moe\/layer_[0-9]*\/load":\[.*/&/p' forced/metrics.jsonl | grep -o '"moe/layer_[0-9]*/load":\[[0-9,]*' | cut -d[ -f2)
if [ "$(wc -l <<< "$loads")" = 20 ] && awk -F, '$1 + $4 != 256 || $1 == 0 { bad = 1 } END { exit bad }' <<< "$loads"; then pass
else fail "forced domains: loads $loads"; fi
if [ -n "${MPIEXEC:-}" ]; then
    for ep in 1 2; do
        expect 0 "forced domains, ep $ep" train 2 forced-$ep $common "$domains" "$table" parallel.ep=$ep
        same_metrics forced forced-$ep exact
    done
fi
cp -r forced other
expect 78 "another table on resume" train 1 other $common "$domains" train.steps=20 "moe.force_domains={a: 3}"
says "another table on resume" 'moe.force_domains was \{a: 3, c: 0, b: 3\} and is now \{a: 3\}'
expect 0 "the same table on resume" train 1 other $common "$domains" "$table" train.steps=12
expect 0 "evaluation" on 1 "$MUSTER" eval forced train.eval_sequences=64
loss=$(sed -n 's/.*"val\/ce_loss":\([0-9.]*\).*/\1/p' forced/metrics.jsonl | tail -1)
says "evaluation with forced domains, as the run's" "step 10: $(printf %.6f "$loss") nats/token"
expect 0 "texts of a domain outside of the table" on 1 "$MUSTER" eval forced "data.train=[{domain: new, path: synthetic}]"
expect 78 "too few experts" train 1 few moe.num_experts=2 "moe.force_domains={a: 1}"
expect 0 "generation" on 1 "$MUSTER" generate forced --prompt 1 --tokens 3
says_once "generation" "^muster: note: moe.force_domains is ignored: a prompt has no domain"
finish
