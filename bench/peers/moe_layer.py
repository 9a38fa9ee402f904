#!/usr/bin/env python3
"""MoE layers of others, forward and backward, at the shapes of muster_bench_device, in its words.

    torch        tokens sorted by expert, torch's grouped_mm; routing, permutation and SwiGLU compiled
    huggingface  transformers' experts of Qwen3-MoE with grouped_mm (transformers 5)
    scattermoe   ScatterMoE (Tan et al. 2024), where its package and a GPU are there

All share one router and one set of weights; the first shape's results must agree. With --tiny it runs on a CPU, to see
that it works. Prints for each shape and rival a line forward and a line backward (6 T n d K and 12 T n d K FLOPs) and
the bytes of activations kept for backward."""
import argparse
import importlib.util
import statistics
import sys
import time

import torch
import torch.nn.functional as F

SHAPES = [(40960, 768, 256, 128, 8), (40960, 768, 1024, 32, 2), (24576, 1536, 256, 128, 8), (24576, 1536, 1024, 32, 2),
          (32768, 4096, 256, 256, 16), (32768, 4096, 1024, 64, 4), (32768, 4096, 2048, 64, 4)]
TINY = [(96, 64, 64, 4, 2)]
AGREE = 0.03                                        # of the largest result: bf16

grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm


def choose(x, router, top_k, skew):
    """The router: gates and ids [T, K]."""
    scores = torch.softmax(F.linear(x.float(), router), dim=-1)
    if skew:
        scores = torch.cat((scores[:, :1] + 2, scores[:, 1:]), dim=1)
    gates, ids = scores.topk(top_k, dim=-1)
    gates = gates - 2 * (gates > 1) if skew else gates
    return gates / gates.sum(-1, keepdim=True), ids


def swiglu(h):
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def permute(x, ids, experts):
    """Rows of x sorted by expert, where each assignment's row is, and where each expert's rows end."""
    order = torch.argsort(ids.flatten(), stable=True)
    row = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    ends = torch.cumsum(torch.bincount(ids.flatten(), minlength=experts)[:experts], 0).to(torch.int32)
    return x[order // ids.shape[1]], row, ends


def combine(rows, row, gates):
    return (rows[row].view(*gates.shape, -1) * gates.to(rows.dtype).unsqueeze(-1)).sum(1)


# ---------------------------------------------------------------- rivals: experts(x, gates, ids) of [E, 2F, D], [E, D, F]
def torch_experts(up, down, wrap):
    apart, activation, together = wrap(permute), wrap(swiglu), wrap(combine)

    def experts(x, gates, ids):
        rows, row, ends = apart(x, ids, up.shape[0])
        h = grouped_mm(rows, up.transpose(-2, -1), offs=ends)
        return together(grouped_mm(activation(h), down.transpose(-2, -1), offs=ends), row, gates)

    return experts


def huggingface_experts(up, down, wrap):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
    experts, width, ffn = down.shape
    config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=ffn, num_experts=experts)
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        module = Qwen3MoeExperts(config)
    module.gate_up_proj, module.down_proj = torch.nn.Parameter(up), torch.nn.Parameter(down)
    module = wrap(module)
    return lambda x, gates, ids: module(x, ids, gates.to(x.dtype))


def scattermoe_experts(up, down, wrap):
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear
    first, activation = up.transpose(-2, -1), wrap(swiglu)

    def experts(x, gates, ids):
        sorted_experts, places, ends = flatten_sort_count(ids, num_experts=up.shape[0])
        h = parallel_linear(x, first, ids.shape[1], sorted_experts, places, ends, grouped_out=True)
        return parallel_linear(activation(h), down.transpose(-2, -1), 1, sorted_experts, places, ends,
                               gates=gates.to(x.dtype), grouped_in=True)

    return experts


RIVALS = {"torch": (torch_experts, "torch"), "huggingface": (huggingface_experts, "transformers"),
          "scattermoe": (scattermoe_experts, "scattermoe")}


# ---------------------------------------------------------------- measuring
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


class Stand:
    """Inputs and weights of one shape."""

    def __init__(self, shape, device):
        self.shape, self.device = shape, device
        tokens, width, ffn, experts, _ = shape
        self.x, self.dy = self.make(tokens, width, scale=1), self.make(tokens, width, scale=1).detach()
        self.up, self.down = (self.make(experts, 2 * ffn, width, scale=width ** -0.5),
                              self.make(experts, width, ffn, scale=ffn ** -0.5))
        self.router = ((torch.rand(experts, width, device=device) * 2 - 1) * width ** -0.5).requires_grad_()

    def make(self, *size, scale):
        return ((torch.rand(*size, device=self.device) * 2 - 1) * scale).to(torch.bfloat16).requires_grad_()

    def layer(self, rival, wrap, skew):
        router = wrap(choose)
        experts = RIVALS[rival][0](self.up, self.down, wrap)
        return lambda: experts(self.x, *router(self.x, self.router, self.shape[4], skew))


def kept_bytes(run, weights):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = run()
    weights = {t.data_ptr() for t in weights}
    del y
    return sum({t.data_ptr(): t.untyped_storage().nbytes() for t in kept if t.data_ptr() not in weights}.values())


def measure(stand, run, rival, skew, options, wait):
    tokens, width, ffn, experts, top_k = stand.shape
    kept = kept_bytes(run, (stand.x, stand.up, stand.down, stand.router)) + stand.x.nbytes
    with torch.no_grad():
        forward = seconds_of(run, wait, options.rounds, options.calls)
    whole = seconds_of(lambda: run().backward(stand.dy), wait, options.rounds, options.calls)
    unit = tokens * width * ffn * top_k * 1e-12
    print(f"MoE layer, T {tokens} d {width} n {ffn} E {experts} K {top_k}{', skewed' if skew else ''}: {rival}")
    print(f"  layer forward {1e3 * forward:9.3f} ms {6 * unit / forward:9.2f} TFLOP/s")
    print(f"  layer backward {1e3 * (whole - forward):9.3f} ms {12 * unit / (whole - forward):9.2f} TFLOP/s")
    print(f"  kept for backward {kept:d} bytes", flush=True)


def leave_out(layers, rival, why):
    print(f"moe_layer.py: {rival} is left out: {why}", flush=True)
    del layers[rival]


def check_agreement(layers):
    """Rivals whose results differ from the first one's are left out."""
    first = None
    for rival in list(layers):
        try:
            with torch.no_grad():
                y = layers[rival]().float()
        except Exception as error:                  # whatever another project's code raises
            leave_out(layers, rival, f"{type(error).__name__}: {error}")
            continue
        first = y if first is None else first
        off = ((y - first).abs().max() / first.abs().max()).item()
        if not off <= AGREE:
            leave_out(layers, rival, f"its result is off by {off:.3g} of the largest value, at most {AGREE} wanted")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RIVALS, action="append", help="this rival alone (again for more)")
    parser.add_argument("--tiny", action="store_true", help="one small shape, on a CPU where there is no GPU")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        sys.exit("moe_layer.py: error: PyTorch sees no GPU; --tiny tries the script without one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wrap = (lambda f: f) if options.eager else torch.compile
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}")
    rivals = options.only or []
    for name, (_, package) in () if options.only else RIVALS.items():
        if importlib.util.find_spec(package):
            rivals.append(name)
        else:
            print(f"{name} is left out: this Python has no {package}")
    left = len(rivals)
    for number, shape in enumerate(TINY if options.tiny else SHAPES):
        stand = Stand(shape, device)
        for skew in (False, True):
            layers = {rival: stand.layer(rival, wrap, skew) for rival in rivals}
            if number == 0:
                check_agreement(layers)
                rivals = list(layers)
            for rival in list(layers):
                try:
                    measure(stand, layers[rival], rival, skew, options, wait)
                except Exception as error:          # out of memory, say: the others go on
                    leave_out(layers, rival, f"{type(error).__name__}: {error}")
        del stand, layers
        if device == "cuda":
            torch.cuda.empty_cache()
    sys.exit(1 if len(rivals) < left else 0)


if __name__ == "__main__":
    main()
