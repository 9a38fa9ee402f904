#!/usr/bin/env python3
"""What can be said of the CUDA kernels without a GPU: tables in docs/performance.md. Nothing in them is timed.

    bench/gpu/evidence.py BUILD [--nvcc NVCC] [--page FILE] [--counted | --all]

BUILD is a build folder of muster with its tests, gcc and an optimised build (the emulation of CUDA is part of them). It
  - compiles kernels/cuda/*.cu for sm_80 and sm_90 and reads registers, spills and shared memory from ptxas,
  - runs BUILD/tests/cuda_on_host/muster_evidence, which counts what the kernels move and how,
  - has BUILD/tests/muster_evidence_step train a small model, counting launches and waits of a step,
  - computes the time that data and arithmetic of an MoE layer need at least on an H100,
and replaces what stands between the two marks of the page. --counted prints what is counted alone, and needs no nvcc;
--all prints ptxas' figures of every kernel. Exit: 0 done; 1 a hot kernel spills, has bank conflicts, moves more than
it should or uncoalesced, or something could not be read; 66 there is no nvcc or no build."""
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
train: {steps: 20, global_batch_size: 8, seq_len: 32, eval_every: 0, threads: 1, device: cuda}
checkpoint: {every: 0}
log: {every: 1, progress: quiet}
"""
STEPS = {
    "fp32": ["train.dtype=fp32"],
    "bf16": ["train.dtype=bf16"],
    "bf16, 4 micro-batches, shared expert, capacity, sigmoid and expert bias": [
        "train.dtype=bf16", "train.micro_batch_size=2", "moe.num_shared_experts=1", "moe.capacity_factor=1",
        "moe.score_func=sigmoid", "moe.balance=[expert_bias,seq_aux_loss]"],
}


# What the hot kernels are held to; sorting and its like are not hot.
NOT_HOT = ("embed_bwd", "plan", "scatter", "route_fwd", "route_bwd")
MOST_UNCOALESCED, MOST_NEW = 0.001, 2.0     # of its accesses; of the bytes it needs at least


class Failed(Exception):
    pass


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          **options)
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
            _, text = run(nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "-I", ROOT, "-Xptxas", "-v", "-cubin", "-o",
                          os.devnull, source)
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


def step(build, *options):
    """launches, waits, allocations of a training step; every one must have the same, wait once and allocate nothing"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "step.yaml").write_text(STEP)
        text, _ = run(build / "tests/muster_evidence_step", "step.yaml", *options, cwd=folder)
    steps = {tuple(map(int, m)) for m in re.findall(r"^(\d+) launches, (\d+) waits, (\d+) allocations$", text, re.M)}
    if len(steps) != 1 or any(s[1:] != (1, 0) for s in steps):
        raise Failed(f"{' '.join(options)}: steps differ, wait within or allocate: {text}")
    return steps.pop()


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
        registers, spilled = (pair([str(o[i]) for o in of]) for i in range(2))
        lines.append(f"| `{short(name)}` | {threads} | {registers} | {spilled} | {of[-1][2]:,} + {dynamic:,} | "
                     f"{pair([f'{100 * s:.0f} %' for s in share])} |")
    return lines


def total(call, *fields):
    return sum(launch[field] for launch in call["launches"] for field in fields)


def surplus(calls, *names):
    """Bytes that these kernels of the list had from memory, over those that they need at least."""
    chosen = [c for c in calls if c["kernel"] in names]
    new = sum(total(c, "read_footprint", "written_footprint") for c in chosen)
    return new / sum(c["reads"] + c["writes"] for c in chosen)


def counted_table(calls):
    lines = ["| kernel of the list | size | at least, MiB | new, MiB | ratio | asked for, MiB | launches | uncoalesced | "
             "bank conflicts |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for call in calls:
        least, new = call["reads"] + call["writes"], total(call, "read_footprint", "written_footprint")
        asked, shared = 32 * total(call, "read_sectors", "written_sectors"), total(call, "shared_accesses")
        conflicts = f"{number(total(call, 'bank_conflicts'))} of {number(shared)}" if shared else "-"
        lines.append(f"| `{call['kernel']}` | {call['shape']} | {mib(least)} | {mib(new)} | {new / least:.2f} | {mib(asked)} | "
                     f"{total(call, 'launches')} | {number(total(call, 'uncoalesced'))} of {number(total(call, 'accesses'))} | "
                     f"{conflicts} |")
    return lines


def complaints(calls):
    for call in calls:
        if call["kernel"] in NOT_HOT:
            continue
        if total(call, "bank_conflicts"):
            yield f"{call['kernel']}: {total(call, 'bank_conflicts')} bank conflicts"
        if total(call, "uncoalesced") > MOST_UNCOALESCED * total(call, "accesses"):
            yield f"{call['kernel']}: {total(call, 'uncoalesced')} of {total(call, 'accesses')} accesses are uncoalesced"
        if surplus([call], call["kernel"]) > MOST_NEW:
            yield f"{call['kernel']}: {surplus([call], call['kernel']):.2f} times the bytes it needs at least"


def floor_table(calls):
    lines = ["| T, d, n, E, K | | TFLOP | GB | arithmetic, ms | data, ms | floor, ms | TFLOP/s at the floor | "
             "data as counted, ms |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    more = [surplus(calls, experts, "gather_sum") for experts in ("experts_fwd", "experts_bwd")]
    for shape in LAYERS:
        for way, (flops, data), ratio in zip(("forward", "backward"), layer_floor(*shape), more):
            arithmetic, moving = flops / PRODUCT, data / BANDWIDTH
            floor = max(arithmetic, moving)
            name = ", ".join(map(str, shape)) if way == "forward" else ""
            lines.append(f"| {name} | {way} | {flops / 1e12:.2f} | {data / 1e9:.2f} | {1e3 * arithmetic:.2f} | "
                         f"{1e3 * moving:.2f} | **{1e3 * floor:.2f}** | {flops / floor / 1e12:.0f} | "
                         f"{1e3 * moving * ratio:.2f} |")
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
    return (f"Of all {len(kernels)} kernels (each choice of types and sizes is one) the most registers are {most}; with spills: "
            + (", ".join(f"`{s}`" for s in spills) if spills else "none") + ".")


def steps_line(build):
    text = [f"{name}: {step(build, *options)[0]} launches" for name, options in STEPS.items()]
    return (f"A training step (2 layers, 8 experts, top-2), counted: {'; '.join(text)}. In each of them the host waits once, for the "
            "results when the whole step is on its way, and no memory is asked for once the largest step was seen, whatever the "
            "router does.")


def page_text(nvcc, kernels, calls, steps):
    launches = {}
    for call in calls:
        for launch in call["launches"]:
            launches.setdefault(launch["name"], launch)
    version = re.search(r"release ([\d.]+)", run(nvcc, "--version")[0])[1]
    text = [f"Counted and computed on {datetime.date.today()}, **nothing here was timed**: ptxas of CUDA {version}; the emulation of "
            "`tests/cuda_on_host`, bf16. `bench/gpu/evidence.py BUILD` makes this section.", "",
            "Registers, spilled bytes and occupancy on sm_80 / sm_90 of the kernels that ran below (counted by ptxas; occupancy "
            "computed from the limits of a multiprocessor). " + summary(kernels), ""]
    text += resources_table(kernels, launches)
    text += ["", "What they move, counted: *at least* is every operand once (and what a kernel's first product leaves for its second); "
             "*new* are the bytes that a launch touches for the first time, which must come from memory; *asked for* are all 32-byte "
             "sectors that warps request, most of them served by the caches where it is more than new. An access of a warp is "
             "uncoalesced when it touches more sectors than its bytes would side by side. All but "
             + ", ".join(f"`{name}`" for name in NOT_HOT) + f" (sorting, and one number a token) are held to no bank conflict, at most "
             f"{100 * MOST_UNCOALESCED:g} % uncoalesced accesses (lists of tiles, ends of units) and {MOST_NEW:g} times the least bytes by "
             "`tests/cuda_on_host/slow_evidence.sh`. `--all` prints ptxas' figures of every kernel.", ""]
    text += counted_table(calls)
    text += ["", steps, "",
             f"The least time of an MoE layer's experts and combine in bf16 on an H100, computed: arithmetic at {PRODUCT / 1e12:.0f} "
             f"TFLOP/s, data at {BANDWIDTH / 1e12:.1f} TB/s (both measured by others), everything read and written once a product; "
             "*as counted*: with what the kernels moved above, over what they had to.", ""]
    return "\n".join(text + floor_table(calls)) + "\n"


def replace(page, text):
    old = page.read_text()
    first, last = (old.find(m) for m in MARKS)
    if not 0 <= first < last:
        raise Failed(f"{page} has no lines '{MARKS[0]}' and '{MARKS[1]}'")
    page.write_text(old[:first] + MARKS[0] + "\n" + text + old[last:])


def complain(what):
    found = list(what)
    for line in found:
        print(f"evidence.py: {line}", file=sys.stderr)
    return bool(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--nvcc", default=shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/performance.md")
    parser.add_argument("--counted", action="store_true", help="print what the emulation counts, write nothing")
    parser.add_argument("--all", action="store_true", help="print ptxas' figures of every kernel, write nothing")
    o = parser.parse_args()
    if not (o.counted or os.access(o.nvcc, os.X_OK)) or not o.build.is_dir():
        print(f"evidence.py: error: {o.nvcc} or {o.build} is not there", file=sys.stderr)
        return 66
    build = o.build.resolve()
    try:
        if o.counted:
            calls = counted(build)
            print("\n".join(counted_table(calls) + ["", steps_line(build), ""] + floor_table(calls)))
            return complain(complaints(calls))
        kernels, files = ptxas(o.nvcc)
        if o.all:
            print("\n".join(all_table(kernels, files)), "\n", summary(kernels), sep="\n")
            return 0
        calls = counted(build)
        replace(o.page, page_text(o.nvcc, kernels, calls, steps_line(build)))
    except (Failed, OSError) as error:
        print(f"evidence.py: error: {error}", file=sys.stderr)
        return 1
    names = sorted({launch["name"] for call in calls for launch in call["launches"]})
    return complain([f"{short(n)} spills" for n in names if any(s for _, s, _ in kernels[n].values())] + list(complaints(calls)))


if __name__ == "__main__":
    sys.exit(main())
