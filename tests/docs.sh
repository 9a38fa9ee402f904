#!/usr/bin/env bash
# The pages that are made from the program must be what the program says now.
set -euo pipefail
if ! diff -u "$MUSTER_SOURCE/docs/configuration.md" <("$MUSTER" --help-config=markdown); then
    echo "docs/configuration.md is stale: run scripts/make-docs.sh $MUSTER" >&2
    exit 1
fi

# The scripts work in their own tree, whatever CDPATH and the like say, and with blanks in its path.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset CDPATH
for tree in "-a tree" elsewhere/scripts; do
    mkdir -p "$work/$tree/docs" "$work/$tree/.ci"
    cp -r "$MUSTER_SOURCE/scripts" "$work/$tree/"
    cp "$MUSTER_SOURCE/.ci/run" "$work/$tree/.ci/"
    echo untouched > "$work/$tree/docs/configuration.md"
done
mkdir "$work/elsewhere/docs"
echo untouched > "$work/elsewhere/docs/configuration.md"
export CDPATH="$work/elsewhere:$work" GREP_OPTIONS=-v POSIXLY_CORRECT=1
fail() { echo "FAILED under CDPATH, GREP_OPTIONS and POSIXLY_CORRECT: $*" >&2; exit 1; }
builtin cd -- "$work/-a tree" > /dev/null
bash scripts/make-docs.sh "$MUSTER" || fail "make-docs.sh"
cmp -s docs/configuration.md "$MUSTER_SOURCE/docs/configuration.md" || fail "make-docs.sh did not write its own page"
for page in "$work"/elsewhere/docs/configuration.md "$work"/elsewhere/scripts/docs/configuration.md; do
    [ "$(cat "$page")" = untouched ] || fail "make-docs.sh wrote $page"
done
[[ $(bash scripts/quickstart.sh --help | head -n 1) == "usage: "* ]] || fail "quickstart.sh --help"
[[ $(bash scripts/test.sh --help | head -n 1) == "test.sh "* ]] || fail "test.sh --help"
[[ $(bash .ci/run --help | head -n 1) == "test.sh "* ]] || fail ".ci/run --help"
builtin cd "$work" > /dev/null
[[ $(bash ./-a\ tree/scripts/test.sh --help | head -n 1) == "test.sh "* ]] || fail "test.sh from outside"
