"""tokenizer_parity.py TOOL TOKENIZERS TEXTS LINES - compares the ids of muster (TOOL: tests/tools/token_ids.c) with those of Hugging
Face's tokenizers, for each TOKENIZERS/*/tokenizer.json: of lines of the files in TEXTS (about LINES of them, spread over all files),
of beginnings of whole files, and of made-up hostile texts; added tokens are recognised, and for a part of the texts special ones are
text as when a corpus is encoded. What muster writes gives the same ids in muster and there."""
import os
import random
import struct
import subprocess
import sys
import tempfile

import tokenizers


def hostile(rng):
    """Texts that mix what splitters treat apart."""
    spans = [(0x20, 0x7E), (0x00, 0x1F), (0x80, 0x24F), (0x250, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xFFF), (0x1000, 0x1CFF),
             (0x1D00, 0x2BFF), (0x2C00, 0x303F), (0x3040, 0x30FF), (0x3100, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7FF), (0xE000, 0xFFFF),
             (0x10000, 0x11FFF), (0x12000, 0x1F9FF), (0x1FA00, 0x323AF), (0xE0000, 0xE01EF)]
    words = ["'s", "'S", "'\u017f", "'ll", "'RE", "'ve", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "/", "//\n", "Hello",
             "HELLO", "helloWorld", "HTTPServer", "123", "1234567", "\u00bd", "\u0663", "e\u0301", "\u0e01\u0e33", "\U0001f469\u200d\U0001f4bb",
             "\u4e2d\u6587", "\u30ab\u30bf\u30ab\u30ca", "\u30fb", "\u1112\u1161\u11ab", "<|endoftext|>", "<|im_start|>", "</s>", "<s>",
             "<unk>", "\u2581", "<0x41>", "a" * 40, " " * 30, "!?" * 9, "\u0345", "\u01c5", "\u02b0", "$", "\u20ac", "_", "\ufeff", "\u200b"]
    for _ in range(4000):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.6:
                parts.append(rng.choice(words))
            else:
                low, high = rng.choice(spans)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 4))))
        yield "".join(c for c in "".join(parts) if not 0xD800 <= ord(c) < 0xE000)


def all_characters():
    """Every character between letters, digits and signs."""
    for first in [*range(0, 0xD800, 64), *range(0xE000, 0x32400, 64), *range(0xE0000, 0xE0200, 64)]:
        yield "".join("a" + chr(c) + "1 " + chr(c) + "!" for c in range(first, first + 64))


def texts_of(folder, lines, rng):
    files = sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
    documents = []
    for path in files:
        with open(path, "rb") as f:
            documents.append(f.read().decode("utf-8", "replace"))
    of_lines = [line for text in documents for line in text.split("\n") if line]
    rng.shuffle(of_lines)
    return of_lines[:lines], [text[:20000] for text in documents]


tokenizers_of = {}


def ours(tool, tokenizer, mode, texts, *more):
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/texts", "wb") as f:
            for text in texts:
                data = text.encode()
                f.write(struct.pack("<I", len(data)) + data)
        subprocess.run([tool, tokenizer, mode, folder + "/texts", folder + "/ids", *more], check=True)
        with open(folder + "/ids", "rb") as f:
            data = f.read()
        if "write" in more:
            written = tokenizers.Tokenizer.from_file(folder + "/ids.json")
            for text, one in zip(texts, written.encode_batch(texts, add_special_tokens=False)):
                if one.ids != tokenizers_of[tokenizer].encode(text, add_special_tokens=False).ids:
                    raise SystemExit("%s: what muster writes gives other ids for %r" % (tokenizer, text[:60]))
    at, out = 0, []
    for _ in texts:
        n, = struct.unpack_from("<I", data, at)
        out.append(list(struct.unpack_from("<%di" % n, data, at + 4)))
        at += 4 + 4 * n
    return out


def compare(tool, path, all_texts, n_corpus):
    theirs = tokenizers_of[path] = tokenizers.Tokenizer.from_file(path)
    bad = 0
    for mode, texts in ("prompt", all_texts), ("corpus", all_texts[-n_corpus:]):
        theirs.encode_special_tokens = mode == "corpus"
        got = ours(tool, path, mode, texts)
        for first in range(0, len(texts), 4096):
            some = texts[first:first + 4096]
            for text, one, ids in zip(some, theirs.encode_batch(some, add_special_tokens=False), got[first:]):
                if one.ids != ids:
                    bad += 1
                    if bad <= 5:
                        i = next((i for i, (a, b) in enumerate(zip(one.ids, ids)) if a != b), min(len(ids), len(one.ids)))
                        print("  differs (%s) at id %d: %r: tokenizers %s, muster %s" % (
                            mode, i, text[:60], [(x, theirs.id_to_token(x)) for x in one.ids[max(0, i - 1):i + 4]],
                            [(x, theirs.id_to_token(x)) for x in ids[max(0, i - 1):i + 4]]))
    theirs.encode_special_tokens = False
    some = all_texts[-500:]
    bad += ours(tool, path, "prompt", some, "write") != [theirs.encode(text).ids for text in some]
    return bad


def main():
    tool, folder, corpus, lines = sys.argv[1:5]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rng = random.Random(1)
    of_lines, documents = texts_of(corpus, int(lines), rng) if corpus else ([], [])
    texts = of_lines + documents + list(all_characters()) + list(hostile(rng)) + [""]
    names = sys.argv[5:] or sorted(n for n in os.listdir(folder) if os.path.exists(os.path.join(folder, n, "tokenizer.json")))
    failed = 0
    for name in names:
        path = os.path.join(folder, name, "tokenizer.json")
        bad = compare(tool, path, texts, 4001)
        failed += bad > 0
        print("%s: %d texts (%d lines, %d characters), %d differ" % (name, len(texts), len(of_lines), sum(map(len, texts)), bad), flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
