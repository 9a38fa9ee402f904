"""Hugging Face's Qwen3-MoE of the benchmark's sizes, for bench/compare.py; needs PyTorch and transformers 5.

The same architecture as muster's default, their code, their fastest implementation of experts on the CPU. A step is
forward, their loss (cross-entropy + 0.01 balance), backward, clipping to norm 1, fused AdamW.

    python3 bench/peers/huggingface.py --threads 2 [--experts-impl grouped_mm] [--bf16]
"""
import argparse
import resource
import statistics
import time

NUMBERS = dict(vocab=257, dim=256, layers=4, heads=4, ffn=512, experts=8, topk=2, seq=256, batch=8, steps=12, threads=2)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in NUMBERS.items():
    parser.add_argument("--" + name, type=int, default=value, help=f"({value})")
parser.add_argument("--experts-impl", default="grouped_mm", help="grouped_mm, batched_mm or eager (grouped_mm)")
parser.add_argument("--bf16", action="store_true", help="products of bf16 numbers (autocast), fp32 weights")
o = parser.parse_args()

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.manual_seed(1)
torch.set_num_threads(o.threads)
config = Qwen3MoeConfig(
    vocab_size=o.vocab, hidden_size=o.dim, num_hidden_layers=o.layers, max_position_embeddings=o.seq,
    num_attention_heads=o.heads, num_key_value_heads=o.heads, head_dim=o.dim // o.heads,
    intermediate_size=o.topk * o.ffn, moe_intermediate_size=o.ffn, num_experts=o.experts, num_experts_per_tok=o.topk,
    norm_topk_prob=True, output_router_logits=True, router_aux_loss_coef=0.01, tie_word_embeddings=False,
    use_cache=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
model = Qwen3MoeForCausalLM(config)
model.set_experts_implementation(o.experts_impl)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
seconds = []
for _ in range(o.steps):
    tokens = torch.randint(o.vocab, (o.batch, o.seq))
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=o.bf16):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - start)
step = statistics.median(seconds[3:])
print(f"huggingface {o.experts_impl} torch {torch.__version__}: params {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M "
      f"loss {loss.item():.3f} step {1e3 * step:.1f} ms {o.batch * o.seq / step:.0f} tok/s "
      f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
