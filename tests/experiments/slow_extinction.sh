#!/usr/bin/env bash
# slow_extinction.sh - the extinction experiment at a quarter of its nano length: three arms that are one run until the drought. There
# the balancer or a reviver takes the carrier while every load statistic improves, and anchor and exemption keep what it knows. And
# the command that runs it: goes on where it was interrupted, with the same numbers, and refuses what it cannot run.
. "$(dirname "$0")/../train/train_lib.sh"
run=$MUSTER_SOURCE/experiments/extinction/run.py nano=$MUSTER_BUILD/experiments/extinction/extinction_nano
python=${MUSTER_PYTHON:-python3}
command -v "$python" > /dev/null || skip "no python3"
export PYTHONDONTWRITEBYTECODE=1
arms=gate_balancer,mimic,ours_no_i5
experiment() { timeout 300 "$python" "$run" --program "$nano" --seeds 1 --out "$@" > log 2>&1; }
steps="--steps-a 3000 --steps-b 900 --steps-c 300"

# shellcheck disable=SC2086     # a list of words
if experiment out --arms $arms -- $steps; then pass; else fail "run.py: exit code $?"; fi
cp out/rows.jsonl before.jsonl

cat > check.py <<'END_OF_PYTHON'
import json, sys
rows = {r["arm"]: r for r in map(json.loads, open("before.jsonl"))}
taken, mimic, kept = (rows[a] for a in ("gate_balancer", "mimic", "ours_no_i5"))
again = {r["arm"]: r for r in map(json.loads, open("out/rows.jsonl"))}
without_time = lambda r: {k: v for k, v in r.items() if k != "cpu_ms_per_step"}
page = open("out/index.html").read()
checks = {
    "until the drought the arms are the same run": all(taken[k] == r[k] for k in taken if k.startswith("A_") for r in (mimic, kept)),
    "the carrier learns the rare domains": taken["A_rare"] >= 0.6,
    "the balancer takes the carrier": taken["B_rare"] <= 0.4 * taken["A_rare"],
    "while the load is even and nothing is dead": taken["B_max_vio"] <= 0.1 and taken["B_dead"] == 0 and taken["B_max_vio"] < taken["A_max_vio"],
    "a copy of the busiest expert erases them": mimic["B_rare"] <= 0.15,
    "the restored expert knows them": mimic["restored_rare"] >= 0.6 * mimic["A_rare"],
    "which leaves the common domains as they are": mimic["healed_common"] == mimic["restored_common"],
    "and more after healing": mimic["healed_rare"] >= mimic["restored_rare"],
    "exemption and anchor keep them": kept["B_rare"] >= 0.9 * kept["A_rare"] and kept["B_R"] >= 0.9,
    "at no cost for the common domains": kept["B_common_excess"] <= taken["B_common_excess"] + 0.01,
    "an exempt carrier counts as dead": kept["B_dead"] == 1,
    "noise has no carrier": all(r[p + "decoy_carriers"] == 0 for r in rows.values() for p in ("A_", "B_", "C_")),
    "nobody beats the optimum": all(r[k] >= -1e-6 for r in rows.values() for k in r if k.endswith("_excess")),
    "a row that was lost is made again with the same numbers": {a: without_time(r) for a, r in again.items()} == {a: without_time(r) for a, r in rows.items()},
    "the page has curves and loads nothing": page.count("<svg") >= 2 and "http" not in page and "src=" not in page,
    "the table has the arms": all(f"| {a} |" in open("out/table.md").read() for a in rows),
}
for what, ok in checks.items():
    if not ok: print("FAILED:", what)
for r in rows.values(): print({k: v for k, v in r.items() if k != "curve"})
sys.exit(not all(checks.values()))
END_OF_PYTHON

# An interruption: the last row is torn. It alone is run again.
head -c -700 before.jsonl > out/rows.jsonl
# shellcheck disable=SC2086
if experiment out --arms $arms -- $steps && [ "$(grep -c '^1/1 ' log)" = 1 ]; then pass; else fail "run.py does not go on after an interruption"; fi
if "$python" check.py > log 2>&1; then pass; else fail "the experiment"; cat log; fi

# shellcheck disable=SC2086
if ! experiment out --arms loss_free -- --steps-a 20 --steps-b 10 --steps-c 0 && grep -q "rows of different options" log; then pass; else fail "rows of two sizes in one folder"; fi
if ! experiment other --arms ours,best && grep -q "no arm best; there are " log && [ ! -e other ]; then pass; else fail "an unknown arm"; fi
for wrong in "--arm best" "--seed 1" "--arm ours --steps-a ten" "--arm ours --width 1000" "--arm ours --replay"; do
    # shellcheck disable=SC2086
    timeout 60 "$nano" $wrong > log 2>&1
    if [ $? = 64 ] && grep -q "^usage: " log; then pass; else fail "nano $wrong"; fi
done
finish
