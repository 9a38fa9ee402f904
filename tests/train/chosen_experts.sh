# chosen_experts.sh - experts that are chosen by hand, not by the router alone: moe.force_domains, --mask and --force, records of
# routing and their replay.
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

# ---------------------------------------------------------------- --mask and --force of eval and generate
loss() { on "$ranks" "$MUSTER" eval "$@" && sed -n 's/^.*step [0-9]*: \([0-9.]*\) nats.*/\1/p' log; }
refuses() {         # refuses PATTERN ARGUMENTS...: a usage error, before anything is computed
    local pattern=$1
    shift
    expect 64 "$*" on 1 "$MUSTER" "$@"
    says_once "$*" "^muster: error: $pattern"
}
expect 0 "a dense run" train 1 dense moe.num_experts=0 train.steps=2 optim.warmup_steps=0
expect 0 "a free run" train 1 free model.num_layers=3 moe.first_k_dense=1 train.steps=60
ranks=1
plain=$(loss free)
for option in "--mask 1:0" "--mask 2:7 --force=1:3" "--force 1:0,2:1"; do
    ranks=1
    changed=$(loss free $option)
    if [ -n "$changed" ] && [ "$changed" != "$plain" ]; then pass; else fail "$option: loss $changed, without it $plain"; fi
    if [ -n "${MPIEXEC:-}" ]; then
        ranks=2
        if [ "$(loss free $option)" = "$changed" ]; then pass; else fail "$option: another loss on 2 ranks"; fi
    fi
done
ranks=1
other="data.train=[{domain: new, path: synthetic}]"     # whose tokens never have the experts of the table, 0 and 3
if [ "$(loss forced "$other" --mask 0:0,0:3,1:0,1:3)" = "$(loss forced "$other")" ]; then pass; else fail "masking experts that are never chosen changes the loss"; fi
refuses "--mask: layer 3: the model has layers 0 to 2" eval free --mask 3:0
refuses "--mask: layer 0 is dense; layers with experts: 1, 2" eval free --mask 0:0
refuses "--force: expert 8 of layer 1: experts are 0 to 7" eval free --force 1:8
refuses "expert 2 of layer 1 is in both --mask and --force" eval free --mask 1:2 --force 1:2
refuses "--force: layer 2 has 3 required experts, more than top_k 2" eval free --force 2:0,2:1,2:2
refuses "--mask: layer 1 has 1 of 8 experts left, fewer than top_k 2" eval free --mask 1:0,1:1,1:2,1:3,1:4,1:5,1:6
refuses "--force: expert 0 of layer 1 is kept from domain a by moe.force_domains" eval forced --force 1:0
for wrong in 1 1: :1 1:2, 1:2:3 -1:2 x; do refuses "--mask.* $wrong: expected LAYER:EXPERT" eval free --mask=$wrong; done
refuses "--mask needs LAYER:EXPERT" eval free --mask
refuses "--replay-routing needs FILE.h5" eval free --replay-routing=
refuses "--mask: layer 3" generate free --prompt 1 --mask 3:0

# ---------------------------------------------------------------- records of an evaluation
ranks=1
loss forced --record-routing one.h5 --mask 1:6 > one
for n in 1 ${MPIEXEC:+2 3}; do
    ranks=$n
    loss forced --record-routing record-$n.h5 --replay-routing one.h5 --mask 1:6 > replayed
    if cmp -s one replayed && cmp -s one.h5 record-$n.h5; then pass; else fail "a replay on $n ranks: $(cat one replayed)"; fi
done
says_once "a replay" "^routing: replayed from one.h5\$"
says_once "a replay" "^routing: recorded to record-[0-9].h5\$"
expect 64 "a record that exists" on 1 "$MUSTER" eval forced --record-routing one.h5
says_once "a record that exists" "^muster: error: --record-routing one.h5: the file exists"
does_not_fit() {    # does_not_fit CODE PATTERN ARGUMENTS...
    expect "$1" "replay $3" on 1 "$MUSTER" eval "${@:3}"
    says_once "replay $3" "^muster: error: .*$2"
    if grep -q nats log; then fail "replay $3: something was computed"; else pass; fi
}
does_not_fit 65 'recorded with "--mask: 1:6", this is without --mask' forced --replay-routing one.h5
does_not_fit 65 'recorded with "validation sequences of a: 124", this is with "validation sequences of a: 5"' forced --mask 1:6 --replay-routing one.h5 train.eval_sequences=5
does_not_fit 65 'recorded with "layers: 0 1", this is with "layers: 1 2"' free --replay-routing one.h5
does_not_fit 65 'recorded with "texts: ' forced --mask 1:6 --replay-routing one.h5 "$other"
does_not_fit 65 "tiny.yaml: cannot be read" forced --replay-routing tiny.yaml
does_not_fit 66 "none.h5: no such file" forced --replay-routing none.h5
expect 64 "a record of a dense model" on 1 "$MUSTER" eval dense --record-routing dense.h5
says "a record of a dense model" "a dense model has no routing"
# The routing of one checkpoint in the model of another: another loss than with its own.
ranks=1
expect 0 "a later checkpoint" train 1 free model.num_layers=3 moe.first_k_dense=1 train.steps=90
loss free/checkpoints/step-00000060 --record-routing sixty.h5 > /dev/null
own=$(loss free)
changed=$(loss free --replay-routing sixty.h5)
if [ -n "$changed" ] && [ "$changed" != "$own" ]; then pass; else fail "the routing of another checkpoint: loss $changed, its own $own"; fi

# ---------------------------------------------------------------- records of training steps
# With all that could change a choice: jitter, a selection bias, experts that come first, a counting pass.
steps="train.reproducible=true moe.router_jitter=0.1 moe.balance=[global_aux_loss,expert_bias] checkpoint.every=10 train.micro_batch_size=2"
recorded() {        # recorded RANKS DIR OPTION...
    local n=$1 dir=$2
    shift 2
    train "$n" "$dir" $steps "moe.force_domains={a: 3}" "$@"
}
expect 0 "recording" recorded 1 steps --record-routing steps.h5
expect 0 "replaying" recorded 1 again --replay-routing steps.h5 --record-routing again.h5 log.progress=line
says_once "replaying" "^routing: replayed from steps.h5\$"
says_once "replaying" "^routing: recorded to again.h5\$"
same_metrics steps again exact
same_checkpoint steps again 20
if cmp -s steps.h5 again.h5; then pass; else fail "the record of a replay is another"; fi
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "replaying on 2 ranks" recorded 2 ranks parallel.ep=2 train.micro_batch_size=1 --replay-routing=steps.h5 --record-routing=ranks.h5
    same_metrics steps ranks exact
    if cmp -s steps.h5 ranks.h5; then pass; else fail "the record on 2 ranks is another"; fi
fi
# A record is continued where a run resumes; steps that are computed again are written anew.
cp steps.h5 resumed.h5
expect 0 "resuming" recorded 1 resumed --resume steps/checkpoints/step-00000010 --record-routing resumed.h5
if cmp -s steps.h5 resumed.h5; then pass; else fail "the record of a resumed run is another"; fi
# With other weights the routing is still the recorded one, and the losses are others than with a free choice.
expect 0 "another rate" recorded 1 fast optim.lr=1e-2
expect 0 "another rate, replayed" recorded 1 fast-replayed optim.lr=1e-2 --replay-routing steps.h5
loads() { grep -o '"moe/layer_[01]/load":[^]]*' "$1/metrics.jsonl"; }
if [ "$(loads fast-replayed)" = "$(loads steps)" ] && [ "$(loads fast)" != "$(loads steps)" ]; then pass; else fail "loads of a replay with another rate"; fi
not_replayed() {    # not_replayed CODE PATTERN OPTION...
    expect "$1" "replay ${*:3}" recorded 1 none "${@:3}"
    says_once "replay ${*:3}" "^muster: error: .*$2"
    if [ -e none/metrics.jsonl ]; then fail "replay ${*:3}: something was trained"; else pass; fi
}
not_replayed 65 "replay-routing steps.h5 does not fit: it has the steps 1 to 20, this run needs 1 to 21" train.steps=21 --replay-routing steps.h5
not_replayed 65 'recorded with "train.global_batch_size: 8", this is with "train.global_batch_size: 4"' train.global_batch_size=4 --replay-routing steps.h5
not_replayed 65 'recorded with "moe.top_k: 2", this is with "moe.top_k: 3"' moe.top_k=3 --replay-routing steps.h5
not_replayed 65 'one.h5 does not fit: it was recorded with "record of: evaluation", this is with "record of: training"' --replay-routing one.h5
not_replayed 64 "record-routing steps.h5: the file exists" --record-routing steps.h5
not_replayed 66 "replay-routing none.h5: no such file" --replay-routing none.h5
expect 64 "a record of a dry run" recorded 1 none --dry-run --record-routing none.h5

# ---------------------------------------------------------------- generation
# Layer 1 never has expert 2 and always 5, with and without the cache.
choice="--mask 1:2 --force 1:5"
text() { on 1 "$MUSTER" generate free --prompt "1 2 3 " --tokens 40 --temperature 0 --show-experts "$@" && cp log "$name"; }
name=plain text
name=cached text $choice
name=recomputed text $choice --no-cache
if cmp -s cached recomputed && ! cmp -s cached plain; then pass; else fail "generate $choice: without the cache another text, or no change"; fi
layer_1() { sed '1,/^  token/d' "$1" | rev | cut -d'|' -f2 | rev; }
if [ "$(layer_1 cached | wc -l)" -gt 40 ] && ! layer_1 cached | grep -qw 2 && ! layer_1 cached | grep -qvw 5; then pass; else fail "generate $choice: experts $(layer_1 cached)"; fi
finish
