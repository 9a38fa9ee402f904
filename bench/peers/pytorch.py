"""The benchmark's model and step in PyTorch, for bench/compare.py; run it with --help for the options.

RMSNorm, per-head norms of queries and keys, rotary positions, fused causal attention, SwiGLU experts behind a
softmax top-k router, untied head. A step is forward, cross-entropy + 0.01 balance + 0.001 z, backward, clipping to
norm 1, fused AdamW. No token is dropped: rows are sorted by expert, each expert multiplies its own.

    python3 bench/peers/pytorch.py --threads 2 [--compile] [--dense] [--bf16] [--skew]
"""
import argparse
import resource
import statistics
import time

NUMBERS = dict(vocab=257, dim=256, layers=4, heads=4, ffn=512, experts=8, topk=2, seq=256, batch=8, steps=12, threads=2)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in NUMBERS.items():
    parser.add_argument("--" + name, type=int, default=value, help=f"({value})")
parser.add_argument("--compile", action="store_true", help="torch.compile the model")
parser.add_argument("--dense", action="store_true", help="a dense feed-forward of width topk * ffn instead of experts")
parser.add_argument("--bf16", action="store_true", help="products of bf16 numbers (autocast), fp32 weights")
parser.add_argument("--skew", action="store_true", help="every token's first choice is expert 0")
o = parser.parse_args()

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(1)
torch.set_num_threads(o.threads)


def matrix(*shape):
    return nn.Parameter(torch.randn(*shape) * 0.02)


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.d = o.dim // o.heads
        self.qkv, self.out = matrix(3 * o.dim, o.dim), matrix(o.dim, o.dim)
        self.q_norm, self.k_norm = Norm(self.d), Norm(self.d)

    def forward(self, x, cos, sin):
        B, S, D = x.shape
        q, k, v = F.linear(x, self.qkv).view(B, S, 3, o.heads, self.d).unbind(2)

        def turned(y):
            left, right = y.chunk(2, -1)
            return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(v.dtype).transpose(1, 2)

        y = F.scaled_dot_product_attention(turned(self.q_norm(q)), turned(self.k_norm(k)), v.transpose(1, 2), is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(B, S, D), self.out)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        width = o.topk * o.ffn
        self.gate_up, self.down = matrix(2 * width, o.dim), matrix(o.dim, width)

    def forward(self, x):
        gate, up = F.linear(x, self.gate_up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down), x.new_zeros(())


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = matrix(o.experts, o.dim)
        self.gate_up, self.down = matrix(o.experts, o.dim, 2 * o.ffn), matrix(o.experts, o.ffn, o.dim)

    def route(self, x):
        logits = F.linear(x, self.router).float()
        p = logits.softmax(-1)
        ranked = p.detach().clone()
        if o.skew:
            ranked[:, 0] = 2
        ids = ranked.topk(o.topk, -1).indices
        gates = p.gather(1, ids)
        counts = torch.bincount(ids.flatten(), minlength=o.experts)
        share = counts.float() / ids.numel()
        extra = 0.01 * o.experts * (share * p.mean(0)).sum() + 0.001 * logits.logsumexp(-1).square().mean()
        return ids.flatten(), gates / gates.sum(-1, keepdim=True), counts, extra

    def forward(self, x):
        shape, x = x.shape, x.flatten(0, -2)
        ids, gates, counts, extra = self.route(x)
        order = ids.argsort(stable=True)
        token = order.div(o.topk, rounding_mode="floor")
        rows = x.to(torch.bfloat16 if o.bf16 else x.dtype).index_select(0, token).split(counts.tolist())
        gate_up, down = self.gate_up.to(rows[0].dtype).unbind(0), self.down.to(rows[0].dtype).unbind(0)
        done = []
        for i, r in enumerate(rows):
            if len(r):
                gate, up = (r @ gate_up[i]).chunk(2, -1)
                done.append((F.silu(gate) * up) @ down[i])
        y = torch.cat(done).to(x.dtype) * gates.flatten()[order].unsqueeze(1)
        return torch.zeros_like(x).index_add(0, token, y).view(shape), extra


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2, self.attention = Norm(o.dim), Norm(o.dim), Attention()
        self.ffn = Dense() if o.dense else Experts()

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        y, extra = self.ffn(self.norm2(x))
        return x + y, extra


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head, self.norm = matrix(o.vocab, o.dim), matrix(o.vocab, o.dim), Norm(o.dim)
        self.blocks = nn.ModuleList(Block() for _ in range(o.layers))
        half = o.dim // o.heads // 2
        angle = torch.outer(torch.arange(o.seq), 1e4 ** (-torch.arange(half) / half)).unsqueeze(1)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids, targets):
        x, total = F.embedding(ids, self.embed), 0.0
        for block in self.blocks:
            x, extra = block(x, self.cos, self.sin)
            total = total + extra
        return F.cross_entropy(F.linear(self.norm(x), self.head).flatten(0, 1).float(), targets.flatten()), total


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
run = torch.compile(model) if o.compile else model
seconds = []
for _ in range(o.steps):
    tokens = torch.randint(o.vocab, (o.batch, o.seq + 1))
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=o.bf16):
        ce, extra = run(ids, targets)
    (ce + extra).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - start)
step = statistics.median(seconds[3:])
print(f"pytorch {torch.__version__}: params {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M loss {ce.item():.3f} "
      f"step {1e3 * step:.1f} ms {o.batch * o.seq / step:.0f} tok/s "
      f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
