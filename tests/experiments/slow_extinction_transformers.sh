#!/usr/bin/env bash
# slow_extinction_transformers.sh - the extinction experiment with transformers, far too short to learn anything: phases, forks, surgery and recovery
# work, arms share a phase A, a lost row is made again from the runs that are there, and the texts are what they should be.
. "$(dirname "$0")/../train/train_lib.sh"
folder=$MUSTER_SOURCE/experiments/extinction python=${MUSTER_PYTHON:-python3}
command -v "$python" > /dev/null || skip "no python3"
export PYTHONDONTWRITEBYTECODE=1
experiment() {
    timeout 300 "$python" "$folder/run.py" --size small --muster "$MUSTER" --seeds 1 --steps 20,10,4 --out out --arms "$1" -- model.hidden_size=16 > log 2>&1
}

if experiment ours,mimic; then pass; else fail "run.py: exit code $?"; cat log; fi
cp out/rows.jsonl before.jsonl
head -c -700 before.jsonl > out/rows.jsonl
if experiment ours,mimic && [ "$(grep -c '^1/1 ' log)" = 1 ]; then pass; else fail "run.py does not go on after an interruption"; cat log; fi

cat > check.py <<'END_OF_PYTHON'
import json, pathlib, random, sys
sys.path.insert(0, sys.argv[1])
import texts
read = lambda path: {r["arm"]: r for r in map(json.loads, open(path))}
before, again = read("before.jsonl"), read("out/rows.jsonl")
ours, mimic = before["ours"], before["mimic"]
without_time = lambda r: {k: v for k, v in r.items() if k != "cpu_ms_per_step"}
seed = pathlib.Path("out/runs/seed-1")
edits = json.loads(open(next(seed.glob("mimic-B-copied/checkpoints/*/manifest.json"))).readline())["edits"]
events = [json.loads(line) for line in open(seed / "ours-B" / "events.jsonl")]
documents = [json.loads(line)["text"] for line in open("out/corpus/seed-1/rare-2.jsonl")]
parent = texts.facts(random.Random(1))
checks = {
    "until the drought the arms are the same run": all(ours[k] == mimic[k] for k in ours if k.startswith("A_")),
    "there is one run of A": [p.name for p in seed.glob("A-*")] == ["A-carriers"],
    "the drought is protected": {e["intervention"] for e in events if e["event"] == "absence"} == {"replay", "anchor"},
    "the curve goes through all phases": ours["curve"][0][0] <= 2 and ours["curve"][-1][0] == 34,
    "every carrier of every layer was overwritten": [(e["layer"], e["expert"]) for e in edits] == [(layer, e) for layer in (0, 1) for e in (13, 14, 15)],
    "restored": all(k in mimic for k in ("restored_rare", "restored_only_layer_0", "restored_only_layer_1", "healed_rare", "healed_units")),
    "a lost row is made again": {a: without_time(r) for a, r in again.items()} == {a: without_time(r) for a, r in before.items()},
    "a document is a sequence": {len(d) for d in documents} == {texts.DOCUMENT - 1} and {d[0] for d in documents} == {texts.TAGS[14]},
    "the near-copy differs in eight facts": sum(a != b for a, b in zip(parent, texts.near_copy(random.Random(2), parent))) == texts.CHANGED,
    "page and table": "<svg" in open("out/index.html").read() and "| mimic | 1 |" in open("out/table.md").read(),
}
for what, ok in checks.items():
    if not ok: print("FAILED:", what)
sys.exit(not all(checks.values()))
END_OF_PYTHON
if "$python" check.py "$folder" > log 2>&1; then pass; else fail "the experiment"; cat log; fi
finish
