#!/bin/bash
# consumer.sh - muster as a library: install it, move it, and let another project use it, once
# through CMake's find_package and once through pkg-config. Needs MUSTER_SOURCE, MUSTER_BUILD, and MPIEXEC for
# a build with MPI.
set -u
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl=^tcp,ofi,openib,uct,usnic
here=$(dirname "$(readlink -f "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# check CLAIM COMMAND...: one line, and on failure the output of the command.
check() {
    local claim=$1; shift
    if "$@" > "$work/said" 2>&1; then
        passed=$((passed + 1)); echo "ok    $claim"
    else
        failed=$((failed + 1)); echo "FAIL  $claim"; sed 's/^/      /' "$work/said" | tail -40
    fi
}

cached() { sed -n "s/^$1:[A-Z]*=//p" "$MUSTER_BUILD/CMakeCache.txt"; }
cmake=$(cached CMAKE_COMMAND) cc=$(cached CMAKE_C_COMPILER) mpicc=$(cached MPI_C_COMPILER)
with_mpi=$(cached MUSTER_MPI) shared=$(cached BUILD_SHARED_LIBS)
flags="-O1"
[ "$(cached MUSTER_SANITIZE)" = ON ] && flags="$flags -fsanitize=address,undefined"
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0}

# Installed in one place, used in another: what was installed may be moved.
check "cmake --install" "$cmake" --install "$MUSTER_BUILD" --prefix "$work/first"
mv "$work/first" "$work/prefix"
prefix=$work/prefix
pc=$(find "$prefix" -name muster.pc)
libdir=$(dirname "$(dirname "$pc")")
package=$libdir/cmake/muster

no_paths() { ! grep -rnF -e "$MUSTER_SOURCE" -e "$MUSTER_BUILD" -e "$work" "$package" "$pc"; }
check "the package files hold no path of the build" no_paths
check "the installed program runs" "$prefix/bin/muster" --version

# Public headers, each alone, as strict C11 and as C++17; and nothing but them.
only_public() { [ -z "$(find "$prefix/include/muster" -type f | grep -vE '/([a-z]+)/\1\.h$')" ]; }
check "only public headers are installed" only_public
each_header() {
    local header alone=$work/alone.$1; shift
    for header in "$prefix"/include/muster/*/*.h; do
        echo "#include \"${header#"$prefix/include/muster/"}\"" > "$alone"
        "$@" -Wall -Wextra -Wpedantic -Werror -fsyntax-only -I"$prefix/include/muster" "$alone" || return 1
    done
}
check "headers are C11" each_header c "$cc" -std=c11
if command -v c++ > /dev/null; then check "headers are C++17" each_header cpp c++ -std=c++17; fi

# Nothing of the library's inside gets into a consumer's way.
symbols() {
    local all
    if [ "$shared" = ON ]; then all=$(nm -D --defined-only "$libdir/libmuster.so")
    else all=$(nm -g --defined-only "$libdir/libmuster.a"); fi
    all=$(awk 'NF == 3 && $2 ~ /[TDRB]/ { print $3 }' <<< "$all" | grep -vE '^_|^__asan|^__odr')
    grep -q '^mu_moe_forward$' <<< "$all" && ! grep -v '^mu_' <<< "$all"
}
check "every symbol is called mu_..." symbols

run4() { "$MPIEXEC" -n 4 --oversubscribe "$@"; }

# find_package
export CMAKE_PREFIX_PATH=$prefix
by_cmake=$work/by_cmake
check "find_package(muster): configure" "$cmake" -S "$here/consumer" -B "$by_cmake" \
      -DEXAMPLES="$MUSTER_SOURCE/examples" -DCMAKE_C_COMPILER="$cc" -DCMAKE_C_FLAGS="$flags"
check "find_package(muster): build" "$cmake" --build "$by_cmake"
check "find_package(muster): a small network learns" "$by_cmake/network"
[ "$with_mpi" = ON ] && check "find_package(muster): two of four ranks train" run4 "$by_cmake/consumer"

# pkg-config
export PKG_CONFIG_PATH=$libdir/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
if [ "$shared" = ON ]; then kind=(); else kind=(--static); fi
by_pc() {
    local out=$1 compiler=$2 words; shift 2
    words=$(pkg-config "${kind[@]}" --cflags --libs muster) || return 1
    # shellcheck disable=SC2086
    "$compiler" $flags "$@" -o "$out" $words -lm -Wl,-rpath,"$libdir"
}
looks_first() { echo none > "$work/none.h5"; "$(pkg-config --variable=probe_hdf5 muster)" probe-hdf5 "$work/none.h5"; [ $? = 65 ]; }
check "pkg-config: the program that looks at HDF5 files first" looks_first
no_warning() { ! "$prefix/bin/muster" verify "$work/none" 2>&1 | grep 'muster: warning'; }
check "the installed program finds it, too" no_warning
check "pkg-config: build" by_pc "$work/network" "$cc" "$MUSTER_SOURCE/examples/01_network.c"
check "pkg-config: a small network learns" "$work/network"
if [ "$with_mpi" = ON ]; then
    check "pkg-config: build with mpicc" by_pc "$work/consumer" "$mpicc" "$here/consumer/consumer.c"
    check "pkg-config: two of four ranks train" run4 "$work/consumer"
fi

# The page on using the library: its blocks of code, as they stand there.
block() { awk -v kind="\`\`\`$1" '$0 == kind { on = 1; next } /^```/ { on = 0 } on' "$MUSTER_SOURCE/docs/library.md"; }
mkdir "$work/page"
block cmake > "$work/page/CMakeLists.txt"
block c > "$work/page/mine.c"
check "docs/library.md: configure" "$cmake" -S "$work/page" -B "$work/page/build" -DCMAKE_C_COMPILER="$cc" \
      -DCMAKE_C_FLAGS="$flags -Wall -Wextra -Werror"
check "docs/library.md: build" "$cmake" --build "$work/page/build"
check "docs/library.md: run" "$work/page/build/mine"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
