#!/usr/bin/env python3
"""Rare knowledge in real texts: chemistry and Latin leave the stream for a while, and return.

    experiments/texts/texts.py MUSTER [--out FOLDER] [--texts FOLDER] [--seeds N] [--steps A,B,C] [--only TASK,...] [section.key=value ...]
    experiments/texts/texts.py --page FOLDER

README.md says what is compared and measured. Every task (a run, or a measurement on its checkpoint) ends with a row in FOLDER/rows.jsonl; rows that are there
are not made again, so an interrupted experiment resumes with the same command. Ends with FOLDER/table.md and FOLDER/index.html. Needs nothing but Python 3.8.
"""
import argparse
import concurrent.futures
import html
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "extinction"))
import page     # noqa: E402     the charts and the style of the other experiment's page

RARE = ["chemistry", "latin"]
COMMON = ["general", "computing", "scripture", "politics", "licences", "assembly"]
CHEMISTRY_WEIGHT = 10
ALL = {**dict.fromkeys(COMMON, 1), "latin": 1, "chemistry": CHEMISTRY_WEIGHT}
DROUGHT = dict.fromkeys(COMMON, 1)
LAYERS, EXPERTS = 3, 8
GIVEN = {"chemistry": EXPERTS - 1, "latin": EXPERTS - 2}       # protect.carriers of the arm carriers
SAME = ["model.hidden_size=96", "model.num_heads=3", "model.num_kv_heads=1", "moe.moe_ffn_hidden_size=128", "model.max_seq_len=128", "train.seq_len=128",
        "data.val_fraction=0.1", "train.eval_sequences=40", "optim.schedule=constant", "optim.warmup_steps=50", "stats.every=50", "checkpoint.every=0",
        "checkpoint.keep=1", "log.every=10", "log.progress=quiet", "log.tensorboard=false", "train.threads=1"]


def protected(domains, replay=0.002, anchor=1000, sequences=8):
    """These were the defaults when the experiment was registered."""
    return [f"protect.domains=[{', '.join(domains)}]", f"protect.replay={replay}", f"protect.replay_sequences={sequences}", f"protect.anchor={anchor}"]


PROTECTED = protected(RARE)
CARRIERS = [*PROTECTED, "protect.carriers={" + ", ".join(f"{d}: {e}" for d, e in GIVEN.items()) + "}"]
# The gate works on logits, each for itself: softmax scores compare them, sigmoid scores do not
SIGMOID = ["moe.score_func=sigmoid", "moe.balance=[expert_bias]", "moe.z_loss_coeff=0"]
OTHERS = [d for d in [*COMMON, *RARE] if d != "scripture"]

# run: (run that it is forked from, phase, mixture, options)
RUNS = {
    "all/A": (None, "A", ALL, []),
    "never/A": (None, "A", DROUGHT, []),
    "ordinary/B": ("all/A", "B", DROUGHT, []),
    "protected/B": ("all/A", "B", DROUGHT, PROTECTED),
    "never/B": ("never/A", "B", DROUGHT, []),
    "protected_100/B": ("all/A", "B", DROUGHT, protected(RARE, anchor=100)),
    "protected_10/B": ("all/A", "B", DROUGHT, protected(RARE, anchor=10)),
    "protected_1/B": ("all/A", "B", DROUGHT, protected(RARE, anchor=1)),
    "protected_0.1/B": ("all/A", "B", DROUGHT, protected(RARE, anchor=0.1)),
    "sigmoid_carriers/A": (None, "A", ALL, [*SIGMOID, *CARRIERS]),
    "sigmoid/A": (None, "A", ALL, SIGMOID),
    "sigmoid_unprotected/B": ("sigmoid_carriers/A", "B", DROUGHT, SIGMOID),
    "sigmoid_carriers/B": ("sigmoid_carriers/A", "B", DROUGHT, [*SIGMOID, *CARRIERS]),
    "continued/B": ("all/A", "B", {"scripture": 1}, []),
    "continued_protected/B": ("all/A", "B", {"scripture": 1}, protected(OTHERS)),
    "continued_replay/B": ("all/A", "B", {"scripture": 1}, protected(OTHERS, replay=0.01, anchor=0)),
    "continued_replay_of_32/B": ("all/A", "B", {"scripture": 1}, protected(OTHERS, replay=0.01, anchor=0, sequences=32)),
    "ordinary/C": ("ordinary/B", "C", ALL, []),
    "protected/C": ("protected/B", "C", ALL, PROTECTED),
    "sigmoid_carriers/C": ("sigmoid_carriers/B", "C", ALL, [*SIGMOID, *CARRIERS]),
    "replay/B": ("all/A", "B", DROUGHT, protected(RARE, anchor=0)),
    "replay_0.01/B": ("all/A", "B", DROUGHT, protected(RARE, replay=0.01, anchor=0)),
    "replay_0.01_of_32/B": ("all/A", "B", DROUGHT, protected(RARE, replay=0.01, anchor=0, sequences=32)),
    "replay_0.01_of_32/C": ("replay_0.01_of_32/B", "C", ALL, protected(RARE, replay=0.01, anchor=0, sequences=32)),
    "anchor/B": ("all/A", "B", DROUGHT, protected(RARE, replay=0)),
    "carriers/A": (None, "A", ALL, CARRIERS),
    "carriers/B": ("carriers/A", "B", DROUGHT, CARRIERS),
}
MEASURED = ["all/A", "ordinary/B", "protected/B", "sigmoid_carriers/A", "sigmoid_unprotected/B"]
# task: (what it is, the run that it needs)
TASKS = {**{name: ("run", of[0]) for name, of in RUNS.items()}, **{f"{name} experts": ("experts", name) for name in MEASURED},
         "restore": ("restore", "sigmoid_unprotected/B")}
FIRST = ["all/A", "never/A", "ordinary/B", "protected/B", "never/B"]      # with all seeds; then the others seed by seed
LAST = ["replay/B", "anchor/B", "carriers/A", "carriers/B"]


# ---------------------------------------------------------------------- commands
def start(argv, cwd, log, allowed=(0,)):
    """Output, seconds of processor time and exit code of a command."""
    with open(log, "w", encoding="utf-8") as err:
        child = subprocess.Popen([str(a) for a in argv], cwd=cwd, stdout=subprocess.PIPE, stderr=err, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        out = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    if child.returncode not in allowed:
        raise RuntimeError(f"exit code {child.returncode} of {' '.join(map(str, argv))}\n{pathlib.Path(log).read_text(encoding='utf-8')[-2000:]}")
    return out, used.ru_utime + used.ru_stime, child.returncode


def folder_of(a, name, seed):
    return a.out / "runs" / f"seed-{seed}" / name.replace("/", "-").replace(" ", "-")


def lines_of(path):
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def read_rows(path):
    """All rows; a torn last one, of an interruption, is removed from the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[:text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def losses_of(line):
    return {key.split("/")[1]: value for key, value in line.items() if key.startswith("val/") and key.count("/") == 2 and key.endswith("/ce_loss")}


def last_step(a, phase):
    return sum(a.steps[:"ABC".index(phase) + 1])


def train(a, name, seed):
    parent, phase, mix, options = RUNS[name]
    run, end = folder_of(a, name, seed), last_step(a, phase)
    length = a.steps["ABC".index(phase)]
    mixture = ", ".join(f"{d}: {w}" for d, w in mix.items())
    if parent and RUNS[parent][2] != mix:       # what the parent did stays as it was; a new mixture begins where it ended
        before = ", ".join(f"{d}: {w}" for d, w in RUNS[parent][2].items())
        phases = f"[{{until_step: {end - length}, mix: {{{before}}}}}, {{mix: {{{mixture}}}}}]"
    else:
        phases = f"[{{mix: {{{mixture}}}}}]"
    argv = [a.muster, "train", ROOT / "configs" / "first.yaml", f"run.dir={run}", f"run.seed={seed}", f"train.steps={end}",
            f"train.eval_every={max(1, length // 8 if phase == 'C' else length // 5)}", *SAME, *options, f"data.phases={phases}", *a.overrides]
    if parent:
        argv += ["--fork", folder_of(a, parent, seed)]
    _, seconds, _ = start(argv, a.texts.parent, f"{run}.log")
    events = lines_of(run / "events.jsonl")
    first = end - length
    return {"seconds": seconds, "steps": length,
            "losses": [[line["step"], losses_of(line)] for line in lines_of(run / "metrics.jsonl") if "val/ce_loss" in line and line["step"] > first],
            "events": [{k: v for k, v in e.items() if k != "xxh3"} for e in events if e["step"] > first and e["event"] in ("state", "protection", "absence", "archive")]}


def evaluate(a, run, domains, log, *more):
    texts = "data.train=[" + ", ".join(f"{{domain: {d}, path: {a.texts / d}}}" for d in domains) + "]"
    out, _, _ = start([a.muster, "eval", run, texts, "data.val_fraction=0.1", "train.eval_sequences=40", "train.threads=1", *more], a.texts.parent, log)
    found = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) == 7 and words[0] in domains:
            found[words[0]] = float(words[4])
    return found


def tails(a):
    """The last tenth of each domain's text, 16 kB at most; of chemistry and Latin, which have few documents, validation is this tail."""
    folder = a.out / "tails"
    if not folder.exists():
        made = a.out / "tails.new"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        for domain in [*COMMON, *RARE]:
            text = b"".join(p.read_bytes() for p in sorted((a.texts / domain).glob("*.txt")))
            (made / f"{domain}.txt").write_bytes(text[-min(len(text) // 10, 16384):])
        made.rename(folder)
    return folder


def experts(a, name, seed):
    """Criticality of every expert for each rare domain, and the load of each expert by each domain (1: uniform)."""
    run, log = folder_of(a, name, seed), f"{folder_of(a, name + ' experts', seed)}.log"
    whole = evaluate(a, run, RARE, log)
    K = {d: [[0.0] * EXPERTS for _ in range(LAYERS)] for d in RARE}
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            without = evaluate(a, run, RARE, log, "--mask", f"{layer}:{expert}")
            for d in RARE:
                K[d][layer][expert] = without[d] - whole[d]
    texts = [f"{d}={tails(a) / d}.txt" for d in [*COMMON, *RARE]]
    out, _, _ = start([a.muster, "stats", run, *texts, "stats.probe_tokens=1", "train.threads=1"], a.texts.parent, log)
    loads, layer = {d: [] for d in [*COMMON, *RARE]}, None
    for line in out.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "layer":
            layer = int(words[1])
        elif layer is not None and len(words) == 1 + EXPERTS and words[0] in loads:
            loads[words[0]].append([float(w) for w in words[1:]])
    return {"criticality": K, "load": loads}


def restore(a, seed):
    return {domain: restore_carrier(a, domain, seed) for domain in RARE}


def restore_carrier(a, domain, seed):
    """The carriers of a domain as they were at the end of A, put back into what a drought without protection left."""
    source, ruin, base = (folder_of(a, name, seed) for name in ("sigmoid_carriers/A", "sigmoid_unprotected/B", f"restore {domain}"))
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    log, expert, domains = base / "log", GIVEN[domain], [*COMMON, *RARE]
    row = {"before": evaluate(a, ruin, domains, log), "A": evaluate(a, source, domains, log), "alone": [], "drift": []}
    unit = lambda layer: base / "archive" / f"layer_{layer:02}" / f"expert_{expert:03}" / f"step-{a.steps[0]:08}.h5"
    into = ruin
    for layer in range(LAYERS):
        put = lambda where, out, *more: start([a.muster, "expert", "restore", where, f"{layer}:{expert}", "--from", unit(layer), "--force", "train.threads=1",
                                               "--out", base / out, *more], a.texts.parent, log, (0, 65, 78) if more else (0,))
        start([a.muster, "expert", "archive", source, f"{layer}:{expert}", "--out", base / "archive", "train.threads=1"], a.texts.parent, log)
        out, _, _ = put(ruin, f"alone-{layer}")
        row["drift"] += [[float(x) for x in found] for found in re.findall(r"differ by ([\d.]+), the outputs by ([\d.]+)", out)]
        row["alone"].append(evaluate(a, base / f"alone-{layer}", domains, log))
        if layer == LAYERS - 1:                 # the last one restored is healed, beside the others
            out, row["heal_seconds"], code = put(into, "healed", "--heal", a.heal)
            row["accepted"], row["why"] = code == 0, log.read_text(encoding="utf-8")[-400:] if code else ""
            row["heal"] = {w[0]: [float(x) for x in w[1:]] for w in re.findall(r"(before|restored|healed) +([\d.]+) +(-?\d+) % +([\d.]+)", out)}
            row["healed"] = evaluate(a, base / "healed", domains, log) if code == 0 else None
        put(into, f"together-{layer}")
        into = base / f"together-{layer}"
    row["together"] = evaluate(a, into, domains, log)
    return row


# ---------------------------------------------------------------------- all tasks
def do(a, task, seed):
    what, of = TASKS[task]
    made = train(a, task, seed) if what == "run" else experts(a, of, seed) if what == "experts" else restore(a, seed)
    return {"task": task, "seed": seed, "options": a.options, **made}


def run_all(a, path, rows):
    done = {(r["task"], r["seed"]) for r in rows}
    order = sorted(((t, s) for s in range(1, a.seeds + 1) for t in TASKS if not a.only or t in a.only),
                   key=lambda key: 0 if key[0] in FIRST else a.seeds + 1 if key[0] in LAST else key[1])
    futures = {}

    def one(task, seed):
        parent = futures.get((TASKS[task][1], seed))    # earlier in the order, so it is running or done
        if parent:
            parent.result()
        return do(a, task, seed)

    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool, open(path, "a", encoding="utf-8") as file:
        for key in order:
            if key not in done:
                futures[key] = pool.submit(one, *key)
        try:
            for n, future in enumerate(concurrent.futures.as_completed(futures.values()), 1):
                row = future.result()
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
                end = f": chemistry {row['losses'][-1][1]['chemistry']:.3f}, {row['seconds']:.0f} s" if row.get("losses") else ""
                print(f"{n}/{len(futures)}  seed {row['seed']}, {row['task']}{end}", flush=True)
        except (RuntimeError, KeyboardInterrupt):
            for future in futures.values():
                future.cancel()
            raise


# ---------------------------------------------------------------------- figures
class Results:
    def __init__(self, rows):
        self.rows = {(r["task"], r["seed"]): r for r in rows}
        self.seeds = sorted({r["seed"] for r in rows})

    def losses(self, run, seed):
        """Of the end of a run; None: not there."""
        row = self.rows.get((run, seed))
        return row["losses"][-1][1] if row else None

    def loss(self, run, seed, domain):
        found = self.losses(run, seed)
        if not found:
            return None
        return statistics.fmean(found[d] for d in COMMON) if domain == "common" else found[domain]

    def of_seeds(self, figure):
        return [x for x in (figure(s) for s in self.seeds) if x is not None]


def difference(x, y):
    return None if x is None or y is None else x - y


def source_of(arm):
    """The run of phase A that an arm's drought began with."""
    run = RUNS[f"{arm}/B"][0]
    return run if run else f"{arm}/A"


def learned(r, arm, seed, domain):
    return difference(r.loss("never/A", seed, domain), r.loss(source_of(arm), seed, domain))


def retention(r, arm, seed, domain):
    gain, left = learned(r, arm, seed, domain), difference(r.loss("never/B", seed, domain), r.loss(f"{arm}/B", seed, domain))
    return left / gain if gain and left is not None and gain > 0 else None


def steps_to_return(r, arm, seed, domain):
    """Steps of C until the loss of A's end is reached; infinity: not within C."""
    row, goal = r.rows.get((f"{arm}/C", seed)), r.loss(source_of(arm), seed, domain)
    if not row or goal is None:
        return None
    before = row["losses"][-1][0] - row["steps"]
    return next((step - before for step, found in row["losses"] if found[domain] <= goal), float("inf"))


def cell(found, digits=3):
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.{digits}f}{spread}"


def list_of(found):
    return ", ".join("not reached" if x == float("inf") else f"{x:.0f}" for x in found)


ARMS = {
    "never": "trained without chemistry and Latin from the start: the reference",
    "ordinary": "the defaults of muster, nothing protected",
    "replay": "protect.domains with replay alone (anchor 0)",
    "replay_0.01": "five times as much replay, without anchor",
    "replay_0.01_of_32": "the same with 32 sequences of each domain instead of 8: the defaults now",
    "anchor": "protect.domains with the anchor alone (replay 0)",
    "protected": "protect.domains=[chemistry, latin], replay 0.002 of 8 sequences, anchor 1000: the defaults of then",
    "protected_100": "the same with a weaker anchor, 100 instead of 1000",
    "protected_10": "the same with an anchor of 10",
    "protected_1": "the same with an anchor of 1",
    "protected_0.1": "the same with an anchor of 0.1",
    "carriers": "as protected, with given carriers and the learned gate from the start",
    "sigmoid_carriers": "the same with sigmoid scores and expert_bias",
    "sigmoid_unprotected": "sigmoid_carriers in A, nothing protected in B",
}


CHARTS = [("Protections", ["ordinary", "replay", "replay_0.01", "protected", "protected_10", "protected_1"]), ("Given carriers", ["ordinary", "carriers", "sigmoid_carriers", "sigmoid_unprotected"])]


def drought_table(r):
    head = ["arm", "n", "chemistry A", "chemistry B", "retention", "Latin A", "Latin B", "retention", "other domains A", "other domains B", "C: chemistry back after", "C: Latin back after", "CPU s, B"]
    out = []
    for arm in ARMS:
        if not r.of_seeds(lambda s: r.loss(f"{arm}/B", s, "common")):
            continue
        of = lambda run, domain: cell(r.of_seeds(lambda s: r.loss(run, s, domain)))
        kept = lambda domain: cell(r.of_seeds(lambda s: retention(r, arm, s, domain)), 2) if arm != "never" else ""
        back = lambda domain: list_of(r.of_seeds(lambda s: steps_to_return(r, arm, s, domain)))
        seconds = [r.rows[(f"{arm}/B", s)]["seconds"] for s in r.seeds if (f"{arm}/B", s) in r.rows]
        row = [arm, str(len(seconds))]
        for domain in RARE:
            row += [of(source_of(arm), domain), of(f"{arm}/B", domain), kept(domain)]
        out.append(row + [of(source_of(arm), "common"), of(f"{arm}/B", "common"), back("chemistry"), back("latin"), cell(seconds, 0)])
    return head, out


def acquisition_table(r):
    head = ["router and carriers, end of A", "n", "chemistry", "Latin", "other domains"]
    names = {"all/A": "softmax, none", "carriers/A": "softmax, `protect.carriers`", "sigmoid/A": "sigmoid, none", "sigmoid_carriers/A": "sigmoid, `protect.carriers`"}
    of = lambda run, domain: r.of_seeds(lambda s: r.loss(run, s, domain))
    return head, [[what, str(len(of(run, "common"))), *(cell(of(run, d)) for d in [*RARE, "common"])] for run, what in names.items()]


def return_table(r):
    head = ["arm, end of C", "n", "chemistry", "Latin", "other domains"]
    of = lambda arm, domain: r.of_seeds(lambda s: r.loss(f"{arm}/C", s, domain))
    return head, [[arm, str(len(of(arm, "common"))), *(cell(of(arm, d)) for d in [*RARE, "common"])] for arm in ARMS if f"{arm}/C" in RUNS]


def continued_table(r):
    head = ["domain", "before", "scripture alone", "protected", "protected by replay of 0.01 alone", "the same of 32 sequences"]
    runs = ["all/A", "continued/B", "continued_protected/B", "continued_replay/B", "continued_replay_of_32/B"]
    return head, [[d, *(cell(r.of_seeds(lambda s: r.loss(run, s, d))) for run in runs)] for d in [*COMMON, *RARE]]


def expert_table(r):
    """By checkpoint, domain and layer: the largest criticality, the sum of the positive ones; the largest lift, and the load of that expert."""
    head = ["checkpoint", "domain", "layer", "largest criticality", "sum of criticality", "largest share of the domain's tokens", "the same, of the other domains"]
    out = []
    for name in MEASURED:
        found = [r.rows[(f"{name} experts", s)] for s in r.seeds if (f"{name} experts", s) in r.rows]
        for domain in RARE if found else []:
            for layer in range(LAYERS):
                K = [f["criticality"][domain][layer] for f in found]
                top, others = [], []
                for f in found:
                    load = f["load"][domain][layer]
                    i = max(range(EXPERTS), key=lambda e: load[e])
                    top.append(load[i] / EXPERTS)
                    others.append(statistics.fmean(f["load"][d][layer][i] for d in COMMON) / EXPERTS)
                out.append([name, domain, str(layer), cell([max(k) for k in K]), cell([sum(x for x in k if x > 0) for k in K]), cell(top), cell(others)])
    return head, out


def restored(r, domain):
    return [(s, r.rows[("restore", s)][domain]) for s in r.seeds if ("restore", s) in r.rows]


def restore_table(r):
    head = ["carriers of", "state", "n", "chemistry", "Latin", "other domains"]
    out = []
    for domain in RARE:
        found = [f for _, f in restored(r, domain)]
        states = [("end of A", [f["A"] for f in found]), ("end of B", [f["before"] for f in found])]
        states += [(f"restored in layer {i}", [f["alone"][i] for f in found]) for i in range(LAYERS)]
        states += [("restored in all layers", [f["together"] for f in found]), ("and the last healed, where accepted", [f["healed"] for f in found if f["healed"]])]
        out += [[domain, what, str(len(x)), *(cell([l[d] for l in x]) for d in RARE), cell([statistics.fmean(l[d] for d in COMMON) for l in x])] for what, x in states if x]
    return head, out


def heal_table(r):
    """What the healing printed, on its own probe: also where it was rolled back."""
    head = ["carriers of", "seed", "its loss before, restored, healed", "known of what was learned, %", "other domains", "result"]
    join = lambda f, i, digits: ", ".join(f"{f['heal'][k][i]:.{digits}f}" for k in ("before", "restored", "healed") if k in f["heal"])
    result = lambda f: "accepted" if f["accepted"] else "rolled back" if f["heal"] else "not possible"
    return head, [[d, str(s), join(f, 0, 3), join(f, 1, 0), join(f, 2, 3), result(f)] for d in RARE for s, f in restored(r, d)]


# ---------------------------------------------------------------------- what README.md expects
def mean(found):
    return statistics.fmean(found) if found else None


def gap(r, run, other, domain):
    """How much better the first run is, paired by seed."""
    return mean(r.of_seeds(lambda s: difference(r.loss(other, s, domain), r.loss(run, s, domain))))


def mark_t1(r):
    better = gap(r, "all/A", "never/A", "chemistry")
    return better is not None and (better >= 0.3, f"{better:.3f} nats better than in never")


def mark_t2(r):
    kept = [mean(r.of_seeds(lambda s: retention(r, "ordinary", s, d))) for d in RARE]
    return None not in kept and (max(kept) < 0.5, "retention of chemistry {:.2f}, of Latin {:.2f}".format(*kept))


def mark_t3(r):
    kept = [mean(r.of_seeds(lambda s: retention(r, "protected", s, d))) for d in RARE]
    cost = gap(r, "ordinary/B", "protected/B", "common")
    return None not in [*kept, cost] and (min(kept) >= 0.9 and cost <= 0.01, "retention of chemistry {:.2f}, of Latin {:.2f}; other domains {:+.3f}".format(*kept, cost))


def mark_t4(r):
    figures = [(gap(r, run, other, "chemistry"), gap(r, other, run, "common")) for run, other in (("carriers/A", "all/A"), ("sigmoid_carriers/A", "sigmoid/A"))]
    if any(x is None for f in figures for x in f):
        return False
    return all(better >= 0.05 and cost <= 0.01 for better, cost in figures), "; ".join(
        f"{name}: chemistry {-better:+.3f}, other domains {cost:+.3f}" for name, (better, cost) in zip(("carriers", "sigmoid_carriers"), figures))


def mark_t5(r):
    share = {d: [(f["before"][d] - f["together"][d]) / (f["before"][d] - f["A"][d]) for _, f in restored(r, d)] for d in RARE}
    return bool(share["chemistry"]) and (mean(share["chemistry"]) >= 0.3, "of what was lost, back without training: chemistry {}, Latin {}".format(*(cell(share[d], 2) for d in RARE)))


def mark_t6(r):
    rise = [mean([x for x in (gap(r, "all/A", run, d) for d in OTHERS) if x is not None]) for run in ("continued/B", "continued_protected/B")]
    cost = gap(r, "continued/B", "continued_protected/B", "scripture")
    return None not in [*rise, cost] and (rise[1] <= rise[0] / 2 and cost <= 0.05, "the seven others {:+.3f}, protected {:+.3f}; scripture {:+.3f}".format(*rise, cost))


MARKS = [("T1 something to lose", mark_t1), ("T2 ordinary training loses it", mark_t2), ("T3 one line protects it", mark_t3), ("T4 given carriers acquire more", mark_t4),
         ("T5 the archive brings it back", mark_t5), ("T6 continued training", mark_t6)]


def mark_table(r):
    found = [(name, judge(r)) for name, judge in MARKS]
    return ["question", "answer", "figures"], [[name, "yes" if f[0] else "no", f[1]] for name, f in found if f]


# ---------------------------------------------------------------------- files
def tables(r):
    return [("What was expected", "T1 to T6 of README.md.", *mark_table(r)),
            ("The drought", "Losses in nats per token. Retention: what is left at the end of B of the advantage over `never` that was there at the end of A.", *drought_table(r)),
            ("What given carriers acquire", "Losses at the end of A, in nats per token.", *acquisition_table(r)),
            ("The return", "Losses at the end of C, in nats per token.", *return_table(r)),
            ("Continued on scripture alone", "Losses at the end of A, and after B steps of scripture alone.", *continued_table(r)),
            ("Which experts carry it", "Criticality: nats per token that the domain loses without the expert, every expert masked in turn.", *expert_table(r)),
            ("What the archive brings back", "The carriers of `sigmoid_carriers`, archived at the end of A, put into `sigmoid_unprotected` at the end of B.", *restore_table(r)),
            ("Healing", "Figures of `muster expert restore --heal`, on the probe.", *heal_table(r))]


def write_table(a, r, path):
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"Steps of A, B, C: {', '.join(map(str, a.steps))}; seeds {', '.join(map(str, r.seeds))}. Means ± standard deviations over n seeds.\n")
        for title, what, head, body in tables(r):
            if body:
                f.write(f"\n## {title}\n\n{what}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}\n")
                f.writelines(f"| {' | '.join(row)} |\n" for row in body)


def curves(a, r, domain):
    """Rows as the chart wants them: how much better than a run that never saw the domain, in nats; in C that run's loss at the end of B."""
    out = []
    for arm in ARMS:
        for s in r.seeds:
            parts = [r.rows.get((run, s)) for run in (source_of(arm), f"{arm}/B", f"{arm}/C")]
            never = dict(x for run in ("never/A", "never/B") for x in (r.rows[(run, s)]["losses"] if (run, s) in r.rows else []))
            if arm == "never" or not all(parts[:2]) or not never:
                continue
            points = [[step, never[min(step, max(never))][domain] - found[domain]] for p in parts if p for step, found in p["losses"]]
            out.append({"arm": arm, "steps_a": a.steps[0], "steps_b": a.steps[1], "steps_c": a.steps[2], "curve": [[0, 0.0], *points]})
    return out


def write_page(a, r, path):
    page.FIELDS["advantage"] = (1, "nats better than a run that never saw it")
    out = ["<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Rare knowledge in real texts</title>",
           f"<style>{page.STYLE}</style><h1>Rare knowledge in real texts</h1><p>{len(r.seeds)} seeds. What is compared and measured: README.md.</p>"]
    for title, arms in CHARTS:
        for domain in RARE:
            rows = curves(a, r, domain)
            drawn = page.chart(rows, "advantage", arms) if rows else ""
            if drawn:
                out.append(f"<h2>{title}: {domain}</h2>{drawn}")
    for title, what, head, body in tables(r):
        if body:
            cells = lambda row, tag: "".join(f"<{tag}>{html.escape(x)}" for x in row)
            out.append(f"<h2>{title}</h2><p>{html.escape(what)}</p><div class=scroll><table><tr>{cells(head, 'th')}</tr>" +
                       "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body) + "</table></div>")
    out.append("<h2>Arms</h2><table>" + "".join(f"<tr><td>{k}<td>{html.escape(v)}</tr>" for k, v in ARMS.items()) + "</table></html>")
    path.write_text("\n".join(out) + "\n", encoding="utf-8")


def finish(a, rows, folder):
    r = Results(rows)
    write_table(a, r, folder / "table.md")
    write_page(a, r, folder / "index.html")
    print((folder / "table.md").read_text(encoding="utf-8"))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    a.add_argument("muster", nargs="?", type=pathlib.Path)
    a.add_argument("--out", type=pathlib.Path, default=pathlib.Path("rare-texts"))
    a.add_argument("--texts", type=pathlib.Path, default=pathlib.Path("texts"), help="the folder that scripts/get-texts.sh made")
    a.add_argument("--seeds", type=int, default=3)
    a.add_argument("--steps", default="500,250,120", help="of the phases A, B and C")
    a.add_argument("--heal", type=int, default=100, help="steps")
    a.add_argument("--jobs", type=int, default=2, help="runs at the same time, each with one thread")
    a.add_argument("--only", type=lambda text: text.split(","), help="only these tasks: " + ", ".join(TASKS))
    a.add_argument("--page", type=pathlib.Path, metavar="FOLDER", help="only make table and page of an experiment anew")
    a, a.overrides = a.parse_known_args()
    wrong = [o for o in a.overrides if not re.fullmatch(r"\w+\.\w+=.*", o)]
    if wrong:
        sys.exit(f"texts.py: unexpected arguments {' '.join(wrong)}")
    unknown = [t for t in a.only or [] if t not in TASKS]
    if unknown:
        sys.exit(f"texts.py: no task {', '.join(unknown)}; there are {', '.join(TASKS)}")
    a.steps = [int(n) for n in a.steps.split(",")]
    if a.page:
        rows = read_rows(a.page / "rows.jsonl")
        a.steps = json.loads(rows[0]["options"])["steps"]
        return finish(a, rows, a.page)
    if not a.muster:
        sys.exit("texts.py: the path of the program muster is missing, for example build/muster")
    a.muster, a.out, a.texts = a.muster.resolve(), a.out.resolve(), a.texts.absolute()
    if not (a.texts.name == "texts" and a.texts.is_dir()):
        sys.exit(f"texts.py: {a.texts} is not a folder called texts: scripts/get-texts.sh makes it")
    a.options = json.dumps({"steps": a.steps, "chemistry": CHEMISTRY_WEIGHT, "heal": a.heal, "same": [*SAME, *a.overrides]})
    rows = read_rows(a.out / "rows.jsonl")
    other = {r["options"] for r in rows} - {a.options}
    if other:
        sys.exit(f"texts.py: {a.out} holds rows of different options; use another --out: {', '.join(other)} there, {a.options} now")
    for seed in range(1, a.seeds + 1):
        folder_of(a, "all/A", seed).parent.mkdir(parents=True, exist_ok=True)
    tails(a)
    try:
        run_all(a, a.out / "rows.jsonl", rows)
    except RuntimeError as error:
        sys.exit(f"texts.py: {error}")
    finish(a, rows, a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
