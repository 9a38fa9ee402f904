"""Makes the seeds of the fuzz targets, tests/fuzz/seeds/TARGET/: small files that the readers accept. Needs the command zstd."""
import gzip
import json
import pathlib
import struct
import subprocess

SEEDS = pathlib.Path(__file__).parent / "seeds"


def seed(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(tensors):
    """tensors: {name: (dtype, shape)}; all values are zero."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(at)


def zstd(data):
    return subprocess.run(["zstd", "-q", "-19", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


seed("fuzz_safetensors", "two", safetensors({"a.weight": ("F32", [2, 3]), "b.weight": ("BF16", [4])}))
seed("fuzz_safetensors", "odd", safetensors({"empty": ("F16", [0, 3]), "scalar": ("F32", []), "half": ("F16", [2, 1, 2])}))

COMMON = dict(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=4,
              max_position_embeddings=16, rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False,
              rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
LAYER = "model.layers.0."
SHARED = {"model.embed_tokens.weight": [8, 4], "model.norm.weight": [4], "lm_head.weight": [8, 4],
          LAYER + "input_layernorm.weight": [4], LAYER + "post_attention_layernorm.weight": [4],
          **{LAYER + f"self_attn.{w}_proj.weight": [4, 4] for w in "qkvo"}}
NORMS = {LAYER + "self_attn.q_norm.weight": [4], LAYER + "self_attn.k_norm.weight": [4]}
EXPERTS = {LAYER + f"mlp.experts.{e}.{w}_proj.weight": [4, 4] for e in range(2) for w in ("gate", "up", "down")}
MODELS = {
    "qwen3_moe": (dict(architectures=["Qwen3MoeForCausalLM"], num_experts=2, num_experts_per_tok=2, moe_intermediate_size=4,
                       intermediate_size=4, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]),
                  {**SHARED, **NORMS, **EXPERTS, LAYER + "mlp.gate.weight": [2, 4]}),
    "mixtral": (dict(architectures=["MixtralForCausalLM"], num_local_experts=2, num_experts_per_tok=2, intermediate_size=4,
                     sliding_window=None),
                {**SHARED, LAYER + "block_sparse_moe.gate.weight": [2, 4],
                 **{LAYER + f"block_sparse_moe.experts.{e}.w{w}.weight": [4, 4] for e in range(2) for w in (1, 2, 3)}}),
    "granitemoe": (dict(architectures=["GraniteMoeForCausalLM"], num_local_experts=2, num_experts_per_tok=2, intermediate_size=4,
                        embedding_multiplier=12.0, attention_multiplier=0.5, residual_multiplier=0.2, logits_scaling=6.0),
                   {**SHARED, LAYER + "block_sparse_moe.input_linear.weight": [2, 8, 4],
                    LAYER + "block_sparse_moe.output_linear.weight": [2, 4, 4],
                    LAYER + "block_sparse_moe.router.layer.weight": [2, 4]}),
    "llama": (dict(architectures=["LlamaForCausalLM"], intermediate_size=4),
              {**SHARED, **{LAYER + f"mlp.{w}_proj.weight": [4, 4] for w in ("gate", "up", "down")}}),
}
for model_type, (config, shapes) in MODELS.items():
    text = json.dumps({"model_type": model_type, **COMMON, **config}).encode()
    weights = safetensors({name: ("BF16", shape) for name, shape in sorted(shapes.items())})
    seed("fuzz_hf_config", model_type, text + b"\0" + weights)

JSONL = b'{"text": "one \\u00e9"}\n{"id": 1, "text": "two"}\n'
JSON = b'[{"text": "one"}, "two", {"text": "three", "more": [1, {"a": null}]}]'
for number, (name, data) in enumerate([("txt", b"one\ntwo\n"), ("json", JSON), ("jsonl", JSONL),
                                       ("gz", gzip.compress(JSONL, mtime=0) + gzip.compress(b'{"text": "3"}', mtime=0)),
                                       ("json-zst", zstd(JSON)), ("txt-zst", zstd(b"abc " * 100))]):
    seed("fuzz_texts", name, bytes([number]) + data)

IDS = [104, 105, 256, 10, 11, 12, 256]
for name, magic, version, letter in (("llmc-v1", 20240520, 1, "H"), ("llmc-v7", 20240801, 7, "I")):
    header = struct.pack("<256i", magic, version, len(IDS), *[0] * 253)
    seed("fuzz_token_files", name, b"\1" + header + struct.pack(f"<{len(IDS)}{letter}", *IDS))
index = (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i", 3, 4) + struct.pack("<2q", 0, 6) +
         struct.pack("<3q", 0, 1, 2))
seed("fuzz_token_files", "megatron", b"\0" + struct.pack("<H", len(index)) + index + struct.pack(f"<{len(IDS)}H", *IDS))


def byte_level():
    """The 256 characters that stand for bytes in a byte-level vocabulary, in the order of GPT-2's."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def tokenizer(letters, merges, special, **parts):
    vocab = {t: i for i, t in enumerate(letters + ["".join(m) for m in merges])}
    added = [dict(id=len(vocab), content=special, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)]
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
                 byte_fallback=False, ignore_merges=False, vocab=vocab, merges=[list(m) for m in merges])
    model.update(parts.pop("model", {}))
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                       "pre_tokenizer": None, "post_processor": None, "decoder": None, **parts, "model": model},
                      ensure_ascii=False).encode()


BYTE_LEVEL = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
MERGES = [("i", "t"), ("a", "b"), ("ab", "c"), ("\u0120", "it")]
seed("fuzz_tokenizer", "gpt2", tokenizer(byte_level(), MERGES, "<|endoftext|>", pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL))
split = dict(type="Sequence", pretokenizers=[dict(type="Split", pattern={"Regex": QWEN}, behavior="Isolated", invert=False),
                                             {**BYTE_LEVEL, "use_regex": False}])
seed("fuzz_tokenizer", "qwen", tokenizer(byte_level(), MERGES, "<|endoftext|>", normalizer={"type": "NFC"}, pre_tokenizer=split,
                                         decoder=BYTE_LEVEL))
own = dict(type="Sequence", pretokenizers=[dict(type="Split", pattern={"Regex": "[a-c]+|[^a-c]"}, behavior="Isolated", invert=False),
                                           {**BYTE_LEVEL, "use_regex": False}])
seed("fuzz_tokenizer", "own-pattern", tokenizer(byte_level(), MERGES, "<|endoftext|>", pre_tokenizer=own, decoder=BYTE_LEVEL))
fallback = ["<unk>"] + [f"<0x{b:02X}>" for b in range(256)] + list("\u2581abcit")
seed("fuzz_tokenizer", "byte-fallback", tokenizer(
    fallback, [("i", "t"), ("a", "b")], "</s>", model=dict(byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
    normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="\u2581"),
                                                  dict(type="Replace", pattern={"String": " "}, content="\u2581")]),
    decoder=dict(type="Sequence", decoders=[dict(type="Replace", pattern={"String": "\u2581"}, content=" "), {"type": "ByteFallback"},
                                            {"type": "Fuse"}, dict(type="Strip", content=" ", start=1, stop=0)])))
