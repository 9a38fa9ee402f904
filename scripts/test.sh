#!/usr/bin/env bash
# test.sh [--all] [CTEST OPTION...] - installs missing packages, builds in build-test/ and runs the test suite.
# --all also runs the slow tests: all splits, signals and orders instead of some.
# Other options go to ctest: `scripts/test.sh -L unit` runs only the unit tests, `-R moe` those whose name matches.
# Exit: 0 all passed; 66 a package cannot be installed; else the code of the build or ctest.
set -euo pipefail
unset CDPATH GREP_OPTIONS POSIXLY_CORRECT     # these change the behaviour of cd, grep and bash
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."

selection=(-LE slow)
if [[ ${1:-} == --all ]]; then selection=(-LE part); shift; fi
case ${1:-} in
    -h | --help) sed -n '2,5s/^# //p' scripts/test.sh; exit 0 ;;
esac

program=test
. scripts/lib/steps.sh

step "1/3 packages of the distribution (half a minute when all are missing)"
bash scripts/lib/install-deps.sh || fail $? "without these packages muster cannot be built and tested"

step "2/3 the program and its tests, in build-test/ (a minute or two the first time)"
mkdir -p build-test
: > build-test/test.log
# MUSTER_FAULTS: the points at which the tests of checkpoints make a write fail.
quietly build-test/test.log cmake -S . -B build-test -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DMUSTER_FAULTS=ON
quietly build-test/test.log cmake --build build-test --parallel "$(nproc)"

# A test with several ranks or threads takes two slots (PROCESSORS in tests/CMakeLists.txt): with two
# slots they run one by one.
step "3/3 the tests (a few minutes on two cores)"
jobs=$(nproc)
[[ $jobs -le 4 ]] || jobs=4             # keeps times of single tests comparable
exec ctest --test-dir build-test --output-on-failure --no-tests=error -j "$jobs" "${selection[@]}" "$@"
