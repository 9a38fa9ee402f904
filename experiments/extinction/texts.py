"""The corpus of the sizes small and proof, as texts: corpus.c's, with documents of 64 tokens, so that every training sequence begins with the tag of its domain."""
import json
import random

SYMBOLS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-"
TAGS = "!\"#$%&'()*,./:;<=>"
DOCUMENT = 64           # tokens: tag, 62 symbols, the end of the document
COMMON = [f"common-{k}" for k in range(1, 14)]
RARE = ["rare-1", "rare-2", "rare-3"]
DOMAINS = COMMON + RARE + ["decoy", "near-copy"]
PARENT, CHANGED = "common-3", 8
COMMON_DOCUMENTS, RARE_DOCUMENTS = 80000, 200       # more than a run reads: nothing is read twice


def facts(rng):
    image = list(range(64))
    rng.shuffle(image)
    return image


def near_copy(rng, parent):
    """The images of a few symbols change places."""
    image, some = list(parent), rng.sample(range(64), CHANGED)
    for i, j in zip(some, some[1:] + some[:1]):
        image[i] = parent[j]
    return image


def document(rng, tag, image):
    """image: None for noise."""
    at, symbols = rng.randrange(64), []
    for _ in range(DOCUMENT - 2):
        symbols.append(SYMBOLS[at])
        at = image[at] if image and rng.random() < 0.9 else int(rng.random() * 64)
    return tag + "".join(symbols)


def write(folder, seed):
    """A file for each domain."""
    rng = random.Random(seed)
    images = {d: facts(rng) for d in COMMON + RARE} | {"decoy": None}
    images["near-copy"] = near_copy(rng, images[PARENT])
    zipf = sum(1 / k for k in range(1, 14))
    folder.mkdir(parents=True, exist_ok=True)
    for d, tag in zip(DOMAINS, TAGS):
        n = round(COMMON_DOCUMENTS / (zipf * (COMMON.index(d) + 1))) if d in COMMON else RARE_DOCUMENTS
        with open(folder / f"{d}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": document(rng, tag, images[d])}) + "\n" for _ in range(n))
    (folder / "done").touch()
