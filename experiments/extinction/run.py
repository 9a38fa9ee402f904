#!/usr/bin/env python3
"""The extinction experiment: runs arms x seeds, and writes a table and a page. Everything about it is in README.md.

    experiments/extinction/run.py --size nano --seeds 5 --out FOLDER [--arms ours,mimic] [--jobs 2] [--program PATH] [-- OPTION...]

Two processes at once, one thread each. A row is appended to FOLDER/rows.jsonl as soon as an arm has ended, and what is there is not run again: after
an interruption the same command goes on. At the end: results.csv, table.md, index.html. What follows -- goes to the program (nano.c).
"""
import argparse
import concurrent.futures
import csv
import json
import os
import statistics
import subprocess
import sys
import time

import page

HERE = os.path.dirname(os.path.abspath(__file__))
CHANCE = 1 / 64


def read_rows(path):
    """The complete rows; a last line that a killed run left unfinished is cut off."""
    rows, good = [], 0
    if not os.path.exists(path):
        return rows
    with open(path, "r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            rows.append(json.loads(line))
            good += len(line)
        file.truncate(good)
    return rows


def arms_of(program):
    if not os.path.exists(program):
        sys.exit(f"run.py: there is no program {program}: build the target extinction_nano, or say where it is with --program")
    lines = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


def run_all(program, arms, seeds, jobs, extra, path, rows):
    done = {(r["arm"], r["seed"]) for r in rows}
    todo = [(arm, seed) for seed in range(1, seeds + 1) for arm in arms if (arm, seed) not in done]
    began = time.monotonic()

    def one(arm, seed):
        command = [program, "--arm", arm, "--seed", str(seed), *extra]
        process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {process.stderr.strip()}")
        return process.stdout

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool, open(path, "a", encoding="utf-8") as file:
        futures = [pool.submit(one, *task) for task in todo]
        try:
            for n, future in enumerate(concurrent.futures.as_completed(futures), 1):
                line = future.result()
                row = json.loads(line)
                rows.append(row)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
                print(f"{n}/{len(todo)}  {time.monotonic() - began:.0f} s  {row['arm']} seed {row['seed']}: rare accuracy A {row['A_rare']:.3f}"
                      f" B {row['B_rare']:.3f} C {row['C_rare']:.3f}", flush=True)
        except (RuntimeError, KeyboardInterrupt):
            for future in futures:
                future.cancel()
            raise


# ---------------------------------------------------------------------- numbers
def values(rows, arm, key):
    return [r[key] for r in rows if r["arm"] == arm and key in r]


def mean(rows, arm, key):
    found = values(rows, arm, key)
    return statistics.fmean(found) if found else None


def deviation(rows, arm, key):
    found = values(rows, arm, key)
    return statistics.stdev(found) if len(found) > 1 else 0.0


def savings(row):
    """1 - (steps to half of the rare facts in C) / (the same in A); None where A never got there."""
    if row["first_half"] <= 0:
        return None
    return 1 - row["again_half"] / row["first_half"] if row["again_half"] >= 0 else 0.0


def add_derived(rows):
    for row in rows:
        saved = savings(row)
        if saved is not None:
            row["savings"] = saved


COLUMNS = [("A_rare", "rare acc. A", 3), ("B_rare", "rare acc. B", 3), ("B_R", "R B", 3), ("B_R_worst", "worst R B", 3), ("C_rare", "rare acc. C", 3),
           ("A_common_excess", "common excess A", 4), ("B_common_excess", "common excess B", 4), ("B_max_vio", "MaxVio B", 2), ("B_dead", "dead B", 1),
           ("restored_rare", "restored", 3), ("healed_rare", "healed", 3), ("savings", "savings C", 2), ("cpu_ms_per_step", "CPU ms/step", 2)]


def cell(rows, arm, key, digits):
    if not values(rows, arm, key):
        return ""
    return f"{mean(rows, arm, key):.{digits}f} ± {deviation(rows, arm, key):.{digits}f}"


# ---------------------------------------------------------------------- pass marks, as README.md registers them
def all_there(*found):
    return all(x is not None for x in found)


def mark_e1(rows):
    a, b, vio, dead = (mean(rows, "gate_balancer", k) for k in ("A_rare", "B_rare", "B_max_vio", "B_dead"))
    if not all_there(a, b, vio, dead):
        return None
    return a >= 0.8 and b <= 0.2 and vio <= 0.1 and dead == 0, f"rare accuracy {a:.3f} → {b:.3f}, MaxVio {vio:.3f}, dead {dead:.1f}"


def mark_e2(rows):
    rare, theirs, own = mean(rows, "mimic", "B_rare"), mean(rows, "mimic", "B_common_excess"), mean(rows, "ours", "B_common_excess")
    if not all_there(rare, theirs, own):
        return None
    return rare <= 3 * CHANCE and own - theirs <= 0.005, f"rare accuracy {rare:.3f}; common excess {theirs:.4f}, ours {own:.4f}"


def mark_e3(rows):
    R, worst, own = mean(rows, "ours", "B_R"), mean(rows, "ours", "B_R_worst"), mean(rows, "ours", "B_common_excess")
    free, ms, plain = mean(rows, "loss_free", "B_common_excess"), mean(rows, "ours", "cpu_ms_per_step"), mean(rows, "gate_balancer", "cpu_ms_per_step")
    learned = mean(rows, "ours_learned", "B_R")
    if not all_there(R, worst, own, free, ms, plain):
        return None
    ok = R >= 0.95 and worst >= 0.9 and own <= free + 0.01 and ms <= 1.05 * plain and (learned is None or learned >= 0.9)
    return ok, (f"R {R:.3f}, worst {worst:.3f} (oracle gate); learned gate " + (f"{learned:.3f}" if learned is not None else "not run") +
                f"; common excess {own:.4f}, loss_free {free:.4f}; time of a step {100 * (ms / plain - 1):+.1f} %")


def mark_e4(rows):
    before, restored, healed = (mean(rows, "mimic", k) for k in ("A_rare", "restored_rare", "healed_rare"))
    common, after = mean(rows, "mimic", "B_common"), mean(rows, "mimic", "healed_common")
    if not all_there(before, restored, healed, common, after):
        return None
    ok = restored >= 0.6 * before and healed >= 0.9 * before and common - after <= 0.015
    return ok, f"{before:.3f} before, {restored:.3f} restored, {healed:.3f} healed; common accuracy {100 * (after - common):+.2f} points"


def mark_e5(rows):
    keys = ("B_decoy_carriers", "B_near_carriers", "B_near_overlap", "B_carriers", "A_decoy_carriers", "A_near_carriers")
    found = [mean(rows, "ours", k) for k in keys]
    if not all_there(*found):
        return None
    decoy, near, overlap, carriers, decoy_a, near_a = found
    cap = -(-values(rows, "ours", "experts")[0] // 4)
    ok = decoy + decoy_a == 0 and overlap >= 0.5 and max(values(rows, "ours", "B_carriers")) <= cap
    return ok, (f"carriers of the decoy {decoy_a:.1f} (A), {decoy:.1f} (B), of the near-copy {near_a:.1f}, {near:.1f}, overlap with its parent {overlap:.2f};"
                f" carriers {carriers:.1f}, at most {cap}")


def mark_e6(rows):
    lines, ok = [], True
    for part in ("i1", "i2", "i4", "i5", "i6"):
        arm = f"ours_no_{part}"
        own, without = mean(rows, "ours", "B_R"), mean(rows, arm, "B_R")
        if not all_there(own, without):
            return None
        pooled = ((deviation(rows, "ours", "B_R") ** 2 + deviation(rows, arm, "B_R") ** 2) / 2) ** 0.5
        earns = own - without >= 2 * pooled and own > without
        ok = ok and earns
        lines.append(f"{part.upper()} {own - without:+.3f} ({'earns' if earns else 'does not earn'} its place, pooled sd {pooled:.3f})")
    return ok, "; ".join(lines)


MARKS = [("E1 blindness of load metrics", mark_e1), ("E2 second extinction", mark_e2), ("E3 protection", mark_e3), ("E4 recovery", mark_e4),
         ("E5 restraint", mark_e5), ("E6 ablation", mark_e6)]


def marks(rows):
    """[(name, verdict, figures)]"""
    found = [(name, judge(rows)) for name, judge in MARKS]
    return [(name, "not run" if m is None else "passed" if m[0] else "failed", "" if m is None else m[1]) for name, m in found]


# ---------------------------------------------------------------------- files
def write_csv(rows, path):
    keys = list(dict.fromkeys(k for r in rows for k in r if k != "curve"))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_table(rows, arms, command, path):
    present = [a for a in arms if values(rows, a, "seed")]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"`{command}`\n\nMeans ± standard deviations over n seeds.\n\n")
        file.write("| arm | n | " + " | ".join(title for _, title, _ in COLUMNS) + " |\n|" + " --- |" * (len(COLUMNS) + 2) + "\n")
        for arm in present:
            file.write(f"| {arm} | {len(values(rows, arm, 'seed'))} | " + " | ".join(cell(rows, arm, key, digits) for key, _, digits in COLUMNS) + " |\n")
        file.write("\n| mark | verdict | figures |\n| --- | --- | --- |\n")
        for mark in marks(rows):
            file.write("| " + " | ".join(mark) + " |\n")


def check_same(rows, path):
    """All rows of a folder must come from the same options."""
    options = ("steps_a", "steps_b", "steps_c", "width", "experts", "weight_decay", "lr", "anchor", "replay")
    kinds = {tuple(r[k] for k in options) for r in rows}
    if len(kinds) > 1:
        sys.exit(f"run.py: {path} holds rows of different options ({', '.join(options)}): {sorted(kinds)}; use another --out")


def main():
    own, extra = sys.argv[1:], []
    if "--" in own:
        own, extra = own[:own.index("--")], own[own.index("--") + 1:]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["nano"], default="nano")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", help="comma-separated; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", default="extinction-nano")
    parser.add_argument("--program", default=os.path.join(HERE, "..", "..", "build", "experiments", "extinction", "extinction_nano"))
    a = parser.parse_args(own)
    known = arms_of(a.program)
    chosen = a.arms.split(",") if a.arms else list(known)
    unknown = [arm for arm in chosen if arm not in known]
    if unknown:
        sys.exit(f"run.py: no arm {', '.join(unknown)}; there are {', '.join(known)}")
    os.makedirs(a.out, exist_ok=True)
    path = os.path.join(a.out, "rows.jsonl")
    rows = read_rows(path)
    try:
        run_all(a.program, chosen, a.seeds, a.jobs, extra, path, rows)
    except RuntimeError as error:
        sys.exit(f"run.py: {error}")
    check_same(rows, path)
    add_derived(rows)
    command = "experiments/extinction/run.py " + " ".join(sys.argv[1:])
    write_csv(rows, os.path.join(a.out, "results.csv"))
    write_table(rows, known, command, os.path.join(a.out, "table.md"))
    page.write(rows, known, marks(rows), [(key, title, lambda arm, k=key, d=digits: cell(rows, arm, k, d)) for key, title, digits in COLUMNS],
               command, os.path.join(a.out, "index.html"))
    for name, verdict, figures in marks(rows):
        print(f"{name}: {verdict}  {figures}")


if __name__ == "__main__":
    main()
