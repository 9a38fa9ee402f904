#!/usr/bin/env python3
"""Random tiny models of every type that muster reads, as Hugging Face saves them, and what Hugging Face says of those that muster wrote.

    convert_models.py make FOLDER          FOLDER/TYPE-DTYPE/: save_pretrained, and FOLDER/TYPE-DTYPE.json: prompt, greedy continuation
    convert_models.py check FOLDER OUT...  every OUT loads without missing and unexpected keys; its weights are those of the folder of
                                           the same name in FOLDER, bit for bit; its greedy continuation is the one recorded
    convert_models.py fixtures FOLDER      FOLDER/TYPE/: smaller ones for tests/train/test_hf.c, with the logits of a few tokens in
                                           expected.json (tests/fixtures/hf was made so)

For tests/train/slow_convert.sh; needs torch, transformers 5, safetensors. Everything runs in float64 on the stored weights, so that a
greedy continuation depends on no rounding: prompts whose best two logits ever come closer than MARGIN are replaced.
"""
import importlib
import json
import os
import sys

import tokenizers
import torch
import transformers
from transformers.utils import logging
from safetensors import safe_open

V, LAYERS, MARGIN, PROMPT, NEW = 257, 3, 2e-3, "The wind ", 64
BASE = dict(vocab_size=V, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=256,
            pad_token_id=None)
ROPE = {"rope_type": "default", "rope_theta": 50000.0}
GRANITE = dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=16, embedding_multiplier=3.0, residual_multiplier=0.5,
               attention_multiplier=0.3, logits_scaling=0.7)
# name -> class stem, keys
MODELS = {
    "qwen3_moe": ("Qwen3Moe", dict(head_dim=16, moe_intermediate_size=24, intermediate_size=40, num_experts=6, num_experts_per_tok=2,
                                   norm_topk_prob=True, mlp_only_layers=[0], rope_parameters=ROPE)),
    "qwen3_moe_plain": ("Qwen3Moe", dict(head_dim=8, moe_intermediate_size=24, intermediate_size=40, num_experts=6, num_experts_per_tok=2,
                                         norm_topk_prob=False, decoder_sparse_step=2, tie_word_embeddings=True)),
    "dots1": ("Dots1", dict(head_dim=16, moe_intermediate_size=24, intermediate_size=40, n_routed_experts=6, num_experts_per_tok=3,
                            n_shared_experts=2, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.5,
                            sliding_window=None)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=24, head_dim=8)),
    "granitemoe": ("GraniteMoe", GRANITE),
    "granitemoeshared": ("GraniteMoeShared", dict(**GRANITE, shared_intermediate_size=32)),
    "olmoe": ("Olmoe", dict(clip_qkv=1.5, num_experts=6, num_experts_per_tok=2, intermediate_size=24, norm_topk_prob=False)),
    "qwen2_moe": ("Qwen2Moe", dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=32,
                                   intermediate_size=40, norm_topk_prob=False, qkv_bias=True)),
    "qwen3": ("Qwen3", dict(head_dim=16, intermediate_size=48, tie_word_embeddings=True)),
    "llama": ("Llama", dict(intermediate_size=48)),
}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


logging.disable_progress_bar()


class Widened:
    """Stands in for `torch` inside a model's source: float32 means float64 there."""
    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


TENSOR_FLOAT = torch.Tensor.float


def widen(model):
    model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    module = importlib.import_module(type(model).__module__)
    module.torch = Widened()
    torch.Tensor.float = torch.Tensor.double
    return model.to(torch.float64).eval()


def narrow(model):
    importlib.import_module(type(model).__module__).torch = torch
    torch.Tensor.float = TENSOR_FLOAT


def greedy(model, prompt):
    """(continuation, smallest distance of the best two logits)"""
    ids, least = list(prompt), 1e9
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            best = torch.topk(logits, 2)
            least = min(least, (best.values[0] - best.values[1]).item())
            ids.append(best.indices[0].item())
    return ids[len(prompt):], least


def byte_tokenizer():
    """Ids 0 to 255 are bytes, 256 ends a document: as muster's tokenizer "bytes"."""
    printable = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 256)]
    others = [b for b in range(256) if b not in printable]
    vocab = {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}
    t = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.decoder = tokenizers.decoders.ByteLevel()
    t.add_special_tokens(["<|endoftext|>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|endoftext|>")


def draw(name, seed, dtype, **others):
    stem, keys = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, stem + "Config")(**{**BASE, **keys, **{k: v for k, v in others.items() if k in keys or k in BASE}})
    model = getattr(transformers, stem + "ForCausalLM")(config)
    with torch.no_grad():
        for _, t in sorted(dict(model.named_parameters()).items()):
            t.copy_(1 + 0.2 * torch.randn(t.shape) if t.dim() == 1 and not _.endswith("bias") else 0.25 * torch.randn(t.shape))
        head = model.get_output_embeddings().weight
        if len(head) == V:
            head[:32], head[127:] = 0, 0                # the continuation is printable
        for n, t in model.named_buffers():
            if n.endswith("e_score_correction_bias"):
                t.copy_(0.1 * torch.randn(t.shape))
    return model.to(dtype)


def make(folder):
    torch.set_num_threads(1)
    prompt = list(PROMPT.encode())
    for name in os.environ.get("ONLY", " ".join(MODELS)).split():
        for dtype in DTYPES if name in ("qwen3_moe", "dots1", "granitemoeshared") else ("f32", "bf16"):
            path = os.path.join(folder, f"{name}-{dtype}")
            for seed in range(1, 200):
                draw(name, seed, DTYPES[dtype]).save_pretrained(path, max_shard_size="40KB" if dtype == "f32" else "5GB")
                # read back: .to(bfloat16) also rounds the frequencies of the rotary embedding
                model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                text, least = greedy(widen(model), prompt)
                narrow(model)
                if least > MARGIN and all(32 <= i < 127 for i in text):
                    break
            byte_tokenizer().save_pretrained(path)
            with open(path + ".json", "w") as f:
                json.dump({"prompt": PROMPT, "greedy": text, "seed": seed}, f)
            print(f"{name}-{dtype}: seed {seed}, {sum(p.numel() for p in model.parameters())} parameters, margin {least:.4f}")


def fixtures(folder):
    """Each type once; the dtypes in turn, the first two in several files."""
    torch.set_num_threads(1)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=40, head_dim=8,
                 intermediate_size=8, moe_intermediate_size=8, shared_intermediate_size=16, shared_expert_intermediate_size=16,
                 num_experts=4, n_routed_experts=4, eos_token_id=None)
    for i, name in enumerate(n for n in MODELS if n != "qwen3_moe_plain"):
        path, dtype = os.path.join(folder, name), list(DTYPES.values())[i % 3]
        draw(name, 1, dtype, **small).save_pretrained(path, max_shard_size="8KB" if i < 2 else "5GB")
        os.remove(os.path.join(path, "generation_config.json"))
        model = widen(transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32))
        tokens = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -3:]
        narrow(model)
        with open(os.path.join(path, "expected.json"), "w") as f:
            json.dump({"tokens": tokens, "logits": [[float(f"{x:.9g}") for x in row] for row in logits.tolist()]}, f)
        print(f"{name}: {dtype}, {sum(p.numel() for p in model.parameters())} parameters")


def tensors(folder):
    out = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(folder, file), "pt") as f:
                assert f.metadata() == {"format": "pt"}, f.metadata()
                out.update({n: f.get_tensor(n) for n in f.keys()})
    return out


def check(folder, outs):
    for out in outs:
        name = os.path.basename(out.rstrip("/"))
        before, after = tensors(os.path.join(folder, name)), tensors(out)
        assert set(before) == set(after), (name, set(before) ^ set(after))
        for n, t in before.items():
            wide = n.endswith("e_score_correction_bias") or t.dtype == torch.float16     # written as fp32
            assert after[n].dtype == (torch.float32 if wide else t.dtype), (name, n, after[n].dtype)
            assert torch.equal(after[n], t.float() if wide else t), (name, n)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), (name, info)
        stem = MODELS[name.rsplit("-", 1)[0]][0]
        assert type(model).__name__ == stem + "ForCausalLM", type(model)
        want = json.load(open(os.path.join(folder, name + ".json")))
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        ids = tokenizer(want["prompt"], add_special_tokens=False)["input_ids"]
        assert ids == list(want["prompt"].encode()), ids
        assert tokenizer.eos_token_id == 256 == model.config.eos_token_id == model.generation_config.eos_token_id
        text, _ = greedy(widen(model), ids)
        narrow(model)
        assert text == want["greedy"], (name, text, want["greedy"])
        print(f"{name}: ok")


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(sys.argv[2], sys.argv[3:])
    else:
        {"make": make, "fixtures": fixtures}[sys.argv[1]](sys.argv[2])
