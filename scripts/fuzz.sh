#!/usr/bin/env bash
# fuzz.sh - runs the fuzz targets: readers of files from elsewhere, with random changes to small seeds.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]     default: 600 seconds each, all targets
#
# Needs clang with libFuzzer and AddressSanitizer (Debian: clang, libclang-rt-dev, libomp-dev); builds in build-fuzz/.
# Inputs that crash a reader, or take more than 10 s, 256 MiB at once or 512 MiB with all of the program and the sanitizer, are left in build-fuzz/found/.
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "$0")")/.."

seconds=${1:-600}
shift || true
build=build-fuzz
cmake -S . -B $build -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMUSTER_CUDA=OFF -DBUILD_TESTING=OFF \
      -DMUSTER_SANITIZE=ON -DMUSTER_FUZZ=ON > /dev/null
targets=("$@")
((${#targets[@]})) || for source in tests/fuzz/fuzz_*.c; do targets+=("$(basename "$source" .c)"); done
cmake --build $build --parallel 2 --target "${targets[@]}" > $build/build.log || { tail -20 $build/build.log; exit 1; }

mkdir -p $build/found
failed=0
for target in "${targets[@]}"; do
    corpus=$build/corpus/$target            # grows over runs; the seeds are read, too
    mkdir -p "$corpus"
    log=$build/$target.log
    if OMP_NUM_THREADS=1 $build/tests/fuzz/"$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=256 \
        -artifact_prefix=$build/found/"$target"- "$corpus" tests/fuzz/seeds/"$target" > "$log" 2>&1; then
        echo "$target: $(grep -c . <(ls "$corpus")) inputs kept, $(grep -o 'Done [0-9]* runs' "$log" | tail -1), nothing found"
    else
        echo "$target: FAILED, see $log"
        failed=1
    fi
done
exit $failed
