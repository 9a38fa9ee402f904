# phases.sh - data.phases: domains that leave the stream and return. Their draws do not depend on ranks and on resuming, on a border or
# beside it; the checks of a checkpoint follow the phases; what may change on resume; what the console says.
. "$(dirname "$0")/train_lib.sh"

sed -i 's/^  train: .*/&\n  phases:\n    - {until_step: 8, mix: {a: 1, b: 1}}\n    - {until_step: 14, mix: {a: 1}}\n    - {until_step: 16, mix: {b: 3, a: 0.5}}/' tiny.yaml
sed -i 's/{domain: b, path: synthetic, weight: 2}/&, {domain: c, path: synthetic}/' tiny.yaml
all="checkpoint.every=1 checkpoint.keep=1000 train.eval_every=10 train.eval_sequences=2"

expect 0 "three phases" train 1 one $all log.progress=line
says "phases at the start" '^phase 1 of 3, steps 1 to 8: a 1, b 1$'
says "phases at the start" '^phase 3 of 3, from step 15 on: a 0\.5, b 3$'
says_once "a domain in no phase" '^note: domain c is in no phase: it is validated, and replayed if it is protected and was drawn before$'
says_once "a border" '^phase 2 of 3 from step 9: b leaves \(weights a 1\)$'
says_once "a border" '^phase 3 of 3 from step 15: b returns \(weights a 0\.5, b 3\)$'
if grep '"val/ce_loss"' one/metrics.jsonl | head -1 | grep -q '"val/b/ce_loss".*"val/c/ce_loss"'; then pass; else fail "validation leaves domains out"; fi

# The samples of each domain in the logged steps, from the last words of the records of statistics.rec: 2 layers, 8 experts, 3 domains.
head=$(od -A n -t d8 -j 16 -N 8 one/statistics.rec | tr -d ' ')
drawn() { od -A n -v -w408 -t d8 -j "$head" one/statistics.rec | awk "\$1 >= $1 && \$1 <= $2 { for (i = 0; i < 48; i++) n[i % 3] += \$(i + 3) } END { printf(\"%d %d %d\", n[0] > 0, n[1] > 0, n[2] > 0) }"; }
if [ "$(drawn 1 8) $(drawn 9 14) $(drawn 15 20)" = "1 1 0 1 0 0 1 1 0" ]; then pass; else fail "domains of the phases: $(drawn 1 8), $(drawn 9 14), $(drawn 15 20)"; fi

# Resumed within a phase, at a border and beside it.
for step in 7 8 9 13 14 15; do
    cp -r one again
    for found in $(steps_in again); do [ "$found" -gt "$step" ] && rm -r "again/checkpoints/$(printf 'step-%08d' "$found")"; done
    expect 0 "resumed from $step" train 1 again $all
    same_metrics one again exact
    same_checkpoint one again 20
    rm -r again
done

if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "one rank in double precision" train 1 wide train.device=ref
    expect 0 "two ranks" train 2 two train.device=ref checkpoint.every=14 checkpoint.keep=9
    same_metrics wide two 1e-9
    cp -r two split && rm -r split/checkpoints/step-00000020
    expect 0 "resumed on one rank at a border" train 1 split train.device=ref
    same_metrics wide split 1e-9
fi

# The check of samples per domain follows the phases.
expect 0 "a checkpoint of phases is whole" on 1 "$MUSTER" verify one/checkpoints/step-00000020
expect 0 "eval needs no phases" on 1 "$MUSTER" eval one "data.train=[{domain: other, path: synthetic}]"

# ---------------------------------------------------------------- what may change on resume
expect 0 "a phase that is to come" train 1 one $all train.steps=24 "data.phases=[{until_step: 8, mix: {a: 1, b: 1}}, {until_step: 14, mix: {a: 1}}, {until_step: 22, mix: {b: 3, a: 0.5}}, {mix: {c: 1}}]"
says "to come" '  data\.phases: \[\{until_step: 8, .* -> \['
expect 78 "a phase that is past" train 1 one $all train.steps=30 "data.phases=[{until_step: 9, mix: {a: 1, b: 1}}, {until_step: 14, mix: {a: 1}}, {mix: {b: 3, a: 0.5}}]"
says_once "past" '  data\.phases was \[.*\] and is now \['
says_once "past" 'they differ from step 9 on, which is finished; phases that begin after step 24 may change'
expect 78 "no phases any more" train 1 one $all train.steps=30 "data.phases=[]"
says_once "no phases any more" 'they differ from step 1 on'
expect 0 "without phases" train 1 plain "data.phases=[]" train.steps=6 stats.every=3 log.progress=line
says "no rare domain" '^  note: no domain is rare '
expect 0 "... and with some from here on" train 1 plain train.steps=9 stats.every=3 log.progress=line "data.phases=[{until_step: 6, mix: {a: 1, b: 2, c: 1}}, {mix: {c: 1}}]"
says "from here on" '  data\.phases: \[\] -> \[\{until_step: 6, '
if grep -q '^  note: no domain is rare' log; then fail "a domain may be rare in a phase"; else pass; fi

# ---------------------------------------------------------------- a dry run and errors
expect 0 "a dry run" on 1 "$MUSTER" train tiny.yaml --dry-run train.steps=12
says "dry run" '^phase 2 of 3, steps 9 to 14: a 1$'
says "dry run" '^phase 3 of 3, from step 15 on: a 0\.5, b 3 \(not reached: train\.steps is 12\)$'
says "dry run" '^    - \{until_step: 14, mix: \{a: 1\}\}$'
sed 's/{a: 1}}/{aa: 1}}/' tiny.yaml > wrong.yaml
expect 78 "an unknown domain" on 1 "$MUSTER" train wrong.yaml
says_once "unknown" "wrong\.yaml:8:30: data\.phases: phase 2 names domain 'aa', which is not in data\.train; did you mean 'a'\?"
finish
