"""PyTorch's fused causal attention on the CPU, forward and backward, in the words of muster_bench_attention.

    python3 bench/peers/attention.py --threads 2 [--bf16]
"""
import argparse
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value, what in (("seq", 0, "sequence length (256, 512, 1024, 2048)"),
                          ("tokens", 2048, "tokens in all, at least one sequence (2048)"), ("heads", 8, "heads (8)"),
                          ("width", 64, "width of a head (64)"), ("rounds", 15, "calls whose median counts (15)"),
                          ("threads", 2, "threads (2)")):
    parser.add_argument("--" + name, type=int, default=value, help=what)
parser.add_argument("--bf16", action="store_true", help="operands in bf16")
o = parser.parse_args()

import torch
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(o.threads)
dtype = torch.bfloat16 if o.bf16 else torch.float32
for S in [o.seq] if o.seq else [256, 512, 1024, 2048]:
    B, H, d = max(o.tokens // S, 1), o.heads, o.width
    q, k, v = (torch.randn(B, H, S, d, dtype=dtype, requires_grad=True) for _ in range(3))
    dy, forward, both = torch.randn(B, H, S, d, dtype=dtype), [], []
    for i in range(2 + o.rounds):
        start = time.perf_counter()
        y = scaled_dot_product_attention(q, k, v, is_causal=True)
        middle = time.perf_counter()
        torch.autograd.grad(y, (q, k, v), dy)
        end = time.perf_counter()
        if i >= 2:
            forward.append(middle - start)
            both.append(end - start)
    f, b, unit = statistics.median(forward), statistics.median(both), B * H * S * S * d
    print(f"S {S} B {B} H {H} d {d}: forward {1e3 * f:.3f} ms {2e-9 * unit / f:.1f} GFLOP/s, "
          f"forward and backward {1e3 * b:.3f} ms {7e-9 * unit / b:.1f} GFLOP/s", flush=True)
