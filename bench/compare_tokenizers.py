#!/usr/bin/env python3
"""Tokenizing a text: muster beside Hugging Face's tokenizers and tiktoken, in turn, on one and on two threads.

    bench/compare_tokenizers.py TOKENIZER.json TEXT.jsonl [--tiktoken RANKS.tiktoken] [--muster build/muster] [--rounds 5]

Prints MB of text per second of wall time, medians of the rounds. muster is the whole command `muster tokenize`: it starts, reads the
tokenizer and the file with its JSON, encodes, and writes a token file. The others only encode documents that are in memory. Needs the Python
package tokenizers; with --tiktoken (lines of base64 and rank, the same vocabulary) also tiktoken, which gets the pattern of
TOKENIZER.json.
"""
import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def split_pattern(path):
    """The expression by which a tokenizer.json splits; GPT-2's for ByteLevel alone."""
    with open(path, encoding="utf-8") as file:
        pre = json.load(file)["pre_tokenizer"]
    for part in pre.get("pretokenizers", [pre]):
        if part["type"] == "Split":
            return part["pattern"]["Regex"]
    return r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def main(threads):
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer")
    parser.add_argument("text")
    parser.add_argument("--tiktoken")
    parser.add_argument("--muster", default="build/muster")
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    with open(a.text, encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in file]
    megabytes = sum(len(d.encode()) for d in documents) / 1e6

    import tokenizers
    theirs = tokenizers.Tokenizer.from_file(a.tokenizer)
    programs = {"muster": None, "tokenizers": lambda n: theirs.encode_batch(documents, add_special_tokens=False)}
    if a.tiktoken:
        import tiktoken
        with open(a.tiktoken, "rb") as file:
            ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in file if line.strip())}
        encoding = tiktoken.Encoding("text", pat_str=split_pattern(a.tokenizer), mergeable_ranks=ranks, special_tokens={})
        programs["tiktoken"] = lambda n: encoding.encode_ordinary_batch(documents, num_threads=n)

    with tempfile.TemporaryDirectory() as folder:
        def muster(n):
            subprocess.run([a.muster, "tokenize", "--tokenizer", a.tokenizer, "--threads", str(n), "--out", f"{folder}/t.h5",
                            f"text={a.text}"], check=True, stdout=subprocess.DEVNULL)
            os.remove(f"{folder}/t.h5")
        programs["muster"] = muster
        seconds = {name: [] for name in programs}
        for _ in range(a.rounds):
            for name, run in programs.items():
                start = time.perf_counter()
                run(threads)
                seconds[name].append(time.perf_counter() - start)
    median = {name: megabytes / statistics.median(s) for name, s in seconds.items()}
    print(f"{threads} thread{'s' if threads > 1 else ' '} " + "  ".join(f"{name} {mbs:.1f}" for name, mbs in median.items()) +
          f"  MB/s ({megabytes:.1f} MB, {a.rounds} rounds)")


if __name__ == "__main__":
    if "BENCH_THREADS" not in os.environ:       # tokenizers fixes its number of threads when it is first used
        for threads in ("1", "2"):
            code = subprocess.run([sys.executable] + sys.argv, env={**os.environ, "BENCH_THREADS": threads, "RAYON_NUM_THREADS": threads,
                                                                    "TOKENIZERS_PARALLELISM": "true"}).returncode
            if code:
                sys.exit(code)
    else:
        main(int(os.environ["BENCH_THREADS"]))
