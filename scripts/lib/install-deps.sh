#!/usr/bin/env bash
# install-deps.sh - installs the packages that building and testing muster needs, from the distribution.
#
# install-deps.sh [run]: with `run`, without those that only tests need.
#
# Run it, or source it (its status is then the status of `.`; it defines only functions).
# Made for Debian 12 and 13. Lists the packages and their purpose before installing them; prints one
# line when nothing is missing. On other systems it only lists what is missing.
#   0   everything is installed
#   66  a package is not available; the last lines name it, and the log of apt

# package | how to find it when installed otherwise | why
muster_deps_table() {      # [run]
    cat <<'TABLE'
gcc            | command gcc            | C compiler with OpenMP
libc6-dev      | include stdio.h        | headers of the C library
binutils       | command ld             | linker and archiver
cmake          | command cmake          | configures the build
make           | command make           | runs the build
pkg-config     | command pkg-config     | finds the libraries below
libopenmpi-dev | command mpicc          | MPI: training on several ranks
openmpi-bin    | command mpirun         | starts the ranks
libhdf5-dev    | module hdf5-serial hdf5| checkpoints, token files, routing records
libyaml-dev    | module yaml-0.1        | reads configurations
libjansson-dev | module jansson         | reads JSON
libxxhash-dev  | module libxxhash       | checksums of checkpoints
libutf8proc-dev| module libutf8proc     | Unicode: classes of characters, normal forms
libonig-dev    | module oniguruma       | tokenizers with a pattern of their own
zlib1g-dev     | module zlib            | reads .gz texts
libzstd-dev    | module libzstd         | reads .zst texts
libpng-dev     | module libpng          | pictures of reports
TABLE
    [ "${1:-}" = run ] || cat <<'TABLE'
libcmocka-dev  | module cmocka          | unit tests
g++            | command g++            | tests: the CUDA kernels compiled for the host
libboost-context-dev | include boost/context/detail/fcontext.hpp | tests: the threads of a CUDA block, as fibres
qemu-user      | command qemu-x86_64    | tests: other processors, emulated
gcc-aarch64-linux-gnu   | command aarch64-linux-gnu-gcc | tests: the kernels compiled for AArch64
libc6-dev-arm64-cross   | command aarch64-linux-gnu-gcc | tests: the C library for it
TABLE
}

muster_deps_probe() {       # KIND NAME...: true when one of the names is found
    local kind=$1 name
    shift
    for name in "$@"; do
        case $kind in
            command) command -v "$name" ;;
            module)  pkg-config --exists "$name" ;;
            include) printf '#if !__has_include(<%s>)\n#error absent\n#endif\n' "$name" | gcc -E -x c - ;;
        esac > /dev/null 2>&1 && return 0
    done
    return 1
}

muster_deps_missing() {     # [run]: a line for each missing package: "package | why"
    local package probe why kind
    muster_deps_table "${1:-}" | while IFS='|' read -r package probe why; do
        package=${package%% *}
        kind=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null) || kind=
        [ "$kind" = installed ] && continue
        # shellcheck disable=SC2086     # the probe is a list of words
        muster_deps_probe $probe || echo "$package |$why"
    done
}

muster_deps_names() {       # the packages of such lines, in one line
    echo "$1" | sed 's/ *|.*//' | paste -s -d ' '
}

muster_deps_fail() {        # LOG MESSAGE...
    local log=$1
    shift
    if [ -n "$log" ]; then
        echo "---- output of apt, from $log" >&2
        grep -v '^\(Ign\|Get\|Hit\):' "$log" | tail -n 20 >&2
        echo "----" >&2
    fi
    echo "install-deps: $*" >&2
    return 66
}

muster_install_deps() (     # [run]; a subshell: nothing of this reaches a script that sources the file
    set +eu +o pipefail
    missing=$(muster_deps_missing "$1")
    if [ -z "$missing" ]; then
        echo "install-deps: everything needed is installed"
        return 0
    fi
    packages=$(muster_deps_names "$missing")
    # shellcheck disable=SC1091
    system=$(. /etc/os-release 2> /dev/null && echo "$PRETTY_NAME")
    if ! command -v apt-get > /dev/null || ! command -v dpkg-query > /dev/null; then
        muster_deps_fail "" "${system:-this system} has no apt; install these manually (Debian names): $packages"
        return
    fi
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
        if ! command -v sudo > /dev/null || { [ ! -t 0 ] && ! sudo -n true 2> /dev/null; }; then
            muster_deps_fail "" "not root and no sudo; run as root: apt-get install --no-install-recommends $packages"
            return
        fi
    fi
    log=$(mktemp "${TMPDIR:-/tmp}/muster-deps.XXXXXX") || {
        muster_deps_fail "" "cannot write a log in ${TMPDIR:-/tmp}"
        return
    }
    echo "installing these packages of ${system:-this system} and their dependencies${as_root:+ (with sudo)}:"
    echo "$missing" | while IFS='|' read -r package why; do printf '    %-23s%s\n' "$package" "$why"; done
    echo "apt's output goes to $log"

    apt="$as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -o DPkg::Lock::Timeout=120"
    install="$apt install --no-install-recommends"
    # An index that fails twice may be a third-party one that is not needed: checked below.
    $apt update -o APT::Update::Error-Mode=any >> "$log" 2>&1 < /dev/null || {
        sleep 3
        $apt update >> "$log" 2>&1 < /dev/null
    }
    absent=
    for package in $packages; do
        LC_ALL=C apt-cache policy "$package" 2> /dev/null | grep -q 'Candidate: [^(]' || absent="$absent $package"
    done
    if [ -n "$absent" ]; then
        muster_deps_fail "$log" "not available from the package sources of ${system:-this system}:$absent" \
            "- is the network up? Debian 12 and 13 have all of them in \"main\""
        return
    fi
    # shellcheck disable=SC2086
    size=$($install --print-uris $packages 2>> "$log" < /dev/null |
           awk '/^\047/ { bytes += $3 } END { printf "%d MB", bytes / 1e6 + 0.5 }')
    echo "$size to download, installing ..."
    start=$SECONDS
    # shellcheck disable=SC2086
    if ! $install -y $packages >> "$log" 2>&1 < /dev/null; then
        muster_deps_fail "$log" "apt could not install all of: $packages"
        return
    fi
    missing=$(muster_deps_missing "$1")
    if [ -n "$missing" ]; then
        muster_deps_fail "$log" "apt reported success, but these are missing: $(muster_deps_names "$missing")"
        return
    fi
    echo "install-deps: installed in $((SECONDS - start)) s"
)

muster_install_deps "${1:-}"
