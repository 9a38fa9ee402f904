#!/usr/bin/env python3
"""An MoE layer in PyTorch, forward and backward, at the shapes of muster_bench_device, in its words.

Tokens are sorted by expert, the products are torch's grouped_mm, routing, permutation and SwiGLU are compiled.
With --tiny it runs on a CPU, to see that it works. Prints for each shape a line forward and a line backward
(6 T n d K and 12 T n d K FLOPs) and the bytes of activations kept for backward."""
import argparse
import statistics
import sys
import time

import torch
import torch.nn.functional as F

SHAPES = [(40960, 768, 256, 128, 8), (40960, 768, 1024, 32, 2), (24576, 1536, 256, 128, 8), (24576, 1536, 1024, 32, 2),
          (32768, 4096, 256, 256, 16), (32768, 4096, 1024, 64, 4), (32768, 4096, 2048, 64, 4)]
TINY = [(96, 64, 64, 4, 2)]

grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def route(x, router, top_k, skew):
    """The router's choice: ids and gates [T, K], rows' tokens sorted by expert, where each assignment's row is, ends."""
    scores = torch.softmax(F.linear(x.float(), router), dim=-1)
    if skew:
        scores = torch.cat((scores[:, :1] + 2, scores[:, 1:]), dim=1)
    gates, ids = scores.topk(top_k, dim=-1)
    gates = gates - 2 * (gates > 1) if skew else gates
    gates = gates / gates.sum(-1, keepdim=True)
    order = torch.argsort(ids.flatten(), stable=True)
    row = torch.empty_like(order)
    row[order] = torch.arange(order.numel(), device=order.device)
    ends = torch.cumsum(torch.bincount(ids.flatten(), minlength=router.shape[0]), 0).to(torch.int32)
    return gates, order // top_k, row, ends


def swiglu(h):
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def combine(rows, row, gates):
    return (rows[row].view(*gates.shape, -1) * gates.to(rows.dtype).unsqueeze(-1)).sum(1)


def make_layer(compiled):
    wrap = torch.compile if compiled else (lambda f: f)
    activation, together = wrap(swiglu), wrap(combine)

    def layer(x, router, up, down, top_k, skew):
        gates, token, row, ends = route(x, router, top_k, skew)
        h = grouped_mm(x[token], up.transpose(-2, -1), offs=ends)
        return together(grouped_mm(activation(h), down.transpose(-2, -1), offs=ends), row, gates)

    return layer


def seconds_of(call, wait, rounds, calls):
    times = []
    for i in range(rounds + 2):                     # two to warm up and compile
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        if i >= 2:
            times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def measure(layer, shape, skew, options, device, wait):
    tokens, width, ffn, experts, top_k = shape
    make = lambda *size, scale: ((torch.rand(*size, device=device) * 2 - 1) * scale).to(torch.bfloat16).requires_grad_()
    x, dy = make(tokens, width, scale=1), make(tokens, width, scale=1).detach()
    up, down = make(experts, 2 * ffn, width, scale=width ** -0.5), make(experts, width, ffn, scale=ffn ** -0.5)
    router = ((torch.rand(experts, width, device=device) * 2 - 1) * width ** -0.5).requires_grad_()
    run = lambda: layer(x, router, up, down, top_k, skew)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = run()
    weights = {t.data_ptr() for t in (x, up, down, router)}
    activations = {t.data_ptr(): t.untyped_storage().nbytes() for t in kept if t.data_ptr() not in weights}
    def both():
        run().backward(dy)
    with torch.no_grad():
        forward = seconds_of(run, wait, options.rounds, options.calls)
    whole = seconds_of(both, wait, options.rounds, options.calls)
    unit = tokens * width * ffn * top_k * 1e-12
    print(f"MoE layer, T {tokens} d {width} n {ffn} E {experts} K {top_k}{', skewed' if skew else ''}")
    print(f"  layer forward {1e3 * forward:9.3f} ms {6 * unit / forward:9.2f} TFLOP/s")
    print(f"  layer backward {1e3 * (whole - forward):9.3f} ms {12 * unit / (whole - forward):9.2f} TFLOP/s")
    print(f"  kept for backward {sum(activations.values()) + x.nbytes:d} bytes", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="one small shape, on a CPU where there is no GPU")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        sys.exit("grouped_mm.py: error: PyTorch sees no GPU; --tiny tries the script without one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}")
    layer = make_layer(not options.eager)
    for shape in TINY if options.tiny else SHAPES:
        for skew in (False, True):
            measure(layer, shape, skew, options, device, wait)
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
