#!/usr/bin/env python3
"""The extinction experiment: runs arms x seeds, and writes a table and a page. Everything about it is in README.md.

    experiments/extinction/run.py --size nano --seeds 5 --out FOLDER [--arms ours,mimic] [--jobs 2] [--program PATH] [-- OPTION...]
    experiments/extinction/run.py --size small|proof --seeds 3 --out FOLDER --muster build/muster [--rare-share 0.002] [--steps A,B,C] [-- OPTION...]

Two processes at once, one thread each. A row is appended to FOLDER/rows.jsonl as soon as an arm has ended, and what is there is not run again: after
an interruption the same command resumes. At the end: results.csv, table.md, index.html. What follows -- goes to the program (nano.c), or to each
`muster train` (transformers.py).
"""
import argparse
import concurrent.futures
import csv
import functools
import json
import os
import statistics
import subprocess
import sys
import time

import page
import transformers

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


def nano(program, extra, arm, seed):
    command = [program, "--arm", arm, "--seed", str(seed), *extra]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}: {process.stderr.strip()}")
    return process.stdout


def run_all(one, arms, seeds, jobs, path, rows):
    """one(arm, seed) gives a row as a line."""
    done = {(r["arm"], r["seed"]) for r in rows}
    todo = [(arm, seed) for seed in range(1, seeds + 1) for arm in arms if (arm, seed) not in done]
    began = time.monotonic()

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
                print(f"{n}/{len(todo)}  {time.monotonic() - began:.0f} s  {row['arm']} seed {row['seed']}: rare facts known A {row['A_rare']:.3f}"
                      f" B {row['B_rare']:.3f}" + (f" C {row['C_rare']:.3f}" if "C_rare" in row else ""), flush=True)
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


COLUMNS = [("A_rare", "rare known A", 3), ("B_rare", "rare known B", 3), ("B_R", "R B", 3), ("B_R_worst", "worst R B", 3), ("C_rare", "rare known C", 3),
           ("A_common_excess", "common excess A", 4), ("B_common_excess", "common excess B", 4), ("B_max_vio", "MaxVio B", 2), ("B_dead", "dead B", 1),
           ("restored_rare", "restored", 3), ("healed_rare", "healed", 3), ("savings", "savings C", 2), ("cpu_ms_per_step", "CPU ms/step", 2)]
# What a layer's named carriers are needed for: criticality at the end of A, of the carrier and of the layer's most critical other expert; what restoring them alone brings.
LAYERS = {size: [column for layer in range(shape[0]) for column in (
    (f"A_K_carrier_{layer}", f"K layer {layer}", 2), (f"A_K_other_{layer}", f"others {layer}", 2), (f"restored_only_layer_{layer}", f"restored {layer}", 3))]
    for size, shape in transformers.SIZES.items()}


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
    return a >= 0.8 and b <= 0.2 and vio <= 0.1 and dead == 0, f"rare facts known {a:.3f} → {b:.3f}, MaxVio {vio:.3f}, dead {dead:.1f}"


def mark_e2(rows):
    rare, theirs, own = mean(rows, "mimic", "B_rare"), mean(rows, "mimic", "B_common_excess"), mean(rows, "ours", "B_common_excess")
    if not all_there(rare, theirs, own):
        return None
    return rare <= 3 * CHANCE and own - theirs <= 0.005, f"rare facts known {rare:.3f}; common excess {theirs:.4f}, ours {own:.4f}"


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


def mark_e6(rows, parts):
    lines, ok = [], True
    for part in parts:
        arm = f"ours_no_{part}"
        own, without = mean(rows, "ours", "B_R"), mean(rows, arm, "B_R")
        if not all_there(own, without):
            return None
        pooled = ((deviation(rows, "ours", "B_R") ** 2 + deviation(rows, arm, "B_R") ** 2) / 2) ** 0.5
        earns = own - without >= 2 * pooled and own > without
        ok = ok and earns
        lines.append(f"{part.upper()} {own - without:+.3f} ({'earns' if earns else 'does not earn'} its place, pooled sd {pooled:.3f})")
    return ok, "; ".join(lines)


# Of the transformers: their gate is learned, and what is known follows from the loss.
def learned_e3(rows):
    R, worst, own, free = (mean(rows, arm, k) for arm, k in (("ours", "B_R"), ("ours", "B_R_worst"), ("ours", "B_common_excess"), ("loss_free", "B_common_excess")))
    ms, plain = mean(rows, "ours", "cpu_ms_per_step"), mean(rows, "gate_balancer", "cpu_ms_per_step")
    if not all_there(R, worst, own, free, ms, plain):
        return None
    return R >= 0.9 and own <= free + 0.01 and ms <= 1.05 * plain, (
        f"R {R:.3f}, worst {worst:.3f}; common excess {own:.4f}, loss_free {free:.4f}; time of a step {100 * (ms / plain - 1):+.1f} %")


def learned_e4(rows):
    before, restored, healed, common, after, units = (mean(rows, "mimic", k) for k in (
        "A_rare", "restored_rare", "healed_rare", "B_common_excess", "healed_common_excess", "healed_units"))
    if not all_there(before, restored, healed, common, after):
        return None
    ok = restored >= 0.6 * before and healed >= 0.9 * before and after - common <= 0.05
    return ok, f"{before:.3f} before, {restored:.3f} restored, {healed:.3f} healed ({units:.1f} units accepted); common loss {after - common:+.4f} nats"


def learned_e5(rows):
    found = [mean(rows, "ours", k) for k in ("A_decoy_carriers", "B_decoy_carriers", "A_near_carriers", "B_near_carriers", "A_near_overlap")]
    if not all_there(*found):
        return None
    decoy_a, decoy, near_a, near, overlap = found
    most = max(values(rows, "ours", "A_carriers_most") + values(rows, "ours", "B_carriers_most"))
    return decoy_a + decoy == 0 and overlap >= 0.5 and most <= transformers.CAP, (
        f"carriers of the decoy {decoy_a:.1f} (A), {decoy:.1f} (B), of the near-copy {near_a:.1f}, {near:.1f}, overlap with its parent {overlap:.2f};"
        f" carriers in a layer {most}, at most {transformers.CAP}")


TITLES = ["E1 blindness of load metrics", "E2 second extinction", "E3 protection", "E4 recovery", "E5 restraint", "E6 ablation"]
MARKS = {"nano": [mark_e1, mark_e2, mark_e3, mark_e4, mark_e5, functools.partial(mark_e6, parts=("i1", "i2", "i4", "i5", "i6"))],
         "transformers": [mark_e1, mark_e2, learned_e3, learned_e4, learned_e5, functools.partial(mark_e6, parts=("i1", "i4", "i5", "i6"))]}


def marks(rows):
    """[(name, verdict, figures)]"""
    found = [(name, judge(rows)) for name, judge in zip(TITLES, MARKS["transformers" if rows and "rare_share" in rows[0] else "nano"])]
    return [(name, "not run" if m is None else "passed" if m[0] else "failed", "" if m is None else m[1]) for name, m in found]


# ---------------------------------------------------------------------- files
def write_csv(rows, path):
    keys = list(dict.fromkeys(k for r in rows for k in r if k != "curve"))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_table(rows, arms, columns, command, path):
    present = [a for a in arms if values(rows, a, "seed")]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"`{command}`\n\nMeans ± standard deviations over n seeds.\n\n")
        file.write("| arm | n | " + " | ".join(title for _, title, _ in columns) + " |\n|" + " --- |" * (len(columns) + 2) + "\n")
        for arm in present:
            file.write(f"| {arm} | {len(values(rows, arm, 'seed'))} | " + " | ".join(cell(rows, arm, key, digits) for key, _, digits in columns) + " |\n")
        file.write("\n| mark | verdict | figures |\n| --- | --- | --- |\n")
        for mark in marks(rows):
            file.write("| " + " | ".join(mark) + " |\n")


def check_same(rows, path):
    """All rows of a folder must come from the same options."""
    options = ("steps_a", "steps_b", "steps_c", "width", "experts", "weight_decay", "lr", "anchor", "replay", "rare_share", "options")
    kinds = {tuple(r.get(k) for k in options) for r in rows}
    if len(kinds) > 1:
        sys.exit(f"run.py: {path} holds rows of different options ({', '.join(options)}): {sorted(kinds)}; use another --out")


def main():
    own, extra = sys.argv[1:], []
    if "--" in own:
        own, extra = own[:own.index("--")], own[own.index("--") + 1:]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["nano", *transformers.SIZES], default="nano")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", help="comma-separated; default: all")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--muster", default=os.path.join(HERE, "..", "..", "build", "muster"))
    parser.add_argument("--rare-share", type=float, default=0.001, help="of each rare domain in A and C (small, proof)")
    parser.add_argument("--steps", type=lambda text: [int(n) for n in text.split(",")], help="A,B,C (small, proof)")
    parser.add_argument("--program", default=os.path.join(HERE, "..", "..", "build", "experiments", "extinction", "extinction_nano"))
    a = parser.parse_args(own)
    a.out = a.out or f"extinction-{a.size}"
    if a.size == "nano":
        known, one = arms_of(a.program), functools.partial(nano, a.program, extra)
        usual = list(known)
    else:
        known, usual = {arm: what for arm, (what, _, _) in transformers.ARMS.items()}, transformers.COMPARED[a.size]
        one = transformers.Transformers(a.size, os.path.abspath(a.muster), a.out, a.steps, a.rare_share, extra).row
    chosen = a.arms.split(",") if a.arms else usual
    unknown = [arm for arm in chosen if arm not in known]
    if unknown:
        sys.exit(f"run.py: no arm {', '.join(unknown)}; there are {', '.join(known)}")
    os.makedirs(a.out, exist_ok=True)
    path = os.path.join(a.out, "rows.jsonl")
    rows = read_rows(path)
    try:
        run_all(one, chosen, a.seeds, a.jobs, path, rows)
    except RuntimeError as error:
        sys.exit(f"run.py: {error}")
    check_same(rows, path)
    add_derived(rows)
    command = "experiments/extinction/run.py " + " ".join(sys.argv[1:])
    columns = COLUMNS if a.size == "nano" else COLUMNS + LAYERS[a.size]
    write_csv(rows, os.path.join(a.out, "results.csv"))
    write_table(rows, known, columns, command, os.path.join(a.out, "table.md"))
    page.write(rows, known, marks(rows), [(key, title, lambda arm, k=key, d=digits: cell(rows, arm, k, d)) for key, title, digits in columns],
               command, os.path.join(a.out, "index.html"))
    for name, verdict, figures in marks(rows):
        print(f"{name}: {verdict}  {figures}")


if __name__ == "__main__":
    main()
