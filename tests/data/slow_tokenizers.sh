#!/usr/bin/env bash
# slow_tokenizers.sh - ids equal to those of Hugging Face's tokenizers, for real vocabularies, which the repository does not hold.
# MUSTER_PYTHON: a Python that has `tokenizers`. MUSTER_VOCABULARIES: a folder of folders with a tokenizer.json each.
# MUSTER_TEXTS: a folder of texts in many scripts (optional); MUSTER_TEXT_LINES lines of them are taken (100000).
# Without vocabularies the small ones of the fixtures are compared, on hostile texts.
set -u
here=$(cd -- "$(dirname -- "$0")" && pwd)
if [ -z "${MUSTER_PYTHON:-}" ] || ! "$MUSTER_PYTHON" -c 'import tokenizers' 2> /dev/null; then
    echo "skipped: set MUSTER_PYTHON to a Python that has tokenizers"
    exit 77
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
vocabularies=${MUSTER_VOCABULARIES:-$work/vocabularies}
if [ -z "${MUSTER_VOCABULARIES:-}" ]; then
    for file in "$here"/../fixtures/tokenizers/*.json; do
        name=$(basename "$file" .json)
        [ "$name" = expected ] && continue
        mkdir -p "$vocabularies/$name" && cp "$file" "$vocabularies/$name/tokenizer.json"
    done
fi
"$MUSTER_PYTHON" "$here/tokenizer_parity.py" "$MUSTER_TOKEN_IDS" "$vocabularies" "${MUSTER_TEXTS:-}" "${MUSTER_TEXT_LINES:-100000}"
