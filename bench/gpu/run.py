#!/usr/bin/env python3
"""Everything that wants a GPU, in one call: tests, sanitizers, trainings, benchmarks, rivals, and the table of what was demanded.

    bench/gpu/run.py FOLDER [--python PYTHON] [--markdown FILE]

FOLDER is a bundle (cmake --build BUILD --target bundle, gpu/run.py in it) or a build folder of muster with CUDA. PYTHON:
a Python with PyTorch, and transformers and ScatterMoE where it has them, for the rivals (moe_layer.py). compute-sanitizer is used where it is found.
--tiny uses sizes that the emulation of the tests can bear (then the figures mean nothing).
Exit: 0 all tests pass; 1 a test or a program failed; 69 there is no GPU."""
import argparse
import datetime
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DATASHEET = {"H100": 989.0, "H200": 989.0, "A100": 312.0}       # dense bf16 TFLOP/s, NVIDIA's data sheets
# Steps of about 1.4 B parameters: many experts, few coarse ones; the share of the data sheet's peak that is demanded.
STEPS = {"fine": (dict(vocab=50304, dim=1536, layers=10, heads=12, experts=32, topk=4, ffn=768, seq=2048, batch=16, steps=15), 0.2),
         "coarse": (dict(vocab=50304, dim=2048, layers=8, heads=16, experts=8, topk=2, ffn=3072, seq=2048, batch=16, steps=15), 0.3)}
TINY_STEPS = {"fine": (dict(vocab=67, dim=32, layers=1, heads=2, experts=4, topk=2, ffn=16, seq=16, batch=2, steps=5), 0.2)}

# A training that must follow the processor's: relative difference of the losses of 20 steps at most.
FOLLOWS = {"fp32": 1e-4, "bf16": 1e-2}
TRAINING = """\
run: {dir: run, seed: 7}
model: {hidden_size: 64, num_layers: 2, num_heads: 2, num_kv_heads: 1, max_seq_len: 64}
moe: {num_experts: 8, top_k: 2, moe_ffn_hidden_size: 32, num_shared_experts: 1}
data: {train: [{domain: a, path: synthetic}]}
optim: {lr: 3e-3, warmup_steps: 5}
train: {steps: 20, global_batch_size: 8, seq_len: 64, eval_every: 0}
checkpoint: {every: 0}
log: {every: 1, progress: quiet}
"""
TINY_TRAINING = ["model.hidden_size=16", "model.num_layers=1", "moe.moe_ffn_hidden_size=16", "train.seq_len=16", "train.global_batch_size=4"]


class Failed(Exception):
    pass


def run(*command):
    """Runs a command, shows its output as it comes, returns it."""
    print("$", " ".join(map(str, command)), flush=True)
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        sys.stdout.write(line)
        lines.append(line)
    code = process.wait()
    if code == 77 or code == 69:
        sys.exit(69)
    if code:
        raise Failed(f"exit {code} from: {' '.join(map(str, command))}")
    return "".join(lines)


def find(folder, *names):
    for name in names:
        if (folder / name).exists():
            return folder / name
    sys.exit(f"run.py: error: none of {', '.join(names)} is in {folder}: is it a bundle, or a build with tests and bench?")


def read_layers(text):
    """{(shape, rival or None): {"layer forward": ms, ..., "kept": bytes}} from muster_bench_device or moe_layer.py."""
    layers, at = {}, None
    for line in text.splitlines():
        head = re.match(r"MoE layer, ([^:]*)(?:: (\w+))?$", line)
        if head:
            at = layers.setdefault(head.groups(), {})
        figure = re.match(r"  (.*?)\s+([\d.]+) ms\s+[\d.]+ (TFLOP/s|GB/s)(?:\s+([\d.]+) %)?", line)
        kept = re.match(r"  kept for backward (\d+) bytes", line)
        if at is not None and figure:
            at[figure[1]] = float(figure[2])
            at[figure[1] + ", share"] = float(figure[4]) / 100 if figure[4] else None
        if at is not None and kept:
            at["kept"] = int(kept[1])
    return layers


def figures(text):
    """{line: (rate, unit)} of all lines."""
    return {m[1].strip(): float(m[2]) for m in re.finditer(r"^\s*(.*?)\s+[\d.]+ ms\s+([\d.]+) (?:TFLOP/s|GB/s)", text, re.M)}


def share(text, what):
    """Percent of the copy, or of the product, in the line that begins with `what`."""
    m = re.search(rf"^\s*{re.escape(what)}.*?([\d.]+) % of the", text, re.M)
    return float(m[1]) / 100 if m else None


def layer_time(layer):
    return layer["layer forward"] + layer["layer backward"]


def losses(program, folder, device, dtype, options):
    """Of the 20 steps of TRAINING."""
    where = Path(folder) / f"{device}-{dtype}"
    run(program, "train", Path(folder) / "training.yaml", f"run.dir={where}", f"train.device={device}", f"train.dtype={dtype}", *options)
    return [json.loads(line)["train/loss"] for line in (where / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]


def train(program, options):
    """Both types on the GPU against fp32 on the processor."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "training.yaml").write_text(TRAINING)
        wanted = losses(program, folder, "cpu", "fp32", options)
        for dtype, most in FOLLOWS.items():
            got = losses(program, folder, "cuda", dtype, options)
            off = max((abs(a - b) / abs(a) for a, b in zip(wanted, got)), default=1.0)
            print(f"training in {dtype}: {len(got)} losses, off by {off:.2g} at most", flush=True)
            if len(got) != len(wanted) or not off <= most:
                raise Failed(f"training in {dtype}: {len(got)} losses, off by {off:.2g}, at most {most:g} allowed")


def gates(device, rival, steps, name):
    """Rows (id, what, value, gate): value None where it was not measured, gate None where nothing is demanded and with a
    minus (-0.0, too) where less is better."""
    ours, theirs, rows = read_layers(device), read_layers(rival), []
    product = figures(device).get(next((k for k in figures(device) if k.startswith("product of")), ""), None)
    for (shape, _), layer in ours.items():
        fine = " n 256 " in shape
        for gate, rival, wanted in ("G1", "torch", 1.0 if fine else 0.9), ("G1", "huggingface", None), ("G2", "scattermoe", None):
            if (shape, rival) in theirs:
                other = theirs[shape, rival]
                rows.append((gate, f"MoE layer, {shape}: against {rival}", layer_time(other) / layer_time(layer), wanted))
                rows.append(("G6", f"kept for backward, {shape}: against {rival}", layer["kept"] / other["kept"],
                             -0.7 if rival == "torch" else None))
        experts = int(re.search(r"E (\d+)", shape)[1])
        T, d, n, _, K = map(int, re.findall(r"\d+", shape))
        if "skewed" not in shape:
            rows.append(("G6", f"kept for backward, {shape}: over 2 T d + 4 T K n", layer["kept"] / (2 * T * d + 4 * T * K * n), -1.3))
        if "skewed" not in shape and not fine and product:
            rate = 6e-9 * T * d * n * K / layer["experts forward"]
            rows.append(("G4", f"experts forward, {shape}: of the product", rate / product, 0.55))
        if "skewed" not in shape and experts >= 64:
            rows.append(("G5", f"experts forward, {shape}: against a loop of products",
                         layer["the same products in a loop over experts"] / layer["experts forward"], 1.2))
        rows.append(("G12", f"router and plan, {shape}: of the copy", layer.get("router and plan, share"), 0.7))
    peak = next((v for k, v in DATASHEET.items() if k in name), None)
    for which, (text, wanted) in steps.items():
        m = re.search(r"([\d.]+) GFLOP/s  ([\d.]+) % of the product", text)
        if peak:
            rows.append(("G8", f"MFU of a training step, {which}, of {peak:.0f} TFLOP/s (data sheet)",
                         float(m[1]) * 1e-3 / peak if m else None, wanted))
        rows.append(("G8", f"a training step, {which}: of the product in the same process", float(m[2]) / 100 if m else None, None))
        waits = re.search(r"the host waits (\d+) times? a step", text)
        rows.append(("G10", f"waits of the host in a step, {which}, beside the one at its end", int(waits[1]) - 1 if waits else None, -0.0))
    for what in ("norm, forward", "norm, backward", "combine", "AdamW"):
        rows.append(("G12", f"{what}: of the copy", share(device, what), 0.7))
    return rows


def table(rows):
    lines = ["| gate | what | measured | demanded | |", "| --- | --- | ---: | ---: | --- |"]
    for gate, what, value, wanted in rows:
        if value is None:
            lines.append(f"| {gate} | {what} | not measured | {wanted} | |")
            continue
        most = wanted is not None and math.copysign(1, wanted) < 0
        good = wanted is None or (value <= -wanted if most else value >= wanted)
        demanded = "" if wanted is None else f"at most {-wanted:g}" if most else f"{wanted:g}"
        lines.append(f"| {gate} | {what} | {value:.2f} | {demanded} | {'' if wanted is None else 'pass' if good else 'short'} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", help="a Python with PyTorch, for the rivals")
    parser.add_argument("--markdown", type=Path, help="keep the table here")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a trial without a GPU")
    o = parser.parse_args()
    here = Path(__file__).resolve().parent
    cases = find(o.folder, "tests/cuda_cases")
    device = find(o.folder, "bench/muster_bench_device")
    bench = find(o.folder, "bench/muster_bench")
    program = find(o.folder, "bin/muster", "muster")
    tiny = ["--tiny"] if o.tiny else []
    failed = []

    def attempt(action, *arguments):
        try:
            return action(*arguments) or ""
        except Failed as error:
            failed.append(str(error))
            return ""

    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if o.tiny or not os.access(sanitizer, os.X_OK):
        print(f"compute-sanitizer {'cannot look into the emulation' if o.tiny else 'was not found'}: left out")
        sanitizer = None
    for kind in ("cuda", "cuda-bf16"):
        attempt(run, cases, kind)
        for tool in ("memcheck", "racecheck") if sanitizer else ():
            attempt(run, sanitizer, "--tool", tool, "--error-exitcode", "1", cases, kind)
    attempt(train, program, TINY_TRAINING if o.tiny else [])
    device_text = attempt(run, device, "--cuda", "--bf16", *tiny)
    rival = here.parent / "peers" / "moe_layer.py"
    rival = rival if rival.exists() else here / "moe_layer.py"
    rival_text = attempt(run, o.python, rival, *tiny) if o.python else ""
    steps = {}
    for which, (sizes, wanted) in (TINY_STEPS if o.tiny else STEPS).items():
        options = [x for name, value in sizes.items() for x in (f"--{name}", value)]
        steps[which] = attempt(run, bench, "--cuda", "--bf16", "--moe-only", *options), wanted
    smi = shutil.which("nvidia-smi")
    name = attempt(run, smi, "--query-gpu=name,driver_version", "--format=csv,noheader").strip() if smi else "no nvidia-smi"
    result = f"{name}, {datetime.date.today()}{', a trial with tiny sizes' if o.tiny else ''}\n\n"
    result += table(gates(device_text, rival_text, steps, name))
    print("\n" + result)
    if o.markdown:
        o.markdown.write_text(result)
    for line in failed:
        print("failed:", line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
