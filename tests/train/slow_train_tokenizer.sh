# slow_train_tokenizer.sh - train-tokenizer makes the vocabulary and merges of Hugging Face's trainer, on larger texts than the fixture's:
# the sources and pages of this project, and random characters of many scripts. The file loads there and gives the same ids.
# Needs the Python package tokenizers (MUSTER_PYTHON names another interpreter that has it).
. "$(dirname "$0")/train_lib.sh"
python=${MUSTER_PYTHON:-python3}
"$python" -c 'import tokenizers' 2> /dev/null || skip "no Python package tokenizers"

cat > texts.py <<'END_OF_PYTHON'
import glob, json, os, random
source = os.environ["MUSTER_SOURCE"]
def write(name, documents):
    with open(name, "w", encoding="utf-8") as f:
        for d in documents: f.write(json.dumps({"text": d}) + "\n")
files = sorted(f for room in "base kernels autograd dist moe layers optim data train tests docs scripts".split()
               for ending in ("c", "h", "md", "sh", "py") for f in glob.glob(f"{source}/{room}/**/*.{ending}", recursive=True))
write("sources.jsonl", [d for d in (open(f, encoding="utf-8").read() for f in files) if d and "\0" not in d])
rng = random.Random(7)
ranges = [(32, 127), (0xa0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xe80), (0x1e00, 0x2200), (0x2500, 0x2c00), (0x3040, 0x3100), (0x4e00, 0x4f00),
          (0xac00, 0xad00), (0x1f300, 0x1f700), (0xff00, 0xffef)]
def word():
    low, high = rng.choice(ranges)
    return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6)))
words = [word() for _ in range(3000)]
spaces = [" "] * 12 + ["\n", "  ", "\n\n", "\t", "\r\n", "", "", "\u00a0", "\u3000"]
write("scripts.jsonl", ["".join(x for _ in range(2000) for x in (words[int(3000 * rng.random() ** 3)], rng.choice(spaces))) for _ in range(60)])
write("long.jsonl", ["".join(rng.choices("abcdefghijklmnop", k=60000))])
END_OF_PYTHON
cat > compare.py <<'END_OF_PYTHON'
import json, os, sys
sys.path.insert(0, os.environ["MUSTER_SOURCE"] + "/tests/fixtures")
from make_bpe_train import train
from tokenizers import Tokenizer
texts, out, splitter, size, least = sys.argv[1:6]
documents = [json.loads(line)["text"] for line in open(texts, encoding="utf-8")]
tokens, merges = train(documents, splitter=splitter, vocab_size=int(size), min_frequency=int(least))
model = json.load(open(out, encoding="utf-8"))["model"]
assert sorted(model["vocab"], key=model["vocab"].get) == tokens, "another vocabulary"
assert [list(m) for m in model["merges"]] == merges, "other merges"
t = Tokenizer.from_file(out)
sample = documents[0][:5000]
assert t.decode(t.encode(sample, add_special_tokens=False).ids, skip_special_tokens=False) == sample
print(len(documents), "documents,", len(tokens), "tokens,", len(merges), "merges: equal")
END_OF_PYTHON
expect 0 "making texts" on 1 "$python" texts.py
for case in "sources gpt2 3000 2" "sources gpt2 50000 2" "sources cl100k 4000 2" "sources qwen2 2000 5" "sources o200k 3000 2" \
    "scripts gpt2 6000 2" "scripts gpt2 2000 1" "scripts cl100k 4000 2" "scripts o200k 4000 2" "long gpt2 1200 2"; do
    read -r texts pattern size least <<< "$case"
    rm -f tokenizer.json
    expect 0 "$case" on 1 "$MUSTER" train-tokenizer --vocab-size "$size" --pattern "$pattern" --min-frequency "$least" --out tokenizer.json "$texts.jsonl" --threads 2
    expect 0 "$case, compared" on 1 "$python" compare.py "$texts.jsonl" tokenizer.json "$pattern" "$size" "$least"
done
finish
