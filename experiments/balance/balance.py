#!/usr/bin/env python3
"""Balancing methods at equal compute: how even the load is, and what it costs in loss.

    experiments/balance/balance.py MUSTER [--out FOLDER] [--texts FOLDER] [--corpus NAME] [--steps N] [--seeds N]
    experiments/balance/balance.py --table FOLDER

Trains the same small model with every method and seed, on the synthetic corpus (5 seeds) and on the texts of scripts/get-texts.sh (3 seeds).
All else is equal: sigmoid scores, no z-loss, the same batches, four micro-batches per step. A row is added to FOLDER/rows.csv as each run
ends; rows that are there are not run again, so an interrupted experiment resumes with the same command. Ends with the table of means and
standard deviations over seeds. Needs nothing but Python 3.8.

Columns: the validation loss at the end, over all domains and of the rarest ones, in nats per token; MaxVio (busiest expert / mean - 1, the worst layer)
of the logged batches in the last fifth of the steps, as a mean over batches, and of the loads of all these batches together (max_vio_global): a batch has few
sequences, each of one domain, so no single batch is even; experts that are dead or starved at the end; mutual information of domain and expert in
nats, the mean over layers; tokens per second. expert_bias has a rate that suits long runs, and a second arm with ten times as much.
"""
import argparse
import csv
import json
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ARMS = {
    "none": ["moe.balance=[none]"],
    "aux_loss": ["moe.balance=[aux_loss]"],
    "global_aux_loss": ["moe.balance=[global_aux_loss]"],
    "expert_bias": ["moe.balance=[expert_bias]"],
    "expert_bias, rate 0.01": ["moe.balance=[expert_bias]", "moe.bias_update_rate=0.01"],
    "quantile_balancing": ["moe.balance=[quantile_balancing]"],
}
# name: configuration, number of seeds, rare domains
CORPORA = {"synthetic": ("synthetic.yaml", 5, ["rare-1", "rare-2", "rare-3"]), "texts": ("first.yaml", 3, ["chemistry", "latin", "licences"])}
SAME = ["model.hidden_size=64", "model.head_dim=16", "model.max_seq_len=128", "train.seq_len=128", "train.threads=1", "moe.num_experts=16",
        "moe.moe_ffn_hidden_size=64", "moe.score_func=sigmoid", "moe.z_loss_coeff=0", "moe.aux_loss_coeff=0.01",
        "moe.bias_update_rate=0.001", "train.micro_batch_size=4", "log.every=5", "log.progress=quiet", "log.tensorboard=false", "stats.budget=0",
        "checkpoint.every=0", "checkpoint.keep=1"]
FIGURES = ["val_ce", "rare_ce", "max_vio", "max_vio_global", "unused", "mutual_information", "tokens_per_s"]
KEYS = ["corpus", "arm", "seed", "steps"]


def lines_of(run):
    with open(run / "metrics.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def last(lines, key):
    found = [line[key] for line in lines if key in line]
    return found[-1] if found else float("nan")


def mean(values):
    return sum(values) / len(values) if values else float("nan")


def max_vio_global(lines):
    """Of the loads of all these lines together, in the worst layer."""
    worst = float("nan")
    for key in sorted({k for line in lines for k in line if k.startswith("moe/layer_") and k.endswith("/load")}):
        loads = [sum(n) for n in zip(*(line[key] for line in lines if key in line))]
        vio = max(loads) * len(loads) / sum(loads) - 1
        worst = vio if worst != worst else max(worst, vio)
    return worst


def figures(run, steps, rare):
    lines = lines_of(run)
    late = [line for line in lines if line["step"] > 0.8 * steps and "train/tokens" in line]
    return {
        "val_ce": last(lines, "val/ce_loss"),
        "rare_ce": mean([last(lines, f"val/{d}/ce_loss") for d in rare]),
        "max_vio": mean([line["moe/max_vio"] for line in late if "moe/max_vio" in line]),
        "max_vio_global": max_vio_global(late),
        "unused": last(lines, "moe/dead_frac") + last(lines, "moe/starved_frac"),
        "mutual_information": last(lines, "moe/mutual_information"),
        "tokens_per_s": statistics.median(line["perf/tokens_per_s"] for line in lines if "perf/tokens_per_s" in line),
    }


def read_rows(path):
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def add_row(path, row):
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as f:
        out = csv.DictWriter(f, KEYS + FIGURES)
        if new:
            out.writeheader()
        out.writerow(row)


def train(a, corpus, arm, seed):
    config, _, rare = CORPORA[corpus]
    run = a.out / "runs" / f"{corpus}-{re.sub('[^a-z0-9.]+', '_', arm)}-{seed}-{a.steps}"
    argv = [str(a.muster), "train", str(ROOT / "configs" / config), f"run.dir={run}", f"run.seed={seed}", f"train.steps={a.steps}",
            f"train.eval_every={a.steps}", f"stats.every={a.steps}", f"optim.warmup_steps={max(1, a.steps // 10)}", *SAME, *ARMS[arm]]
    done = subprocess.run(argv, cwd=a.texts.parent, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"balance.py: {corpus}, {arm}, seed {seed}: exit code {done.returncode} of {' '.join(argv)}")
    row = {"corpus": corpus, "arm": arm, "seed": seed, "steps": a.steps, **figures(run, a.steps, rare)}
    add_row(a.out / "rows.csv", row)
    print(f"{corpus} {arm} seed {seed}: loss {row['val_ce']:.4f}, MaxVio {row['max_vio']:.3f}", flush=True)


def cell(rows, figure):
    values = [float(r[figure]) for r in rows]
    digits = 0 if figure == "tokens_per_s" else 4 if figure.endswith("_ce") else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def table(path):
    rows = read_rows(path)
    for corpus, steps in dict.fromkeys((r["corpus"], r["steps"]) for r in rows):
        print(f"\n{corpus}, {steps} steps\n\n| method | seeds | {' | '.join(FIGURES)} |\n|{' --- |' * (len(FIGURES) + 2)}")
        for arm in ARMS:
            own = [r for r in rows if (r["corpus"], r["steps"], r["arm"]) == (corpus, steps, arm)]
            if own:
                print(f"| {arm} | {len(own)} | {' | '.join(cell(own, f) for f in FIGURES)} |")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("muster", nargs="?", type=pathlib.Path)
    a.add_argument("--out", type=pathlib.Path, default=pathlib.Path("balance"))
    a.add_argument("--texts", type=pathlib.Path, default=pathlib.Path("texts"), help="the folder that scripts/get-texts.sh made")
    a.add_argument("--corpus", choices=[*CORPORA, "both"], default="both")
    a.add_argument("--steps", type=int, default=600)
    a.add_argument("--seeds", type=int, help="fewer or more than 5 and 3")
    a.add_argument("--table", type=pathlib.Path, metavar="FOLDER", help="only print the table of an experiment")
    a = a.parse_args()
    if a.table:
        return table(a.table / "rows.csv")
    if not a.muster:
        sys.exit("balance.py: the path of the program muster is missing, for example build/muster")
    a.muster, a.out, a.texts = a.muster.resolve(), a.out.resolve(), a.texts.absolute()
    corpora = [c for c in CORPORA if a.corpus in (c, "both")]
    if "texts" in corpora and not (a.texts.name == "texts" and a.texts.is_dir()):
        sys.exit(f"balance.py: {a.texts} is not a folder called texts: scripts/get-texts.sh makes it")
    if not a.texts.parent.is_dir():
        sys.exit(f"balance.py: no folder {a.texts.parent}")
    a.out.mkdir(parents=True, exist_ok=True)
    done = {tuple(r[k] for k in KEYS) for r in read_rows(a.out / "rows.csv")}
    for seed in range(1, 1 + (a.seeds or max(CORPORA[c][1] for c in corpora))):     # seed by seed: an early table has all methods
        for corpus in corpora:
            for arm in ARMS:
                if seed <= (a.seeds or CORPORA[corpus][1]) and (corpus, arm, str(seed), str(a.steps)) not in done:
                    train(a, corpus, arm, seed)
    table(a.out / "rows.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
