#!/usr/bin/env bash
# The pages that are made from the program must be what the program says now.
set -euo pipefail
if ! diff -u "$MUSTER_SOURCE/docs/configuration.md" <("$MUSTER" --help-config=markdown); then
    echo "docs/configuration.md is stale: run scripts/make-docs.sh $MUSTER" >&2
    exit 1
fi
