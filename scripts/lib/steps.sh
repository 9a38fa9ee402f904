# steps.sh - sourced by scripts that print numbered steps; they set `program`, the name in their messages.
# shellcheck shell=bash disable=SC2154
step() { printf '\n== %s\n' "$*"; }
fail() { local code=$1; shift; echo "$program: error: $*" >&2; exit "$code"; }

# quietly LOG COMMAND...: its output goes to LOG, and to the screen only when it fails.
quietly() {
    local log=$1 code=0
    shift
    "$@" >> "$log" 2>&1 || code=$?
    [[ $code -eq 0 ]] || { tail -n 40 "$log" >&2; fail "$code" "\"$*\" failed (exit $code), all of its output is in $log"; }
}
