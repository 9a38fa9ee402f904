#!/usr/bin/env bash
# make-docs.sh [MUSTER] - writes docs/configuration.md from the program's option tables (default:
# build/muster). tests/docs.sh fails when the page is out of date.
set -euo pipefail
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # these change the behaviour of cd, grep and bash
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."
muster=${1:-build/muster}
[[ -x $muster ]] || { echo "make-docs: error: program $(printf %q "$muster") not found; build it first" >&2; exit 66; }
page=$("$muster" --help-config=markdown)
printf '%s\n' "$page" > docs/configuration.md
echo "make-docs: docs/configuration.md written"
