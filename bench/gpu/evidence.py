#!/usr/bin/env python3
"""What can be said of the CUDA kernels without a GPU: tables in docs/performance.md. Nothing in them is timed.

    bench/gpu/evidence.py BUILD [--nvcc NVCC] [--page FILE] [--all]

BUILD is a build folder of muster with its tests, gcc and an optimised build (the emulation of CUDA is part of them). It
  - compiles kernels/cuda/*.cu for sm_80 and sm_90 and reads registers, spills and shared memory from ptxas,
  - runs BUILD/tests/cuda_on_host/muster_evidence, which counts what the kernels move and how,
  - trains a small model on the emulation and counts launches and waits of a step,
  - computes the time that data and arithmetic of an MoE layer need at least on an H100,
and replaces what stands between the two marks of the page. --all prints ptxas' figures of every kernel instead.
Exit: 0 done; 1 a hot kernel spills, or something could not be read; 66 there is no nvcc or no build."""
import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("<!-- evidence: made by bench/gpu/evidence.py -->", "<!-- end of evidence -->")
ARCHITECTURES = ("sm_80", "sm_90")

# A multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; the units in which
# registers and shared memory are handed out are those of the toolkit's cuda_occupancy.h.
Limits = namedtuple("Limits", "warps blocks registers shared")
LIMITS = {"sm_80": Limits(64, 32, 65536, 164 * 1024), "sm_90": Limits(64, 32, 65536, 228 * 1024)}
WARP, SCHEDULERS, REGISTER_UNIT, SHARED_UNIT, SHARED_OF_SYSTEM = 32, 4, 256, 128, 1024

# H100 SXM as measured, shared/docs: a copy, and a bf16 product of 8192 x 8192 matrices by cuBLAS.
BANDWIDTH, PRODUCT = 3.0e12, 794e12
LAYERS = [(40960, 768, 256, 128, 8), (40960, 768, 1024, 32, 2), (24576, 1536, 256, 128, 8), (24576, 1536, 1024, 32, 2),
          (32768, 4096, 256, 256, 16), (32768, 4096, 1024, 64, 4), (32768, 4096, 2048, 64, 4)]

STEP = """\
run: {dir: run, seed: 7}
model: {hidden_size: 32, num_layers: 2, num_heads: 2, num_kv_heads: 1, max_seq_len: 32}
moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 16}
data: {train: [{domain: a, path: synthetic}]}
train: {global_batch_size: 8, seq_len: 32, eval_every: 0, threads: 1, device: cuda}
checkpoint: {every: 0}
log: {every: 1, progress: quiet}
"""


class Failed(Exception):
    pass


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode:
        raise Failed(f"exit {done.returncode} from {' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout, done.stderr


# ---------------------------------------------------------------- what ptxas says
def without_parameters(name):
    """"void f<float, 2>(long, float*)" -> "f<float, 2>": up to the parenthesis that no angle bracket holds."""
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0 and not name.startswith("(anonymous", i):
            name = name[:i]
            break
    return re.sub(r"^void ", "", name)


def ptxas(nvcc):
    """{kernel: {architecture: (registers, spilled bytes, static shared bytes)}}, {kernel: its file}"""
    kernels, files = {}, {}
    for source in sorted((ROOT / "kernels/cuda").glob("*.cu")):
        for architecture in ARCHITECTURES:
            _, text = run(nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "-I", ROOT, "-Xptxas", "-v", "-cubin", "-o", os.devnull,
                          source)
            pattern = (r"Compiling entry function '(\S+)' for '\w+'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                       r"(\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n")
            found = re.findall(pattern, text, re.S)
            names, _ = run("c++filt", input="\n".join(f[0] for f in found))
            for name, (_, _, stores, loads, registers, rest) in zip(names.splitlines(), found):
                name = without_parameters(name)
                shared = re.search(r"(\d+) bytes smem", rest)
                kernels.setdefault(name, {})[architecture] = (int(registers), int(stores) + int(loads),
                                                              int(shared[1]) if shared else 0)
                files[name] = source.name
    return kernels, files


def occupancy(architecture, threads, registers, shared):
    """Share of a multiprocessor's warps that can be resident."""
    up = lambda n, unit: -(-n // unit) * unit
    limit, warps = LIMITS[architecture], -(-threads // WARP)
    by_registers = limit.registers // SCHEDULERS // up(registers * WARP, REGISTER_UNIT) * SCHEDULERS // warps
    by_shared = limit.shared // up(shared + SHARED_OF_SYSTEM, SHARED_UNIT)
    return min(limit.warps // warps, limit.blocks, by_registers, by_shared) * warps / limit.warps


# ---------------------------------------------------------------- what the emulation counts
def counted(build):
    program = build / "tests/cuda_on_host/muster_evidence"
    return json.loads(run(program, "cuda-bf16")[0])["calls"]


def report(path):
    """launches, waits of mu_emulation_report"""
    lines = path.read_text().splitlines()
    launches = sum(int(line.split()[-10]) for line in lines[1:-1])
    return launches, int(re.fullmatch(r"host waited (\d+) times", lines[-1])[1])


def step(build, dtype):
    """launches, waits of one training step: those of six steps without those of three"""
    program, of = build / "tests/muster_on_host", {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "step.yaml").write_text(STEP)
        for steps in (3, 6):
            to = Path(folder) / f"report-{steps}"
            run(program, "train", "step.yaml", f"run.dir=run-{steps}", f"train.steps={steps}", f"train.dtype={dtype}", cwd=folder,
                env={**os.environ, "MUSTER_EMULATED_REPORT": str(to)})
            of[steps] = report(to)
    return [(of[6][i] - of[3][i]) / 3 for i in range(2)]


# ---------------------------------------------------------------- what an MoE layer needs at least
def layer_floor(T, d, n, E, K):
    """(FLOPs, bytes) forward, (FLOPs, bytes) backward of experts and combine in bf16. Forward: a row of x is read for each
    expert, hg and hu written, a written and read, rows written, then read and summed. Backward: dy gathered twice, hg and
    hu read, their gradients written and read twice, a written and read, x gathered, rows written, then read and summed;
    gradients of weights are fp32."""
    weights = 3 * d * n * E
    forward = 2 * T * K * (d + 2 * n + n + n + d + d) + 2 * T * d + 2 * weights
    backward = 2 * T * K * (5 * d + 10 * n) + 2 * T * d + (2 + 4) * weights
    return (6 * T * d * n * K, forward), (12 * T * d * n * K, backward)


# ---------------------------------------------------------------- tables
def number(n):
    return f"{n:,.0f}" if n == round(n) else f"{n:,.1f}"


def mib(n):
    return f"{n / 2**20:.3g}"


def short(name):
    return name.replace("__nv_bfloat16", "bf16")


def resources_table(kernels, launches):
    lines = ["| kernel | threads | registers | spilled | shared memory, static + dynamic | occupancy |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, launch in launches.items():
        if name not in kernels:
            raise Failed(f"the emulation ran {name}, which ptxas does not know")
        threads, dynamic = launch["threads"] // launch["blocks"], launch["dynamic_shared"]
        of = [kernels[name][a] for a in ARCHITECTURES]
        share = [occupancy(a, threads, r, s + dynamic) for a, (r, _, s) in zip(ARCHITECTURES, of)]
        pair = lambda values: " / ".join(values)
        lines.append(f"| `{short(name)}` | {threads} | {pair([str(r) for r, _, _ in of])} | {pair([str(b) for _, b, _ in of])} | "
                     f"{of[-1][2]:,} + {dynamic:,} | {pair([f'{100 * s:.0f} %' for s in share])} |")
    return lines


def counted_table(calls):
    lines = ["| kernel of the list | size | at least, MiB | new, MiB | ratio | asked for, MiB | launches | uncoalesced | bank conflicts |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for call in calls:
        total = lambda field: sum(launch[field] for launch in call["launches"])
        least, new = call["reads"] + call["writes"], total("read_footprint") + total("written_footprint")
        asked = 32 * (total("read_sectors") + total("written_sectors"))
        conflicts = f"{number(total('bank_conflicts'))} of {number(total('shared_accesses'))}" if total("shared_accesses") else "-"
        lines.append(f"| `{call['kernel']}` | {call['shape']} | {mib(least)} | {mib(new)} | {new / least:.2f} | {mib(asked)} | "
                     f"{total('launches')} | {number(total('uncoalesced'))} of {number(total('accesses'))} | {conflicts} |")
    return lines


def floor_table():
    lines = ["| T, d, n, E, K | | TFLOP | GB | arithmetic, ms | data, ms | floor, ms | TFLOP/s at the floor |",
             "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for shape in LAYERS:
        for way, (flops, data) in zip(("forward", "backward"), layer_floor(*shape)):
            arithmetic, moving = flops / PRODUCT, data / BANDWIDTH
            floor = max(arithmetic, moving)
            name = ", ".join(map(str, shape)) if way == "forward" else ""
            lines.append(f"| {name} | {way} | {flops / 1e12:.2f} | {data / 1e9:.2f} | {1e3 * arithmetic:.2f} | {1e3 * moving:.2f} | "
                         f"**{1e3 * floor:.2f}** | {flops / floor / 1e12:.0f} |")
    return lines


def all_table(kernels, files):
    lines = ["| file | kernel | registers | spilled | static shared |", "| --- | --- | ---: | ---: | ---: |"]
    for name in sorted(kernels, key=lambda k: (files[k], k)):
        of = [" / ".join(str(kernels[name][a][i]) for a in ARCHITECTURES) for i in range(3)]
        lines.append(f"| `{files[name]}` | `{short(name)}` | {of[0]} | {of[1]} | {of[2]} |")
    return lines


def summary(kernels):
    spills = sorted(short(k) for k, of in kernels.items() if any(s for _, s, _ in of.values()))
    most = max(r for of in kernels.values() for r, _, _ in of.values())
    return (f"{len(kernels)} kernels (each choice of types and sizes is one); most registers: {most}; with spills: "
            + (", ".join(f"`{s}`" for s in spills) if spills else "none") + ".")


def page_text(nvcc, kernels, calls, steps):
    launches = {}
    for call in calls:
        for launch in call["launches"]:
            launches.setdefault(launch["name"], launch)
    version = re.search(r"release ([\d.]+)", run(nvcc, "--version")[0])[1]
    ratio = {c["kernel"]: c for c in calls}
    text = [f"Counted and computed on {datetime.date.today()}, **nothing here was timed**: ptxas of CUDA {version}; the emulation of "
            "`tests/cuda_on_host`, bf16. `bench/gpu/evidence.py BUILD` makes this section.", "",
            "Registers, spilled bytes and occupancy on sm_80 / sm_90 of the kernels that ran below (counted by ptxas; occupancy "
            "computed from the limits of a multiprocessor). All others: " + summary(kernels), ""]
    text += resources_table(kernels, launches)
    text += ["", "What they move, counted: *at least* is every operand once (and what a kernel's first product leaves for its second); "
             "*new* are the bytes that a launch touches for the first time, which must come from memory; *asked for* are all 32-byte "
             "sectors that warps request, most of them served by the caches where it is more than new. An access of a warp is "
             "uncoalesced when it touches more sectors than its bytes need.", ""]
    text += counted_table(calls)
    text += ["", f"A training step (2 layers, 8 experts, top-2, one micro-batch, loss logged every step), counted: "
             + "; ".join(f"{dtype}: {number(n)} launches, the host waits {number(w)} times" for dtype, (n, w) in steps.items()) + ".", "",
             f"The least time of an MoE layer's experts and combine in bf16 on an H100, computed: arithmetic at {PRODUCT / 1e12:.0f} "
             f"TFLOP/s, data at {BANDWIDTH / 1e12:.1f} TB/s (both measured by others), everything read and written once a product.", ""]
    return "\n".join(text + floor_table()) + "\n"


def replace(page, text):
    old = page.read_text()
    first, last = (old.find(m) for m in MARKS)
    if not 0 <= first < last:
        raise Failed(f"{page} has no lines '{MARKS[0]}' and '{MARKS[1]}'")
    page.write_text(old[:first] + MARKS[0] + "\n" + text + old[last:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/performance.md")
    parser.add_argument("--all", action="store_true", help="print ptxas' figures of every kernel, write nothing")
    o = parser.parse_args()
    if not os.access(o.nvcc, os.X_OK) or not o.build.is_dir():
        print(f"evidence.py: error: {o.nvcc} or {o.build} is not there", file=sys.stderr)
        return 66
    build = o.build.resolve()
    try:
        kernels, files = ptxas(o.nvcc)
        if o.all:
            print("\n".join(all_table(kernels, files)), "\n", summary(kernels), sep="\n")
            return 0
        calls = counted(build)
        replace(o.page, page_text(o.nvcc, kernels, calls, {dtype: step(build, dtype) for dtype in ("fp32", "bf16")}))
    except (Failed, OSError) as error:
        print(f"evidence.py: error: {error}", file=sys.stderr)
        return 1
    spilling = {launch["name"] for call in calls for launch in call["launches"] if any(s for _, s, _ in kernels[launch["name"]].values())}
    for name in sorted(spilling):
        print(f"evidence.py: {short(name)} spills", file=sys.stderr)
    return bool(spilling)


if __name__ == "__main__":
    sys.exit(main())
