"""The sizes small and proof: transformers that `muster train` trains. An arm with a seed is three runs, one per phase, each forked from the one before;
arms that are alike in A share it. Every run resumes, and what a run wrote is read from its metrics."""
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import threading

import texts

ROOT = pathlib.Path(__file__).resolve().parents[2]
RARE = dict(zip(texts.RARE, (13, 14, 15)))               # and the expert that is the carrier in each layer
CAP = 4                                                  # carriers in a layer: a quarter of its experts
REF = 62 * math.log(64) / 64                             # a document of a model that knows everything but the facts
OPTIMUM = (math.log(64) + 61 * 0.7294) / 64              # ... and the facts
HEAL_STEPS = 100

#            layers, width, heads, F, steps of A, B, C
SIZES = {"small": (2, 64, 4, 64, 1464, 488, 122), "proof": (4, 128, 4, 128, 1464, 244, 0)}

LISTED = "protect.domains=[" + ", ".join(RARE) + "]"
CARRIERS = [LISTED, "protect.carriers={" + ", ".join(f"{d}: {e}" for d, e in RARE.items()) + "}"]
NO_CARRIERS = [LISTED, "protect.exempt=false", "protect.gate_coeff=0"]
BIAS = ["moe.balance=[expert_bias]"]


def absent(replay=0.002, anchor=1000):
    """What acts while rare domains are absent. These were the defaults when the experiment was registered."""
    return [f"protect.replay={replay}", "protect.replay_sequences=8", f"protect.anchor={anchor}"]


A_KINDS = {"loss_free": BIAS, "aux_global": ["moe.balance=[global_aux_loss]"], "quantile": ["moe.balance=[quantile_balancing]"],
           "carriers": BIAS + CARRIERS}

# name: what, the kind of A, options in B and C
ARMS = {
    "ours": ("carriers, I1 I2 I4 I5 I6", "carriers", BIAS + CARRIERS + absent()),
    "ours_no_i5": ("ours without replay", "carriers", BIAS + CARRIERS + absent(replay=0)),
    "ours_no_i4": ("ours without anchor", "carriers", BIAS + CARRIERS + absent(anchor=0)),
    "ours_anchor_100": ("ours with a weaker anchor: 100", "carriers", BIAS + CARRIERS + absent(anchor=100)),
    "ours_anchor_10": ("ours with a weaker anchor: 10", "carriers", BIAS + CARRIERS + absent(anchor=10)),
    "ewc": ("no carriers, anchor alone", "loss_free", BIAS + NO_CARRIERS + absent(replay=0)),
    "replay": ("no carriers, replay alone", "loss_free", BIAS + NO_CARRIERS + absent(anchor=0)),
    "loss_free": ("selection bias, nothing protected", "loss_free", BIAS),
    "gate_balancer": ("carriers in A; nothing protected in B, the balancer takes them", "carriers", BIAS),
    "mimic": ("carriers in A, overwritten in B with the busiest expert", "carriers", BIAS),
    "ours_no_i1": ("ours without exemption in B", "carriers", BIAS + CARRIERS + absent() + ["protect.exempt=false"]),
    "ours_no_i6": ("ours without gate: no carriers are named", "loss_free", BIAS + [LISTED, "protect.gate_coeff=0"] + absent()),
    "aux_global": ("auxiliary loss 0.01, counts of the batch; nothing protected", "aux_global", A_KINDS["aux_global"]),
    "quantile": ("quantile balancing; nothing protected", "quantile", A_KINDS["quantile"]),
}
COMPARED = {"small": list(ARMS), "proof": ["ours", "loss_free", "gate_balancer", "mimic"]}


class Transformers:
    """One arm with one seed: row(arm, seed) trains what is not there yet, and gives its row."""

    def __init__(self, size, muster, out, steps, rare_share, options):
        layers, width, heads, F, *usual = SIZES[size]
        self.muster, self.out, self.layers, self.steps = muster, pathlib.Path(out).resolve(), layers, steps or usual
        self.rare_share, self.options, self.recovered = rare_share, options, ("mimic",) if size == "proof" else ("mimic", "gate_balancer")
        a, b, c = self.steps
        common, weight = {d: 1 for d in texts.COMMON}, texts.COMMON_DOCUMENTS / texts.RARE_DOCUMENTS / (1 - 3 * rare_share - 0.002)
        mixed = common | {d: rare_share * weight for d in RARE} | {d: 0.001 * weight for d in ("decoy", "near-copy")}
        mix = lambda weights: "{" + ", ".join(f"{d}: {w:g}" for d, w in weights.items()) + "}"
        phases = f"data.phases=[{{until_step: {a}, mix: {mix(mixed)}}}, {{until_step: {a + b}, mix: {mix(common)}}}, {{mix: {mix(mixed)}}}]"
        self.same = [f"model.hidden_size={width}", f"model.num_layers={layers}", f"model.num_heads={heads}", f"model.num_kv_heads={heads}", "model.head_dim=0", "model.max_seq_len=64",
                     "moe.num_experts=16", f"moe.moe_ffn_hidden_size={F}", "moe.score_func=sigmoid", "moe.aux_loss_coeff=0.01", "moe.z_loss_coeff=0",
                     "train.global_batch_size=32", "train.seq_len=64", "train.threads=1", "train.eval_sequences=32", "data.val_fraction=0.15", "optim.lr=1e-3", f"optim.warmup_steps={min(200, a // 7)}", "optim.schedule=constant", "checkpoint.every=0", "checkpoint.keep=1", "log.every=50", "log.progress=quiet",
                     "log.tensorboard=false", phases, *options]
        self.locks = {}
        self.guard = threading.Lock()

    def lock(self, key):
        with self.guard:
            return self.locks.setdefault(key, threading.Lock())

    # ------------------------------------------------------------------ commands
    def call(self, *arguments, refusals=()):
        """What it printed; None where it was refused with such an exit code. Adds the processor time to FOLDER/cpu of a training run."""
        process = subprocess.Popen([self.muster, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if arguments[0] == "train":
            folder = pathlib.Path(next(a for a in arguments if str(a).startswith("run.dir="))[8:])
            with open(folder / "cpu", "a", encoding="utf-8") as file:
                file.write(f"{used.ru_utime + used.ru_stime:.3f}\n")
        if code in refusals:
            return None
        if code:
            raise RuntimeError(f"muster {' '.join(map(str, arguments))}: exit code {code}: {printed.strip()[-600:]}")
        return printed

    def corpus(self, seed):
        folder = self.out / "corpus" / f"seed-{seed}"
        with self.lock(folder):
            if not (folder / "done").exists():
                texts.write(folder, seed)
        return folder

    def train(self, folder, seed, until, options, source=None):
        """Trains until that step, if it was not; a folder without `done` is resumed."""
        if not (folder / "done").exists():
            fork = ["--fork", source] if source else []
            train = "data.train=[" + ", ".join(f"{{domain: {d}, path: '{self.corpus(seed) / d}.jsonl'}}" for d in texts.DOMAINS) + "]"
            every = f"train.eval_every={max((self.steps[2] if self.steps[2] and until == sum(self.steps) else self.steps[0] // 3) // 8, 1)}"
            folder.mkdir(parents=True, exist_ok=True)
            self.call("train", ROOT / "configs" / "synthetic.yaml", f"run.dir={folder}", f"run.seed={seed}", f"train.steps={until}", train, every, *self.same,
                      *options, *fork)
            (folder / "done").touch()
        return folder

    def surgery(self, folder, last, steps):
        """Applies commands one after another: (arguments, source) -> next source. Folders in between go."""
        if not folder.exists():
            parts = [folder.with_name(f"{folder.name}.part{i}") for i in range(len(steps) - 1)] + [folder.with_name(folder.name + ".whole")]
            for part in parts:
                shutil.rmtree(part, ignore_errors=True)
            for arguments, part in zip(steps, parts):
                self.call("expert", arguments[0], last, *arguments[1:], "--force", "--out", part)
                last = part
            parts[-1].rename(folder)
            for part in parts[:-1]:
                shutil.rmtree(part)
        return folder

    def cells(self):
        return [(layer, domain, expert) for layer in range(self.layers) for domain, expert in RARE.items()]

    # ------------------------------------------------------------------ the three phases
    def phase_a(self, kind, seed):
        folder = self.out / "runs" / f"seed-{seed}" / f"A-{kind}"
        with self.lock(folder):
            self.train(folder, seed, self.steps[0], A_KINDS[kind])
            if kind == "carriers" and not (folder / "archived").exists():
                for layer, _, expert in self.cells():
                    self.call("expert", "archive", folder, f"{layer}:{expert}")
                (folder / "archived").touch()
        return folder

    def overwrite(self, folder, seed, source):
        """10 % into B: every idle carrier becomes a copy of its layer's busiest expert."""
        before = self.train(folder.with_name(folder.name + "-before"), seed, self.steps[0] + max(self.steps[1] // 10, 1),
                            BIAS + CARRIERS + absent(0, 0), source)
        load = load_of(lines_of(before), self.layers, 0)
        busiest = [max((e for e in range(16) if e not in RARE.values()), key=lambda e, at=at: at[e]) for at in load]
        return self.surgery(folder.with_name(folder.name + "-copied"), before,
                            [("duplicate", f"{layer}:{busiest[layer]}", "--slot", f"{layer}:{expert}") for layer, _, expert in self.cells()])

    def recovery(self, folder, a):
        """From the end of B: the archived carriers of all layers restored, then each of them healed: 65, not accepted; 78, the record names no domain that needs it."""
        archive = lambda layer, expert: a / "archive" / f"layer_{layer:02d}" / f"expert_{expert:03d}" / f"step-{self.steps[0]:08d}.h5"
        back = lambda layer, expert: ("restore", f"{layer}:{expert}", "--from", archive(layer, expert))
        restored = self.surgery(folder.with_name(folder.name + "-restored"), folder, [back(layer, expert) for layer, _, expert in self.cells()])
        row = {f"restored_{k}": v for k, v in summary(self.evaluate(restored)).items()}
        for layer in range(self.layers):
            only = self.surgery(folder.with_name(f"{folder.name}-restored-{layer}"), folder, [back(layer, e) for e in RARE.values()])
            row[f"restored_only_layer_{layer}"] = summary(self.evaluate(only))["rare"]
        healed, accepted = restored, 0
        for layer, _, expert in self.cells():
            part = folder.with_name(f"{folder.name}-healed-{layer}-{expert}")
            shutil.rmtree(part, ignore_errors=True)
            if self.call("expert", *back(layer, expert)[:1], healed, *back(layer, expert)[1:], "--heal", HEAL_STEPS, "--force", "--out", part, refusals=(65, 78)) is not None:
                healed, accepted = part, accepted + 1
        return row | {f"healed_{k}": v for k, v in summary(self.evaluate(healed)).items()} | {"healed_units": accepted}

    def evaluate(self, folder):
        printed = self.call("eval", folder, "train.eval_sequences=32", "train.threads=1")
        return {m[1]: float(m[2]) for m in re.finditer(r"^  (\S+) +\d+ +\d+ +[0-9.]+% +([0-9.]+) ", printed, re.M)}

    # ------------------------------------------------------------------ a row
    def row(self, arm, seed):
        what, kind, options = ARMS[arm]
        a, b, c = self.steps
        base = self.out / "runs" / f"seed-{seed}"
        first = source = self.phase_a(kind, seed)
        folder = base / f"{arm}-B"
        if arm == "mimic":
            source = self.overwrite(folder, seed, source)
        self.train(folder, seed, a + b, options, source)
        found = {"arm": arm, "seed": seed, "steps_a": a, "steps_b": b, "steps_c": c, "rare_share": self.rare_share, "options": " ".join(self.options)}
        runs = [first, folder]
        if c:
            runs.append(self.train(base / f"{arm}-C", seed, a + b + c, options + ["protect.archive=false"], folder))
        found |= self.measures(runs)
        if arm in self.recovered:
            found |= self.recovery(folder, first)
        return json.dumps(found) + "\n"

    def measures(self, runs):
        curve, best, row = [], {d: math.inf for d in RARE}, {}
        before = self.steps[0] + max(self.steps[1] // 10, 1)
        for name, run in zip("ABC", runs):
            lines = lines_of(run)
            if name == "B" and (run.with_name(run.name + "-before")).exists():
                lines = lines_of(run.with_name(run.name + "-before")) + [line for line in lines if line["step"] > before]
            for line in lines:
                if "val/ce_loss" not in line:
                    continue
                ce = {k[4:-8]: v for k, v in line.items() if k.startswith("val/") and k.endswith("/ce_loss")}
                best = {d: min(best[d], ce[d]) for d in RARE}
                s = summary(ce, best)
                curve.append([line["step"], s["rare"], s["worst"], s["common_excess"], s.get("R", 0)])
            row |= {f"{name}_{k}": v for k, v in s.items()} | {f"{name}_{k}": v for k, v in load_figures(lines, self.layers).items()}
            row |= {f"{name}_{k}": v for k, v in self.knowledge(run, lines).items()}
        cpu = [float(x) for x in (runs[1] / "cpu").read_text(encoding="utf-8").split()]
        trained = self.steps[1] if not runs[1].with_name(runs[1].name + "-before").exists() else self.steps[1] - max(self.steps[1] // 10, 1)
        half = lambda from_step, to: next((p[0] - from_step for p in curve if from_step < p[0] <= to and p[1] >= 0.5), -1)
        a, b, c = self.steps
        return row | {"first_half": half(0, a), "again_half": half(a + b, a + b + c), "cpu_ms_per_step": 1000 * sum(cpu) / trained, "curve": curve}

    def knowledge(self, run, lines):
        """Carriers by layer and domain, as the states of experts say; criticality of the named carriers for their domain, and of the layer's other experts."""
        listed, row, layer = self.call("expert", "list", run), {}, -1
        carriers, decoy, near = [0] * self.layers, 0, 0
        for line in listed.splitlines():
            m = re.match(r"layer (\d+)", line)
            layer = int(m[1]) if m else layer
            m = re.match(r" +\d+ +(?:carrier|dormant) +[0-9.]+ +(\S+)", line)
            if m:
                carriers[layer] += 1
                decoy, near = decoy + (m[1] == "decoy"), near + (m[1] == "near-copy")
        row |= {"carriers": sum(carriers), "carriers_most": max(carriers), "decoy_carriers": decoy, "near_carriers": near}
        names = texts.DOMAINS
        for layer in range(self.layers):
            row[f"carriers_{layer}"] = carriers[layer]
            K = next((line[f"moe/layer_{layer}/criticality"] for line in reversed(lines) if f"moe/layer_{layer}/criticality" in line), None)
            if K is None:
                continue
            of = lambda e, d: K[e * len(names) + names.index(d)]
            row[f"K_carrier_{layer}"] = sum(of(e, d) for d, e in RARE.items()) / len(RARE)
            row[f"K_other_{layer}"] = sum(max(of(o, d) for o in range(16) if o != e) for d, e in RARE.items()) / len(RARE)
        shared = [line for line in lines if "moe/layer_0/domain_specialisation" in line]
        overlaps = [overlap(line[f"moe/layer_{layer}/domain_specialisation"], names.index("near-copy"), names.index(texts.PARENT), len(names))
                    for line in shared for layer in range(self.layers)]
        overlaps = [o for o in overlaps if o is not None]
        if overlaps:
            row["near_overlap"] = sum(overlaps) / len(overlaps)
        return row


# ---------------------------------------------------------------------- numbers of a run
def lines_of(run):
    with open(run / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def known(ce):
    """The share of what there is to know of a domain: 0 with a uniform guess, 1 at the optimum, below 0 where the model is surely wrong."""
    return (REF - ce) / (REF - OPTIMUM)


def summary(ce, best=None):
    rare = [known(ce[d]) for d in RARE]
    shares = [1 / k for k in range(1, 14)]
    common = sum(ce[d] * w for d, w in zip(texts.COMMON, shares)) / sum(shares)
    found = {"rare": sum(rare) / len(rare), "worst": min(rare), "rare_excess": sum(ce[d] - OPTIMUM for d in RARE) / len(RARE), "common_excess": common - OPTIMUM,
             "decoy": known(ce["decoy"]), "near": known(ce["near-copy"])}
    if best:
        R = [(REF - ce[d]) / (REF - best[d]) if REF - best[d] > 0.05 else 0 for d in RARE]
        found |= {"R": sum(R) / len(R), "R_worst": min(R)}
    return found


def load_of(lines, layers, since):
    """Assignments of each expert in the statistics lines after step `since`, a list for each layer."""
    stats = [line for line in lines if "stats/steps" in line and line["step"] > since]
    return [[sum(n) for n in zip(*(line[f"moe/layer_{layer}/load"] for line in stats))] for layer in range(layers)]


def load_figures(lines, layers):
    load = load_of(lines, layers, lines[-1]["step"] - 200)
    vio = [max(at) * len(at) / sum(at) - 1 for at in load if at]
    dead = [line["moe/dead_frac"] for line in lines if "moe/dead_frac" in line][-1]
    return {"max_vio": max(vio), "dead": round(dead * 16 * layers)}


def overlap(specialisation, i, j, domains):
    """Of the experts that two domains use: the common part, 1 where they are the same."""
    a, b = ([row[d] for row in zip(*[iter(specialisation)] * domains)] for d in (i, j))
    if not sum(a) or not sum(b):
        return None
    return sum(min(x / sum(a), y / sum(b)) for x, y in zip(a, b))
