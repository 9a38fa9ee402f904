#!/usr/bin/env bash
# slow_texts.sh - the experiment on real texts, on made-up ones and for a few steps: every kind of task ends with its row, an interrupted
# experiment goes on with the same numbers, table and page are complete, and what cannot be run is refused.
. "$(dirname "$0")/../train/train_lib.sh"
script=$MUSTER_SOURCE/experiments/texts/texts.py
python=${MUSTER_PYTHON:-python3}
command -v "$python" > /dev/null || skip "no python3"
export PYTHONDONTWRITEBYTECODE=1

cat > make.py <<'END_OF_PYTHON'
import os, random
for n, domain in enumerate("general computing scripture politics licences assembly latin chemistry".split()):
    draw = random.Random(n)
    words = ["".join(draw.choice("abcdefgh"[n % 4:] + "ijklmnop"[n:]) for _ in range(draw.randint(2, 7))) for _ in range(30)]
    os.makedirs(f"texts/{domain}")
    with open(f"texts/{domain}/a.txt", "w") as f:
        f.write(" ".join(draw.choice(words) for _ in range(3000)))
END_OF_PYTHON
"$python" make.py
tasks="all/A,never/A,sigmoid_carriers/A,ordinary/B,protected/B,sigmoid_unprotected/B,never/B,ordinary/C,protected/C,continued/B,continued_protected/B,all/A experts,restore"
small="model.hidden_size=32 model.num_heads=1 moe.moe_ffn_hidden_size=16 train.global_batch_size=4 train.eval_sequences=4 optim.warmup_steps=2 stats.every=10"
experiment() { timeout 400 "$python" "$script" "$MUSTER" --out "$@" > log 2>&1; }

# shellcheck disable=SC2086     # a list of words
if experiment out --seeds 1 --steps 20,10,8 --heal 2 --only "$tasks" $small; then pass; else fail "texts.py: exit code $?"; fi
cp out/rows.jsonl before.jsonl

cat > check.py <<'END_OF_PYTHON'
import json, sys
rows = {r["task"]: r for r in map(json.loads, open("before.jsonl"))}
again = {r["task"]: r for r in map(json.loads, open("out/rows.jsonl"))}
without_time = lambda r: {k: without_time(v) for k, v in r.items() if not k.endswith("seconds")} if isinstance(r, dict) else r
end = lambda task: rows[task]["losses"][-1][1]
page, table = open("out/index.html").read(), open("out/table.md").read()
absent = lambda task: {(e["intervention"], e["domain"]) for e in rows[task]["events"] if e["event"] == "absence"}
both = {(i, d) for i in ("replay", "anchor") for d in ("chemistry", "latin")}
K = rows["all/A experts"]["criticality"]["chemistry"]
checks = {
    "the phases end where they should": [rows[t]["losses"][-1][0] for t in ("all/A", "ordinary/B", "ordinary/C")] == [20, 30, 38],
    "all domains are evaluated": len(end("never/A")) == 8 and all(0 < x < 8 for x in end("never/A").values()),
    "a drought makes a difference": end("ordinary/B") != end("protected/B") != end("all/A"),
    "replay and anchor act in the protected drought": absent("protected/B") == both and not absent("ordinary/B") and not absent("protected/C"),
    "and for every other domain, where scripture goes on alone": len(absent("continued_protected/B")) == 14,
    "every expert is masked": [len(k) for k in K] == [8, 8, 8] and any(x != 0 for k in K for x in k),
    "the load of experts by domain": all(len(l) == 3 and abs(sum(l[0]) - 8) < 0.05 for l in rows["all/A experts"]["load"].values()),
    "each layer's carrier is restored alone": all(len(rows["restore"][d]["alone"]) == 3 and len(rows["restore"][d]["together"]) == 8 for d in ("chemistry", "latin")),
    "what the drought of the others left": rows["restore"]["latin"]["before"] != rows["restore"]["latin"]["A"],
    "a row that was lost is made again with the same numbers": {t: without_time(r) for t, r in again.items()} == {t: without_time(r) for t, r in rows.items()},
    "the page has curves and loads nothing": page.count("<svg") == 4 and "http" not in page and "src=" not in page,
    "the table has the arms": all(f"| {arm} |" in table for arm in ("never", "ordinary", "protected", "sigmoid_unprotected")),
}
for what, ok in checks.items():
    if not ok: print("FAILED:", what)
sys.exit(not all(checks.values()))
END_OF_PYTHON

# An interruption: the last two rows are lost, one of them torn.
head -n -1 before.jsonl | head -c -100 > out/rows.jsonl
# shellcheck disable=SC2086
if experiment out --seeds 1 --steps 20,10,8 --heal 2 --only "$tasks" $small && [ "$(grep -c '^2/2 ' log)" = 1 ]; then pass; else fail "texts.py does not go on after an interruption"; fi
if "$python" check.py > log 2>&1; then pass; else fail "the experiment"; cat log; fi

# shellcheck disable=SC2086
if ! experiment out --seeds 1 --steps 20,10,9 --only all/A $small && grep -q "different options" log; then pass; else fail "rows of two sizes in one folder"; fi
if ! experiment other --only ours/A && grep -q "no task ours/A; there are " log && [ ! -e other ]; then pass; else fail "an unknown task"; fi
if ! experiment other --step 20 && grep -q "unexpected arguments" log && [ ! -e other ]; then pass; else fail "an unknown option"; fi
if ! experiment other --texts . && grep -q "is not a folder called texts" log && [ ! -e other ]; then pass; else fail "no texts"; fi
finish
