#!/usr/bin/env bash
# structure.sh - project rules that a compiler does not check: which folder may include which, who may
# include MPI, HDF5 and CUDA, who may print or exit, how a source file begins. Each rule is also tried on
# a line that breaks it. MUSTER_SOURCE is the folder with the sources (default: beside this script).
set -u
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # which change what cd, grep and bash itself do
source_tree=${MUSTER_SOURCE:-$(cd -- "$(dirname -- "$0")/.." && pwd)}
rooms="base kernels autograd dist moe layers optim data train"
library="base kernels autograd dist moe layers optim data"

sources() {         # FOLDER...: C and CUDA files, relative
    find "$@" -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null | sort
}

code() {            # FILE: its lines as line:text, comments blanked
    awk '{
        line = $0; out = ""
        while (line != "") {
            if (inside) { i = index(line, "*/"); if (!i) { line = ""; break }; line = substr(line, i + 2); inside = 0 }
            else {
                i = index(line, "/*"); j = index(line, "//")
                if (j && (!i || j < i)) { out = out substr(line, 1, j - 1); line = "" }
                else if (i) { out = out substr(line, 1, i - 1); line = substr(line, i + 2); inside = 1 }
                else { out = out line; line = "" }
            }
        }
        if (out ~ /[^ \t]/) print FNR ":" out
    }' "$1"
}

grep_code() {       # PATTERN ALLOWED FOLDER...: lines of code that match, outside the allowed files
    local pattern=$1 allowed=$2 f; shift 2
    for f in $(sources "$@"); do
        [[ $f =~ ^($allowed)$ ]] || code "$f" | grep -E "$pattern" | sed "s|^|$f:|"
    done
}

# ---------------------------------------------------------------- the rules: each prints what breaks it
rooms_in_order() {
    local room other above="" allowed f
    for room in $rooms; do
        allowed=" $above $room "
        [ "$room" = data ] && allowed=" base data "
        for f in $(sources "$room"); do
            grep -nE '^ *# *include *"' "$f" | sed -E 's/^([0-9]+):.*"([^"]*)".*/\1 \2/' | while read -r line header; do
                other=${header%%/*}
                if [[ $allowed != *" $other "* ]]; then echo "$f:$line: $room includes $header"
                elif [ "$other" != "$room" ] && [ "$header" != "$other/$other.h" ]; then
                    echo "$f:$line: $header is not the public header of $other"
                fi
            done
        done
        above="$above $room"
    done
}
mpi_in_one_file()   { grep_code '# *include *[<"]mpi\.h|(^|[^A-Za-z_])MPI_[A-Z]' 'dist/mpi\.c' $rooms; }
hdf5_in_one_file()  { grep_code '# *include *[<"]hdf5' 'base/store\.c' $rooms; }
devices_in_kernels(){ grep_code '# *include *[<"](dnnl|oneapi|cblas|cuda|cublas|curand|immintrin|arm_)' 'kernels/.*' $rooms; }
nobody_prints()     { grep_code '(^|[^a-z_])(printf|vprintf|puts|putchar|perror) *\(|stderr|stdout' 'base/fatal\.c' $library; }
nobody_exits()      { grep_code '(^|[^a-zA-Z_0-9])(exit|_exit|_Exit|abort|quick_exit) *\(' 'base/fatal\.c|dist/mpi(_none)?\.c' $library; }
nobody_asserts()    { grep_code '(^|[^a-zA-Z_])assert *\(|assert\.h' '-' $rooms; }
no_environment()    { grep_code '(^|[^a-z_])(secure_)?getenv *\(|(set|put)env *\(' 'base/threads\.c' $library; }
no_signals()        { grep_code '(^|[^a-z_])(signal|sigaction) *\(' '-' $library; }
no_rand()           { grep_code '(^|[^a-z_])(s?rand|random|drand48) *\(' '-' $rooms; }
head_comments() {
    local f
    for f in $(sources $rooms); do
        head -1 "$f" | grep -qE "^/\* ${f##*/}( -|:) " || echo "$f: does not begin with /* ${f##*/} - ..."
    done
}
one_op_a_file() {
    local f
    for f in $(sources autograd/ops dist/ops moe/ops); do
        [ "$(grep -c '^static const mu_op ' "$f")" = 1 ] || echo "$f: not exactly one mu_op"
    done
}
no_native()         { grep -rnE 'march=native|mcpu=native' CMakeLists.txt $rooms 2>/dev/null; }

# ---------------------------------------------------------------- running them
passed=0 failed=0
trap 'rm -rf "${broken:-}"' EXIT

# RULE FILE TEXT...: holds for the sources, and does not for a tree with these texts in these files
rule() {
    local name=$1 found; shift
    cd "$source_tree" || exit 1
    found=$($name)
    if [ -n "$found" ]; then failed=$((failed + 1)); echo "FAILED $name"; echo "$found" | head -20
    else passed=$((passed + 1)); echo "ok     $name"; fi
    while [ $# -ge 2 ]; do
        broken=$(mktemp -d) && mkdir -p "$broken/$(dirname "$1")" && printf '%s\n' "$2" > "$broken/$1"
        cd "$broken" || exit 1
        if [ -n "$($name)" ]; then passed=$((passed + 1))
        else failed=$((failed + 1)); echo "FAILED $name does not see '$2' in $1"; fi
        cd / && rm -rf "$broken"
        shift 2
    done
}

rule rooms_in_order      moe/a.c '#include "layers/layers.h"'  data/a.c '#include "kernels/kernels.h"' \
                         layers/a.c '#include "autograd/internal.h"'  kernels/cpu/a.c '  # include "optim/optim.h"'
rule mpi_in_one_file     dist/comm.c '#include <mpi.h>'  train/a.c 'MPI_Init(0, 0);'
rule hdf5_in_one_file    train/checkpoint.c '#include <hdf5.h>'
rule devices_in_kernels  moe/a.c '#include <cuda_runtime.h>'  autograd/a.c '#include <oneapi/dnnl/dnnl.h>'
rule nobody_prints       moe/a.c '    printf("x");'  base/a.c 'fprintf(stderr, "x");'
rule nobody_exits        data/a.c '    exit(1);'  optim/a.c 'if (x) abort();'
rule nobody_asserts      layers/a.c 'assert(x);'  train/a.c '#include <assert.h>'
rule no_environment      dist/a.c 'char *p = getenv("X");'
rule no_signals          dist/a.c 'signal(SIGTERM, f);'
rule no_rand             data/a.c 'int x = rand();'
rule head_comments       moe/a.c '#include "moe/moe.h"'
rule one_op_a_file       moe/ops/a.c '/* a.c - nothing */'
rule no_native           CMakeLists.txt 'add_compile_options(-march=native)'

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
