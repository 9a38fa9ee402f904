#!/usr/bin/env bash
# make-docs.sh [MUSTER] - writes docs/configuration.md anew from the program's option tables (default:
# build/muster). tests/docs.sh fails while the page is older than the tables.
set -euo pipefail
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # which change what cd, grep and bash itself do
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."
muster=${1:-build/muster}
[[ -x $muster ]] || { echo "make-docs: error: there is no program $(printf %q "$muster"); build it first" >&2; exit 66; }
page=$("$muster" --help-config=markdown)
printf '%s\n' "$page" > docs/configuration.md
echo "make-docs: docs/configuration.md is written"
