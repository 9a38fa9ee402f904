#!/usr/bin/env python3
"""What protection keeps when labels are missing: clusters of documents, or one domain, instead of the true domains.

    experiments/clusters/clusters.py MUSTER [--out FOLDER] [--texts FOLDER] [--steps N] [--more N] [--seeds N] [--jobs N]
    experiments/clusters/clusters.py --table FOLDER

The texts of scripts/get-texts.sh, at most 300 kB of each domain, the last tenth of each file held out (the last fifth of chemistry). The text of
chemistry is there six times, so that there is something to lose: with one copy a model of this size learns nothing of it. It is then 13 % of the tokens, and Latin 8 %. A small model is trained on all of them in their own proportions, with the true domains, with clusters of `muster tokenize --clusters`, or as one
domain; then it continues on scripture alone, from a fork, without protection and with `protect.domains` = all that is absent. Replay and the anchor's
sequences are the same in all: together 0.014 of the samples and 56 sequences, divided by the number of protected domains; "0.002 of 8" has these
for each. The anchor is 1000 in both. "defaults" names nothing but
the domains: replay of 0.01 of 32 sequences for each, without anchor. `never` is trained without chemistry and Latin: what there is to lose is measured from there. A row is added to FOLDER/rows.csv as each run ends; rows
that are there are not run again. Ends with the table of means and standard deviations over seeds: loss on held-out texts, nats per byte. Needs nothing but Python 3.8.
"""
import argparse
import concurrent.futures
import csv
import json
import pathlib
import re
import statistics
import subprocess
import sys
import threading

DOMAINS = ["assembly", "chemistry", "computing", "general", "latin", "licences", "politics", "scripture"]
RARE = ["chemistry", "latin"]
MOST, HELD, HELD_CHEMISTRY, COPIES = 300000, 0.1, 0.2, 6
REPLAY, SEQUENCES = 0.014, 56           # of all protected domains together
# base: number of clusters, 0: true domains, 1: one domain
BASES = {"labels": 0, "16 clusters": 16, "4 clusters": 4, "one domain": 1, "never": 0}
# base, protection
ARMS = [("labels", "none"), ("labels", "equal"), ("16 clusters", "equal"), ("one domain", "equal"), ("4 clusters", "equal"), ("one domain", "none"),
        ("one domain", "0.002 of 8"), ("never", "base"), ("labels", "defaults"), ("16 clusters", "defaults"), ("4 clusters", "defaults"), ("one domain", "defaults")]
CONFIG = """
model: {hidden_size: 64, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 16, max_seq_len: 256}
moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 64, balance: [global_aux_loss], aux_loss_coeff: 0.01}
optim: {lr: 3e-3, warmup_steps: 25, schedule: constant}
train: {global_batch_size: 8, seq_len: 256, eval_every: 0, threads: 1}
checkpoint: {every: 0, keep: 1}
stats: {every: 0, budget: 0}
log: {every: 50, progress: quiet, tensorboard: false}
"""
KEYS = ["base", "protection", "seed", "steps"]
FIGURES = ["chemistry", "latin", "scripture", "others"]


def cut_texts(a):
    """The texts to train on and those held out, cut behind lines."""
    for d in DOMAINS:
        folder, held, left = a.out / "texts" / d, b"", MOST
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted((a.texts / d).glob("*.txt")):
            text = path.read_bytes()[:left]
            left -= len(text)
            cut = text.find(b"\n", int(len(text) * (1 - (HELD_CHEMISTRY if d == "chemistry" else HELD)))) + 1
            if cut > 0:
                for copy in range(COPIES if d == "chemistry" else 1):
                    (folder / f"{path.stem}-{copy}.txt").write_bytes(text[:cut])
                held += text[cut:]
        (a.out / f"{d}.txt").write_bytes(held)


def muster(a, *argv):
    done = subprocess.run([str(a.muster), *argv], cwd=a.out, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"clusters.py: exit code {done.returncode} of muster {' '.join(argv)}\n{done.stderr}")
    return done.stdout


def make_clusters(a):
    for n in sorted({n for n in BASES.values() if n > 1}):
        if (a.out / f"clusters-{n}.txt").exists():
            continue
        said = muster(a, "tokenize", "--clusters", str(n), "--out", f"clusters-{n}.h5", *(f"{d}=texts/{d}" for d in DOMAINS))
        (a.out / f"clusters-{n}.txt").write_text(said)
        print("\n".join(line for line in said.splitlines() if re.match("cluster", line)), flush=True)


def domains_of(base):
    """Name and path of what a base is trained on."""
    n = BASES[base]
    if n == 0:
        return [(d, f"texts/{d}") for d in DOMAINS if base != "never" or d not in RARE]
    return [("all", "texts")] if n == 1 else [(f"cluster-{i:02}", f"clusters-{n}.h5") for i in range(n)]


def steps_of(a, protection):
    return str(a.steps) if protection == "base" else f"{a.steps}+{a.more}"


def run_of(a, base, protection, seed):
    return "runs/" + re.sub("[^a-z0-9]+", "-", f"{base}-{protection}-{seed}-{steps_of(a, protection)}")


def train(a, base, protection, seed):
    run, domains = run_of(a, base, protection, seed), domains_of(base)
    argv = ["train", "model.yaml", f"run.dir={run}", f"run.seed={seed}"]
    if protection == "base":
        argv.append(f"train.steps={a.steps}")
    else:
        absent = [d for d, _ in domains if d != "scripture"]
        if len(absent) == len(domains):
            domains = [*domains, ("scripture", "texts/scripture")]
        argv += [f"train.steps={a.steps + a.more}", "data.phases=[{mix: {scripture: 1}}]", "--fork", run_of(a, base, "base", seed)]
        if protection != "none":
            argv.append(f"protect.domains=[{', '.join(absent)}]")
        if protection in ("equal", "0.002 of 8"):
            replay, sequences = (REPLAY / len(absent), round(SEQUENCES / len(absent))) if protection == "equal" else (0.002, 8)
            argv += ["protect.anchor=1000", f"protect.replay={replay}", f"protect.replay_sequences={sequences}"]
    argv.append("data.train=[" + ", ".join(f"{{domain: {d}, path: {path}}}" for d, path in domains) + "]")
    muster(a, *argv)
    return run


def losses(a, run):
    said = muster(a, "stats", run, "stats.probe_tokens=256", "train.threads=1", *(f"{d}={d}.txt" for d in DOMAINS))
    loss = {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) +\d+ +([0-9.]+) +[0-9.]+$", said, re.M)}
    return {d: loss[d] for d in FIGURES[:3]} | {"others": statistics.mean(loss[d] for d in DOMAINS if d not in FIGURES)}


def read_rows(path):
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


lock = threading.Lock()


def do(a, done, base, protection, seed):
    if (base, protection, str(seed), steps_of(a, protection)) in done:
        return
    figures = losses(a, train(a, base, protection, seed))
    with lock:
        path = a.out / "rows.csv"
        new = not path.exists()
        with open(path, "a", newline="", encoding="utf-8") as f:
            out = csv.DictWriter(f, KEYS + FIGURES)
            if new:
                out.writeheader()
            out.writerow({"base": base, "protection": protection, "seed": seed, "steps": steps_of(a, protection), **figures})
    print(f"{base}, {protection}, seed {seed}: {json.dumps(figures)}", flush=True)


def cell(rows, figure):
    values = [float(r[figure]) for r in rows]
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def table(folder):
    rows = read_rows(folder / "rows.csv")
    print(f"| base | protection | seeds | {' | '.join(FIGURES)} |\n|{' --- |' * (len(FIGURES) + 3)}")
    for base, protection in [*((b, "base") for b in BASES if b != "never"), *ARMS]:
        own = [r for r in rows if (r["base"], r["protection"]) == (base, protection)]
        if own:
            print(f"| {base} | {protection} | {len(own)} | {' | '.join(cell(own, f) for f in FIGURES)} |")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("muster", nargs="?", type=pathlib.Path)
    a.add_argument("--out", type=pathlib.Path, default=pathlib.Path("clusters"))
    a.add_argument("--texts", type=pathlib.Path, default=pathlib.Path("texts"), help="the folder that scripts/get-texts.sh made")
    a.add_argument("--steps", type=int, default=250)
    a.add_argument("--more", type=int, default=50, help="steps on scripture alone")
    a.add_argument("--seeds", type=int, default=3)
    a.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    a.add_argument("--table", type=pathlib.Path, metavar="FOLDER", help="only print the table of an experiment")
    a = a.parse_args()
    if a.table:
        return table(a.table)
    if not a.muster:
        sys.exit("clusters.py: the path of the program muster is missing, for example build/muster")
    a.muster, a.out, a.texts = a.muster.resolve(), a.out.resolve(), a.texts.absolute()
    if not all((a.texts / d).is_dir() for d in DOMAINS):
        sys.exit(f"clusters.py: {a.texts} lacks a domain of {', '.join(DOMAINS)}: scripts/get-texts.sh makes it")
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "model.yaml").write_text(CONFIG)
    cut_texts(a)
    make_clusters(a)
    done = {tuple(r[k] for k in KEYS) for r in read_rows(a.out / "rows.csv")}
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        for seed in range(1, 1 + a.seeds):      # seed by seed: an early table has all arms
            list(pool.map(lambda base: do(a, done, base, "base", seed), [b for b in BASES if b != "never"]))
            list(pool.map(lambda arm: do(a, done, *arm, seed), ARMS))
    table(a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
