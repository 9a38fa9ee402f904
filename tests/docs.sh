#!/usr/bin/env bash
# Generated pages must match the program's current output.
set -euo pipefail
if ! diff -u "$MUSTER_SOURCE/docs/configuration.md" <("$MUSTER" --help-config=markdown); then
    echo "docs/configuration.md is stale: run scripts/make-docs.sh $MUSTER" >&2
    exit 1
fi

# Files named in the pages exist.
for page in README.md CONTRIBUTING.md docs/library.md; do
    for path in $(grep -oE '\b(base|kernels|autograd|dist|moe|layers|optim|data|train|tests|bench|examples|scripts|configs|docs)/[a-z0-9_./-]+\.(c|h|cu|py|sh|md|yaml)\b' "$MUSTER_SOURCE/$page" | sort -u); do
        [ -e "$MUSTER_SOURCE/$path" ] || { echo "$page names $path, which is not there" >&2; exit 1; }
    done
done

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

# Through a link; and arguments are shown without the control characters in them.
ln -s "$work/-a tree/scripts/make-docs.sh" "$work/elsewhere/linked"
echo stale > "$work/-a tree/docs/configuration.md"
bash elsewhere/linked "$MUSTER" || fail "make-docs.sh through a link"
cmp -s "$work/-a tree/docs/configuration.md" "$MUSTER_SOURCE/docs/configuration.md" || fail "make-docs.sh through a link: another page"
for script in make-docs quickstart; do
    said=$(bash "$work/-a tree/scripts/$script.sh" $'a\eb' 2>&1) && fail "$script.sh took a strange argument"
    [[ $said == *"'a\\Eb'"* && $said != *$'\e'* ]] || fail "$script.sh: $said"
done

# get-texts.sh, where apt has nothing to offer: what it did not make stays as it is.
mkdir -p bin texts/.partial-mine texts/.partial-left
printf '#!/bin/sh\nexit 1\n' > bin/apt-cache
chmod +x bin/apt-cache
echo mine > texts/.partial-mine/file
echo mine > texts/.lock
touch texts/.partial-left/.get-texts
get_texts() {       # get_texts CODE
    local code=0
    PATH=$work/bin:$PATH bash "$work/-a tree/scripts/get-texts.sh" texts > said 2>&1 || code=$?
    [ $code = "$1" ] || fail "get-texts.sh: exit code $code, expected $1: $(cat said)"
}
bash "$work/-a tree/scripts/get-texts.sh" --help | grep -q '^usage: scripts/get-texts.sh .FOLDER. .MAX_BYTES.' || fail "get-texts.sh --help"
for arguments in --nonsense "one 10000 two"; do
    bash "$work/-a tree/scripts/get-texts.sh" $arguments > said 2>&1 && fail "get-texts.sh $arguments was accepted"
    [[ $? = 64 && ! -e ${arguments%% *} ]] || fail "get-texts.sh $arguments: $(cat said)"
done
get_texts 3
[[ $(cat texts/.lock texts/.partial-mine/file) == $'mine\nmine' && ! -e texts/.partial-left ]] || fail "get-texts.sh: other files than its own"
echo mine > texts/SOURCES.txt
get_texts 1
grep -q 'SOURCES.txt exists but was not made by this script' said || fail "get-texts.sh: $(cat said)"
rm texts/SOURCES.txt texts/.lock
mkfifo texts/.lock
get_texts 1
