"""Continues prompts greedily with a model in Hugging Face's format: continue_prompts.py FOLDER OUT PROMPT...

Writes prompt I and its 40 new tokens to the file OUT followed by I. Needs torch and transformers.
"""
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, out, prompts = sys.argv[1], sys.argv[2], sys.argv[3:]
model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
wrong = {name: sorted(found[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[name]}
if wrong:
    sys.exit(f"{folder}: {wrong}")
tokenizer = AutoTokenizer.from_pretrained(folder)
for i, prompt in enumerate(prompts):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        text = model.generate(ids, max_new_tokens=40, do_sample=False)[0]
    with open(f"{out}{i}", "w", encoding="utf-8") as file:
        file.write(tokenizer.decode(text, skip_special_tokens=True) + "\n")
