#!/usr/bin/env python3
"""Runs muster and the programs it is measured against in turn and prints the ratios of medians.

    bench/compare.py build/bench PYTHON [OPTION ...]

PYTHON is a Python with PyTorch 2 (and transformers 5 for Hugging Face's model). In each group the programs take
turns, round after round; a figure is the median of the rounds, each of which is the program's median over its
steps. A ratio from one run is what means something; nothing else should run meanwhile, and it says so when
something does. Needs nothing but Python 3.8 itself; without PyTorch, MPI or llm.c their rows are left out.

The peers (--peer, several allowed) are programs like bench/peers/pytorch.py: options --vocab --dim --layers --heads
--ffn --experts --topk --seq --batch --steps --threads, where they can also --compile --dense --bf16 --skew, and a
last line with "params N M ... N tok/s ... peak memory N MiB". What a peer's --help does not name it is not asked for.
"""
import argparse
import array
import contextlib
import dataclasses
import os
import pathlib
import pty
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
EX_USAGE, EX_NOINPUT, EX_UNAVAILABLE = 64, 66, 69

# What is demanded of each ratio and what is hoped for; for memory less is better.
GATES = {
    "fp32": (1.2, 1.5), "compile": (1.1, 1.4), "bf16": (1.3, 2.0), "dense": (1.15, 1.4), "memory": (0.5, 0.35),
    "tax": (0.85, 0.92), "products": (0.85, 0.92), "step": (0.55, 0.7), "experts": (1.0, 1.2),
    "experts, few rows": (1.2, 1.3), "attention": (1.0, 1.3), "data parallel": (0.9, 0.97),
    "expert parallel": (0.85, 0.92), "four ranks": (0.7, 0.9), "llm.c": (5.0, 8.0),
}
LESS_IS_BETTER = {"memory"}

WIDE = "--dim 512 --layers 8 --heads 8 --experts 32 --ffn 256 --topk 4 --seq 512 --batch 4 --steps 7".split()
TINY = "--dim 32 --layers 1 --heads 1 --experts 4 --ffn 32 --topk 2 --seq 16 --batch 8 --steps 5".split()
FINE = "--experts 64 --topk 8 --ffn 128".split()        # as many active parameters as 2 of 8 experts of 512
# GPT-2 124M; a SwiGLU of width 2048 has the parameters of its GELU of 3072, and llm.c pads its vocabulary to 50304
GPT2 = "--dense --tied --vocab 50304 --dim 768 --layers 12 --heads 12 --ffn 1024 --topk 2 --seq 64 --batch 4 --steps 10".split()


class Skip(Exception):
    """Why a program cannot be measured here."""


@dataclasses.dataclass
class Program:
    name: str
    run: object         # () -> {figure: value}; raises Skip
    seconds: float      # what a run takes on two cores, for the estimate of time


@dataclasses.dataclass
class Group:
    name: str
    title: str
    programs: list      # the first is muster's
    rows: object        # (medians {program: {figure: value}}) -> yields Row


@dataclasses.dataclass
class Row:
    what: str
    ours: str
    theirs: str
    ratio: float
    gate: str = ""      # a key of GATES


# ---------------------------------------------------------------------------- programs and their figures

def call(argv, env):
    """Standard output of a program that must end well."""
    done = subprocess.run([str(a) for a in argv], env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Skip(said if done.returncode == EX_UNAVAILABLE else f"{pathlib.Path(str(argv[0])).name} ended with {done.returncode}: {said}")
    return done.stdout


def number(pattern, text):
    found = re.search(pattern, text)
    return float(found.group(1)) if found else None


def training_figures(text):
    """Of one model's training steps, in the words of muster_bench or of a peer."""
    found = {
        "tok/s": number(r"([\d.]+) tok/s", text),
        "MiB": number(r"peak memory ([\d.]+) MiB", text),
        "params": number(r"([\d.]+) M parameters", text) or number(r"params ([\d.]+) ?M", text),
        "tax": number(r"MoE tax: ([\d.]+)", text),
        "peak": number(r"([\d.]+) % of the FMA peak", text),
    }
    if not found["tok/s"]:
        raise Skip("printed no tok/s")
    return {k: v for k, v in found.items() if v is not None}


def attention_figures(text):
    found = re.findall(r"^S (\d+) .*forward and backward ([\d.]+) ms", text, re.M)
    return {int(s): float(ms) for s, ms in found}


def product_figures(text):
    """{(title, line): (GFLOP/s, share of the peak, ratio or None)} of the tables of muster_bench_products."""
    figures, title = {}, ""
    for line in text.splitlines():
        row = re.match(r"  (\S.*?) +([\d.]+) +([\d.]+) %((?: +[\d.]+)*)$", line)
        if row:
            rest = row.group(4).split()
            ratio = float(rest[-1]) if rest else None
            figures[title, row.group(1)] = (float(row.group(2)), float(row.group(3)) / 100, ratio)
        elif line and not line.startswith(" "):
            title = line
    return figures


def median_of(rounds):
    """Figure by figure the median of several runs of a program; of tuples, place by place."""
    def middle(values):
        if isinstance(values[0], tuple):
            return tuple(middle([v[i] for v in values]) for i in range(len(values[0])))
        return None if None in values else statistics.median(values)
    return {key: middle([r[key] for r in rounds]) for key in rounds[0]}


# ---------------------------------------------------------------------------- the machine

def busy_share():
    """Share of the machine's cores that others keep busy, over a quarter of a second."""
    def snapshot():
        with open("/proc/stat") as f:
            ticks = [int(t) for t in f.readline().split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]
    try:
        before = snapshot()
        time.sleep(0.25)
        after = snapshot()
    except OSError:
        return 0.0
    return 1 - (after[1] - before[1]) / max(after[0] - before[0], 1)


class Setting:
    """What the groups are made from: folders, the Python and its peers, the environment of each kind of program."""

    def __init__(self, o):
        self.o, self.notes = o, []
        self.bench = pathlib.Path(o.build)
        if not os.access(self.bench / "muster_bench", os.X_OK):
            raise FileNotFoundError(f"{self.bench} has no muster_bench: name the folder bench/ of a build")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
        self.python_env = dict(self.env, OMP_NUM_THREADS=str(o.threads), TOKENIZERS_PARALLELISM="false")
        self.modules = self.find_modules()
        self.peers = self.find_peers()
        self.mpirun = self.find_mpirun()

    def find_modules(self):
        probe = "import importlib.util as u; print(*[m for m in ('torch', 'transformers') if u.find_spec(m)])"
        try:
            found = call([self.o.python, "-c", probe], self.python_env).split()
        except (OSError, Skip) as e:
            self.notes.append(f"{self.o.python} does not run ({e}): no rows with PyTorch")
            return set()
        if "torch" not in found and not self.o.peer:
            self.notes.append(f"{self.o.python} has no PyTorch: its rows are left out")
        return set(found)

    def find_peers(self):
        """{name: (file, its --help)}"""
        files = [pathlib.Path(p) for p in self.o.peer]
        if not files and "torch" in self.modules:
            files = [HERE / "peers/pytorch.py"]
            if "transformers" in self.modules:
                files.append(HERE / "peers/huggingface.py")
            else:
                self.notes.append(f"{self.o.python} has no transformers: no rows with Hugging Face's model")
        peers = {}
        for f in files:
            try:
                peers[f.stem] = (f, call([self.o.python, f, "--help"], self.python_env))
            except (OSError, Skip) as e:
                self.notes.append(f"{f} is left out: {e}")
        return peers

    def find_mpirun(self):
        """The start of a command line that takes the number of ranks next, or None."""
        path = shutil.which("mpirun")
        if not path:
            self.notes.append("no mpirun: no rows with several ranks")
            return None
        openmpi = "open" in call([path, "--version"], self.env).lower()
        self.mpi_env = dict(self.env)
        if openmpi and os.geteuid() == 0:
            self.mpi_env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        return [path] + (["--oversubscribe"] if openmpi else []) + ["-n"]

    # ---- programs

    def sizes(self, options):
        """The options of a shape; --tiny puts its own sizes in their place, flags stay."""
        if not self.o.tiny:
            return list(options)
        return TINY + [w for i, w in enumerate(options) if w.startswith("--") and (i + 1 == len(options) or options[i + 1].startswith("--"))]

    def ours(self, options=(), seconds=4, one_model="--moe-only", as_it_is=False):
        model = [one_model] if one_model and "--dense" not in options else []
        argv = [self.bench / "muster_bench", *model, "--threads", self.o.threads, *(options if as_it_is else self.sizes(options))]
        return Program("muster", lambda: training_figures(call(argv, self.env)), seconds)

    def peer(self, name, options, flags, seconds):
        file, _ = self.peers[name]
        argv = [self.o.python, file, "--vocab", 257, "--threads", self.o.threads, *self.sizes(options), *flags]
        return Program(" ".join([name, *flags]), lambda: training_figures(call(argv, self.python_env)), seconds)

    def those_that_can(self, flags):
        return [n for n, (_, text) in self.peers.items() if all(re.search(re.escape(f) + r"\b", text) for f in flags)]

    def ranks(self, n, options=()):
        def run():
            argv = [*self.mpirun, n, self.bench / "muster_bench", "--moe-only", "--threads", max(self.o.threads // n, 1), *self.sizes([]), *options]
            text = call(argv, self.mpi_env)
            if f"{n} ranks x" not in text:
                raise Skip("this build has no MPI, or mpirun is another one's")
            return training_figures(text)
        return Program(f"{n} ranks" + (" ep " + options[-1] if options else ""), run, 6)


# ---------------------------------------------------------------------------- groups and their rows

def rate(program, figures):
    return f"{figures['tok/s']:,.0f} tok/s"


def against_best(what, gate, medians, names):
    """Ours over the fastest of these programs, those that ran."""
    names = [n for n in names if n in medians]
    if names:
        best = max(names, key=lambda n: medians[n]["tok/s"])
        yield Row(what, rate("muster", medians["muster"]), f"{rate(best, medians[best])}, {best}",
                  medians["muster"]["tok/s"] / medians[best]["tok/s"], gate)


def memory_row(what, medians, names):
    """Peak memory beyond weights, gradients and both moments: 16 bytes a parameter."""
    def beyond(f):
        return f["MiB"] - 16e6 * f["params"] / 2**20 if "MiB" in f and "params" in f else None
    found = {n: beyond(medians[n]) for n in names if n in medians and beyond(medians[n])}
    ours = beyond(medians["muster"])
    if found and ours:
        best = min(found, key=found.get)
        yield Row(what, f"{ours:,.0f} MiB", f"{found[best]:,.0f} MiB, {best}", ours / found[best], "memory")


def training_group(s, name, title, options, flags, gate, seconds, compiled=False, memory=False):
    """muster and every peer that can take these flags on one shape."""
    plain = [s.peer(n, options, flags, seconds[1]) for n in s.those_that_can(flags)]
    faster = [s.peer(n, options, [*flags, "--compile"], seconds[2]) for n in s.those_that_can([*flags, "--compile"])] if compiled else []

    def rows(medians):
        yield from against_best(title, gate, medians, [p.name for p in plain])
        yield from against_best(title + ", compiled peer", "compile", medians, [p.name for p in faster])
        if name == "fp32" and "peak" in medians["muster"]:
            yield Row(title + ", a whole step", rate("", medians["muster"]), "the FMA peak", medians["muster"]["peak"] / 100, "step")
        if memory:
            yield from memory_row(title + ", memory beyond state", medians, [p.name for p in plain])
    steps = [] if "--steps" in options else ["--steps", "12"]
    options = [*options, *steps]
    return Group(name, title, [s.ours([*options, *flags], seconds[0]), *plain, *faster], rows)


def tax_group(s):
    shapes = {"bench shape": [], "wide shape": WIDE, "64 experts, top-8": FINE}
    programs = [s.ours(v, t, None) for v, t in zip(shapes.values(), (7, 16, 7))]
    for p, shape in zip(programs, shapes):
        p.name = shape

    def rows(medians):
        for shape, f in medians.items():
            yield Row(f"MoE tax, {shape}", rate("", f), "its dense model", f["tax"], "tax")
    return Group("tax", "MoE tax", programs, rows)


def ranks_group(s):
    one, two, ep, four = s.ours(["--steps", "15"], 5), s.ranks(2), s.ranks(2, ["--ep", "2"]), s.ranks(4)
    threads = s.o.threads

    def rows(m):
        for program, base, what, gate in ((two, one, f"2 ranks x {threads // 2 or 1} against 1 x {threads}, data parallel", "data parallel"),
                                          (ep, one, f"2 ranks x {threads // 2 or 1} against 1 x {threads}, ep 2", "expert parallel"),
                                          (four, two, f"4 ranks against 2, data parallel, on {threads} cores", "four ranks")):
            if program.name in m and base.name in m:
                yield Row(what, rate("", m[program.name]), f"{rate('', m[base.name])}, muster",
                          m[program.name]["tok/s"] / m[base.name]["tok/s"], gate)
    return Group("ranks", "ranks", [one, two, ep, four], rows)


def attention_group(s):
    options = ["--threads", s.o.threads, *(["--seq", 64, "--tokens", 64, "--rounds", 3] if s.o.tiny else [])]
    ours = Program("muster", lambda: attention_figures(call([s.bench / "muster_bench_attention", *options], s.env)), 3)
    programs = [ours]
    if "torch" in s.modules:
        argv = [s.o.python, HERE / "peers/attention.py", *options]
        programs.append(Program("scaled_dot_product_attention", lambda: attention_figures(call(argv, s.python_env)), 8))

    def rows(m):
        for S, ms in m["muster"].items():
            for other in programs[1:]:
                if S in m.get(other.name, {}):
                    yield Row(f"attention, forward and backward, sequence {S}", f"{ms:.2f} ms", f"{m[other.name][S]:.2f} ms, {other.name}",
                              m[other.name][S] / ms, "attention")
    return Group("attention", "attention", programs, rows)


def products_group(s, bf16):
    options = ["--threads", s.o.threads, *(["--bf16"] if bf16 else []),
               *("--dim 32 --ffn 32 --experts 2 --rows 8 --ms 1 --rounds 1".split() if s.o.tiny else ["--rounds", 5, "--ms", 5])]
    program = Program("muster", lambda: product_figures(call([s.bench / "muster_bench_products", *options], s.env)), 15)

    def lowest(what, found, gate):
        """The line of the table in which muster stands worst against the best library."""
        rated = [(text, f) for text, f in found if f[2]]
        if rated:
            text, worst = min(rated, key=lambda f: f[1][2])
            yield Row(what, f"{worst[0]:.3g} GFLOP/s", f"{worst[0] / worst[2]:.3g} GFLOP/s, best library, {text}", worst[2], gate)

    def slowest(what, found, gate):
        text, low = min(found, key=lambda f: f[1][1])
        yield Row(what, f"{low[0]:.3g} GFLOP/s", f"FMA peak, {text}", low[1], gate)

    def rows(m):
        tables, kind = {}, ", bf16" if bf16 else ""
        for (title, text), figures in m["muster"].items():
            tables.setdefault(title, []).append((text.replace(" rows an expert", " rows"), figures))
        for title, found in tables.items():
            if title == "products":
                yield from slowest("products of a step" + kind, found, "" if bf16 else "products")
                yield from lowest("products of a step" + kind, found, "experts")
                continue
            few = [(text, f) for text, f in found if int(text.split()[0]) < 8]
            many = found[len(few):]
            yield from lowest(f"{title}, 1 to 4 rows{kind}", few, "experts, few rows")
            yield from lowest(f"{title}, 8 to 256 rows{kind}", many, "experts")
            yield from slowest(f"{title}, 8 to 256 rows{kind}", many, "")
    return Group("bf16" if bf16 else "products", "products" + (", bf16" if bf16 else ""), [program], rows)


# ---------------------------------------------------------------------------- llm.c

def write_llmc_files(folder):
    """What train_gpt2 wants to find: weights (random; one stretch of numbers again and again, which takes the same
    time) and tokens. Header: 256 int32; weights: magic, version 3, positions, vocabulary, layers, heads, width,
    padded vocabulary; tokens: magic, version 1, count, then uint16."""
    T, V, L, H, C, padded = 1024, 50257, 12, 12, 768, 50304
    count = padded * C + T * C + L * (4 * C + 3 * C * C + 3 * C + C * C + C + 4 * C * C + 4 * C + 4 * C * C + C) + 2 * C
    draw = random.Random(1)
    stretch = array.array("f", (draw.uniform(-0.03, 0.03) for _ in range(1 << 17)))
    with open(folder / "gpt2_124M.bin", "wb") as f:
        array.array("i", [20240326, 3, T, V, L, H, C, padded] + 248 * [0]).tofile(f)
        for at in range(0, count, len(stretch)):
            stretch[:count - at].tofile(f)
    data = folder / "dev/data/tinyshakespeare"
    data.mkdir(parents=True)
    tokens = array.array("H", (draw.randrange(V) for _ in range(1 << 15)))
    for kind in "train", "val":
        with open(data / f"tiny_shakespeare_{kind}.bin", "wb") as f:
            array.array("i", [20240520, 1, len(tokens)] + 253 * [0]).tofile(f)
            tokens.tofile(f)


def llmc_figures(program, folder, env, steps):
    """Steps of train_gpt2, 4 sequences of 64 tokens, then it is stopped (it would go on for forty). It runs on a
    pseudo-terminal so that its lines come one by one."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([str(program)], cwd=folder, env=env, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    took, said = [], ""
    with open(ours, errors="replace") as lines, contextlib.suppress(OSError):      # its end reads as an error
        for said in lines:
            found = re.match(r"step \d+: .*took ([\d.]+) ms", said)
            took += [float(found.group(1))] if found else []
            if len(took) == steps:
                break
    child.kill()
    child.wait()
    if len(took) < steps:
        raise Skip(f"train_gpt2 stopped: {said.strip()}")
    return {"tok/s": 4 * 64 / statistics.median(took[2:]) * 1e3}


def llmc_group(s, folder):
    checkout = pathlib.Path(s.o.llmc).resolve()
    call(["make", "-C", checkout, "train_gpt2"], s.env)
    write_llmc_files(folder)
    env = dict(s.env, OMP_NUM_THREADS=str(s.o.threads))
    theirs = Program("llm.c", lambda: llmc_figures(checkout / "train_gpt2", folder, env, 3 if s.o.tiny else 8), 15)
    title = "dense GPT-2 124M, 4 x 64 tokens"
    return Group("llmc", title, [s.ours(GPT2, 6, as_it_is=True), theirs], lambda m: against_best(title, "llm.c", m, ["llm.c"]))


# ---------------------------------------------------------------------------- running, and the table

NAMES = ["fp32", "wide", "skew", "dense", "bf16", "tax", "ranks", "attention", "products", "llmc"]


def make_groups(s, wanted, folder):
    for name in wanted:
        if name == "fp32":
            yield training_group(s, name, "MoE fp32", [], [], "fp32", (4, 9, 25), compiled=True, memory=True)
        elif name == "wide":
            yield training_group(s, name, "MoE fp32, wide", WIDE, [], "fp32", (9, 24, 50), compiled=True, memory=True)
        elif name == "skew":
            yield training_group(s, name, "MoE fp32, skewed routing", [], ["--skew"], "fp32", (4, 9, 25), compiled=True)
        elif name == "dense":
            yield training_group(s, name, "dense fp32", [], ["--dense"], "dense", (4, 8, 0))
        elif name == "bf16":
            yield training_group(s, name, "MoE bf16", [], ["--bf16"], "bf16", (3, 9, 0))
            yield training_group(s, name, "MoE bf16, wide", WIDE, ["--bf16"], "bf16", (7, 22, 0))
            yield training_group(s, name, "MoE bf16, skewed routing", [], ["--bf16", "--skew"], "bf16", (3, 9, 0))
            yield products_group(s, True)
        elif name == "tax":
            yield tax_group(s)
        elif name == "ranks" and s.mpirun:
            yield ranks_group(s)
        elif name == "attention":
            yield attention_group(s)
        elif name == "products":
            yield products_group(s, False)
        elif name == "llmc" and s.o.llmc:
            try:
                yield llmc_group(s, folder)
            except Skip as e:
                s.notes.append(f"llm.c is left out: {e}")


class Progress:
    """One line a run, with the time that is left by the estimates and by how wrong they have been."""

    def __init__(self, seconds):
        self.planned, self.done, self.start, self.busy, self.runs = seconds, 0.0, time.time(), 0, 0

    def before(self):
        self.runs += 1
        share = busy_share()
        if share > 0.15:
            self.busy += 1
            say(f"  warning: others keep {100 * share:.0f} % of this machine busy")

    def after(self, program, text):
        self.done += program.seconds
        took = time.time() - self.start
        left = (self.planned - self.done) * took / max(self.done, 1)
        say(f"  {int(took) // 60:3d}:{int(took) % 60:02d}, about {left / 60:.0f} min left  {program.name}: {text}")


def say(text):
    print(text, file=sys.stderr, flush=True)


def run_group(group, rounds, progress, notes):
    """Rows of a group: its programs in turn. One that cannot run is left out, with a line why."""
    results, absent = {p.name: [] for p in group.programs}, set()
    say(f"{group.name}: {group.title}")
    for _ in range(rounds):
        for p in group.programs:
            if p.name in absent or group.programs[0].name in absent:
                progress.done += p.seconds
                continue
            try:
                progress.before()
                figures = p.run()
                results[p.name].append(figures)
                progress.after(p, ", ".join(f"{v:.6g} {k}" for k, v in figures.items() if isinstance(v, float) and isinstance(k, str)) or "done")
            except (Skip, OSError) as e:
                absent.add(p.name)
                notes.append(f"{group.title}: {p.name} is left out: {e}")
                progress.after(p, f"left out: {e}")
    medians = {name: median_of(r) for name, r in results.items() if r and name not in absent}
    return list(group.rows(medians)) if group.programs[0].name in medians else []


def verdict(row, judged):
    if not judged or row.gate not in GATES:
        return "", "", ""
    gate, goal = GATES[row.gate]
    sign = -1 if row.gate in LESS_IS_BETTER else 1
    word = "goal" if sign * row.ratio >= sign * goal else "pass" if sign * row.ratio >= sign * gate else "short"
    return f"{gate:g}", f"{goal:g}", word


def table(rows, judged):
    """Lines of the table. The last column: goal (reached), pass (the gate, not the goal) or short (of the gate)."""
    return [("what", "muster", "against", "ratio", "gate", "goal", "")] + [
        (r.what, r.ours, r.theirs, f"{r.ratio:.3f}" if r.ratio >= 0.1 else f"{r.ratio:.6f}", *verdict(r, judged)) for r in rows]


def print_table(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(7)]
    for line in lines:
        print("  ".join(c.rjust(w) if i in (3, 4, 5) else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip())


def markdown(lines, notes):
    head, *lines = lines
    text = ["| " + " | ".join(head) + " |", "| --- | --- | --- | ---: | ---: | ---: | --- |"]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(text + [""] + [f"- {n}" for n in notes]) + "\n"


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"compare.py: {message}\n")


def options():
    p = Parser(prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("build", metavar="BUILD/bench", help="the folder with muster_bench")
    p.add_argument("python", metavar="PYTHON", help="a Python with PyTorch")
    p.add_argument("--peer", action="append", default=[], metavar="FILE.py", help="measure against this program instead of those in bench/peers")
    p.add_argument("--llmc", metavar="CHECKOUT", help="a checkout of llm.c: adds its row (builds train_gpt2 there, writes 500 MB to a temporary folder)")
    p.add_argument("--rounds", type=int, default=3, help="rounds in turn (3)")
    p.add_argument("--only", default="", metavar="GROUP,...", help="some of " + ", ".join(NAMES))
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (all cores)")
    p.add_argument("--markdown", metavar="FILE", help="write the table there too")
    p.add_argument("--tiny", action="store_true", help="small shapes, to see that all runs: figures mean nothing")
    o = p.parse_args()
    unknown = [g for g in o.only.split(",") if g and g not in NAMES]
    if unknown or o.rounds < 1 or o.threads < 1:
        p.error(f"no such group: {', '.join(unknown)}" if unknown else "--rounds and --threads are whole numbers from 1 on")
    o.only = [g for g in NAMES if g in o.only.split(",")] if o.only else NAMES
    return o


def main():
    o = options()
    try:
        s = Setting(o)
    except FileNotFoundError as e:
        say(f"compare.py: {e}")
        return EX_NOINPUT
    rows = []
    with tempfile.TemporaryDirectory(prefix="muster-compare-") as folder:
        groups = list(make_groups(s, o.only, pathlib.Path(folder)))
        progress = Progress(o.rounds * sum(p.seconds for g in groups for p in g.programs))
        for note in s.notes:
            say(note)
        say(f"{sum(len(g.programs) for g in groups)} programs, {o.rounds} rounds, {o.threads} threads: about {progress.planned / 60:.0f} minutes on two cores")
        try:
            for g in groups:
                rows += run_group(g, o.rounds, progress, s.notes)
        except KeyboardInterrupt:
            s.notes.append("stopped before the end: the groups that were finished are above")
    if progress.busy:
        s.notes.append(f"others were busy on this machine before {progress.busy} of {progress.runs} runs: measure again alone")
    say("")
    lines = table(rows, not o.tiny)
    if rows:
        print_table(lines)
    for note in s.notes:
        print(note)
    if o.markdown:
        pathlib.Path(o.markdown).write_text(markdown(lines, s.notes))
    return 0 if rows else EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
