#!/usr/bin/env bash
# expert.sh - muster expert: what it shows; every result trains on, verifies, evaluates and converts, with its lineage; the source stays as it
# is; what must not be replaced is refused; an archive that cannot be written stops what would have overwritten the expert, and a kill at any
# moment leaves earlier records whole.
. "${MUSTER_SOURCE:?}/tests/train/train_lib.sh"

# run CODE PATTERN ARGUMENT...: muster expert
run() {
    local code=$1 pattern=$2; shift 2
    on 1 "$MUSTER" expert "$@"
    local got=$?
    [ "$got" = "$code" ] && grep -qE -- "$pattern" log && pass || fail "expert $*: exit code $got, expected $code and '$pattern'"
}
source_is_as_it_was() {
    local now; now=$(cd "$run" && find . -path ./archive -prune -o -type f -print0 | sort -z | xargs -0 md5sum)
    [ "$now" = "$was" ] && pass || fail "$1 changed $run"
}
# works FOLDER STEP EXPERTS: the result verifies, converts, and trains on
works() {
    expect 0 "verify $1" on 1 "$MUSTER" verify "$1"
    expect 0 "eval $1" on 1 "$MUSTER" eval "$1"
    expect 0 "convert $1" on 1 "$MUSTER" convert "$1" "$1.hf" --to hf
    grep -q "\"n_routed_experts\": $3" "$1.hf/config.json" && pass || fail "$1.hf: not $3 experts"
    expect 0 "train $1 on" on 1 "$MUSTER" train "$1/config.resolved.yaml" train.steps=$(($2 + 6))
    says "train $1 on" "^resuming from .*step $2"
    expect 0 "fork $1" train 1 "$1.fork" moe.num_experts="$3" $balance train.steps=$(($2 + 6)) --fork "$1/checkpoints/$(printf 'step-%08d' "$2")"
    expect 0 "verify $1 later" on 1 "$MUSTER" verify "$1"
    grep -q '"edits":\[{"what"' "$1/checkpoints/$(printf 'step-%08d' $(($2 + 6)))/manifest.json" && pass || fail "$1: no lineage after training"
}

balance="moe.balance=[expert_bias] moe.score_func=sigmoid moe.num_shared_experts=1"
run=base
ranks=1
[ -n "${MPIEXEC:-}" ] && ranks=2
expect 0 "the run" train $ranks base parallel.ep=$ranks train.steps=25 stats.every=5 stats.budget=0.5 checkpoint.every=20 $balance
was=$(cd base && find . -type f -print0 | sort -z | xargs -0 md5sum)

# ---------------------------------------------------------------- usage
run 64 'list, archive, freeze' nothing base
run 64 'did you mean restore' restor base 0:1 --out x
run 64 'needs an expert' freeze base --out x
run 64 'needs --out' freeze base 0:1
run 64 'layer 7' freeze base 7:1 --out x
run 64 'experts are 0 to 7' freeze base 0:8 --out x
run 64 'works only in that layer' restore base 0:1 --slot 1:2 --out x
run 64 'does not take' freeze base 0:1 --keep 3 --out x
run 64 'exists' freeze base 0:1 --out base
run 66 'no such run' freeze nowhere 0:1 --out x
run 66 'has no archive' restore base 0:1 --out x
run 66 'no such file' restore base 0:1 --from nowhere --out x
run 65 'is neither a run' list .
run 78 'only a dead one' reseed base 0:1 --out x
run 64 'have 8 experts' prune base --keep 8 --out x
run 64 'takes moe.top_k=2' prune base --keep 1 --out x
run 64 'unknown option' prune base --fewer 1 --out x
[ -e x ] && fail "a refused command left a folder" || pass
source_is_as_it_was "what was refused"

# ---------------------------------------------------------------- list and archive
run 0 '^ +3 +(healthy|starved|dead)' list base
run 0 'archive/layer_00/expert_003/step-00000025.h5' archive base 0:3
run 0 'step-00000020.h5' archive base/checkpoints/step-00000020 0:3
run 0 'archived at step 25 and before' list base
run 0 'records/layer_01/expert_007' archive base 1:7 --out records
source_is_as_it_was archive

# of several ranks the first does it, and all end alike
if [ -n "${MPIEXEC:-}" ]; then
    on 1 "$MUSTER" expert list base; cp log listed
    on 2 "$MUSTER" expert list base && cmp -s log listed && pass || fail "expert list on two ranks is another"
    on 2 "$MUSTER" expert freeze base 0:9 --out x; code=$?
    [ $code = 64 ] && [ "$(grep -c 'experts are 0 to 7' log)" = 1 ] && [ ! -e x ] && pass || fail "expert on two ranks: exit code $code, expected 64 and one message"
    expect 0 "expert on two ranks" on 2 "$MUSTER" expert freeze base 0:3 --out both
fi

# ---------------------------------------------------------------- every operation
run 0 'written: frozen' freeze base 0:3 --out frozen
run 0 'frozen$' list frozen
[ -z "${MPIEXEC:-}" ] || same_checkpoint frozen both 25
works frozen 25 8
cp -r frozen parts
rm -r parts/checkpoints/step-00000031
expect 0 "a frozen expert, in one go" train 1 parts train.steps=31 checkpoint.every=3 stats.every=5 stats.budget=0.5 parallel.ep=1 $balance
cp -r parts resumed
expect 0 "a frozen expert, resumed" train 1 resumed train.steps=31 checkpoint.every=3 stats.every=5 stats.budget=0.5 parallel.ep=1 $balance --resume resumed/checkpoints/step-00000027
same_checkpoint parts resumed 31
run 78 'frozen already' freeze frozen 0:3 --out x
run 0 'written: thawed' freeze frozen 0:3 --undo --out thawed

run 0 'written: reseeded' reseed base 0:2 --force --out reseeded
ls reseeded/archive/layer_00/expert_002/step-00000025.h5 > /dev/null && pass || fail "the old expert was not archived"
works reseeded 25 8
run 0 'step 25' list reseeded/checkpoints/step-00000025
says "re-seeded" '^ +2 +healthy .*replaced at step 25'
run 0 'written: doubled' duplicate base 1:5 --slot 1:6 --force --out doubled
works doubled 25 8
run 0 'written: back' restore reseeded/checkpoints/step-00000025 0:2 --force --out back
says "restored" 'relative error 0'
works back 25 8
run 0 'written: moved' restore base 0:3 --slot 0:4 --force --out moved
run 0 'written: other' restore base 0:1 --from frozen --force --out other
run 64 'holds expert 3 of layer 0' restore base 0:1 --from base/archive/layer_00/expert_003/step-00000025.h5 --force --out x
echo "no HDF5" > bad.h5
run 65 'bad.h5' restore base 0:1 --from bad.h5 --out x

# a dry run writes nothing, and says the truth
run 0 'mean, by their shares' reseed base 0:2 --force --dry-run
predicted=$(awk '/mean, by/ { print $(NF-1) }' log)
on 1 "$MUSTER" eval reseeded/checkpoints/step-00000025
found=$(printf %.4f "$(grep -oE '[0-9.]+ nats/token' log | cut -d' ' -f1)")
[ -n "$predicted" ] && [ "$predicted" = "$found" ] && pass || fail "predicted $predicted, the result has $found"

run 0 'written: small' prune base --keep 5 --by criticality --out small
[ "$(ls small/archive/layer_00 small/archive/layer_01 | grep -c expert)" = 6 ] && pass || fail "not every removed expert was archived"
works small 25 5
run 0 'after' prune base --keep 4 --dry-run
source_is_as_it_was "surgery"

# what muster convert made has weights only
expect 0 "convert back" on 1 "$MUSTER" convert small.hf weights --to muster
run 0 'written: heavier' duplicate weights 0:1 --slot 0:2 --out heavier
expect 0 "convert again" on 1 "$MUSTER" convert heavier heavier.hf --to hf
cmp -s small.hf/config.json heavier.hf/config.json && pass || fail "surgery on weights changed config.json"
expect 0 "a run with these weights" train 1 heavy $balance moe.num_experts=5 --init-from heavier
run 78 'weights only' freeze weights 0:1 --out x
run 78 'weights only' list weights

# ---------------------------------------------------------------- a carrier is lost and comes back
# Domain a has an expert of its own in each layer, which a run archives, and is then absent.
carriers=(stats.every=20 stats.budget=1 stats.rare_domain=0.5 stats.carrier_criticality=0.005 stats.carrier_gain=0 checkpoint.every=100 checkpoint.keep=9
          "moe.force_domains={a: 3}" moe.num_shared_experts=1 moe.balance=[expert_bias] moe.score_func=sigmoid)
expect 0 "the run with carriers" train $ranks rare parallel.ep=$ranks train.steps=300 "${carriers[@]}"
run 0 '^ +3 +carrier .* a .*archived at step 300' list rare
grep -q '"event":"archive","layer":0,"expert":3,"reason":"became a carrier","written":true' rare/events.jsonl && pass || fail "no record when it became a carrier"
grep -q '"step":300,"event":"archive","layer":1,"expert":3,"reason":"end of the run"' rare/events.jsonl && pass || fail "no record at the end"
[ "$(ls rare/archive/layer_00/expert_003 | wc -l)" -le 3 ] && pass || fail "more than three records"
expect 0 "report" on 1 "$MUSTER" report rare --out rare.html --no-texts
grep -q 'archived: became a carrier' rare.html && pass || fail "the report shows no archives"
grep -qE '<tr><td>0</td><td>3</td><td class="words">a</td><td class="words">carrier since step [0-9]+</td>.*<td class="words">no</td><td class="words">300, [0-9, ]+</td></tr>' rare.html &&
    pass || fail "the report does not show the carrier of a and its records"
grep -qE '<dt>archive</dt><dd>[0-9]+ records, [0-9.]+ MB' rare.html && pass || fail "the report does not show what archives take"
cp -r rare again
expect 0 "from step 200 again" train 1 again train.steps=300 parallel.ep=1 "${carriers[@]}" --resume again/checkpoints/step-00000200
ls again/archive/layer_00/expert_003/step-00000300.h5.aside > /dev/null 2>&1 && pass || fail "a record of an abandoned history was not set aside"
expect 0 "without domain a" train 1 gone train.steps=400 "${carriers[@]}" --fork rare \
    "data.phases=[{until_step: 300, mix: {a: 1, b: 2}}, {until_step: 400, mix: {b: 1}}]"
expect 0 "an expert that starves" train 1 starving train.steps=300 stats.every=20 stats.budget=0 "moe.force_domains={a: 3}" stats.window=20 \
    "data.phases=[{until_step: 60, mix: {a: 1, b: 2}}, {until_step: 300, mix: {b: 1}}]"
[ "$(grep -c '"event":"archive","layer":0,"expert":3,"reason":"starved for the first time","written":true' starving/events.jsonl)" = 1 ] && pass ||
    fail "a starved expert was not archived once"
expect 0 "no archives" train 1 none train.steps=40 "${carriers[@]}" protect.archive=false
[ -e none/archive ] && fail "archives although protect.archive is off" || pass
run 78 'is carrier: only a dead one' reseed rare 0:3 --out x
run 78 'is dormant: only a dead one' reseed gone 0:3 --out x
run 78 'is dormant: only' duplicate gone 0:1 --slot 0:3 --out x
run 0 'written: lost' reseed gone 0:3 --force --out lost
run 0 'written: found' restore lost 0:3 --from rare --force --heal 30 --out found
says "Fisher information" '^Fisher information for a, of 8 sequences: 90 % of it is in [0-9.]+ %'
says "healing" '^  healed +[0-9.]+ +(9[0-9]|10[0-9]) %'
run 0 '^ +3 +carrier .* a ' list found
run 65 'rolled back' restore lost 1:3 --from rare --force --heal 0 --out x
# steps that do not bring the domain back: its other expert is lost, too
was_lost=$(cd lost && find . -type f -print0 | sort -z | xargs -0 md5sum)
run 65 'rolled back: -?[0-9]+ % of what was learned of a is known' restore lost 1:3 --from rare --force --heal 30 --out x
says "healing that fails" '^  healed +[0-9.]+ +(-?[0-9]|[1-8][0-9]) %'
[ -z "$(ls -d x* 2> /dev/null)" ] && pass || fail "a healing that was rolled back left $(ls -d x*)"
[ "$was_lost" = "$(cd lost && find . -type f -print0 | sort -z | xargs -0 md5sum)" ] && pass || fail "a healing that was rolled back changed its source"
expect 0 "without an oracle" train 1 free train.steps=600 "${carriers[@]}" "moe.force_domains={}" --fork gone
run 65 'rolled back.*they lose 0\.[0-9]*[1-9]' restore free 0:3 --from rare --force --heal 30 --out x      # which others use by now
run 65 'not an archived expert|damaged|HDF5|cannot' restore lost 0:3 --from bad.h5 --force --heal 0 --out x
run 78 'names no domain' restore base 0:3 --force --heal 3 --out x
run 64 'at most 100' restore base 0:3 --heal 101 --force --out x
run 78 'last carrier of a' prune gone --keep 4 --out x
run 78 'last carrier of a' prune gone --keep 4 --force --out x
run 0 'written: fewer' prune gone --keep 4 --force --force --out fewer
says "prune, told twice" 'layer 0 loses expert 3, the last carrier of a'
says "prune, told twice" '^a is left out of moe.force_domains: expert 3 does not stay in layer 0'
grep -q 'force_domains: {}' fewer/config.resolved.yaml && pass || fail "a table names an expert that is gone"
run 64 'holds expert 3 of layer 0' restore fewer 0:0 --from fewer/archive/layer_00/expert_003/step-00000400.h5 --dry-run
# experts that tables name have new numbers
run 0 'written: dense' prune gone --keep 6 --by criticality --out dense
says "renumbered" '^layer 0 keeps 3 '
says "renumbered" '^layer 1 keeps 3 '
grep -q 'force_domains: {a: 0}' dense/config.resolved.yaml && pass || fail "moe.force_domains was not renumbered"
run 0 '^ +0 +dormant .* a ' list dense
expect 0 "verify dense" on 1 "$MUSTER" verify dense
expect 0 "eval dense" on 1 "$MUSTER" eval dense
expect 0 "train dense on" on 1 "$MUSTER" train dense/config.resolved.yaml train.steps=406
on 1 "$MUSTER" expert list base
least=$(awk '/^layer 1/ { exit } $1 ~ /^[0-9]+$/ && (load == "" || $3 < load) { load = $3; x = $1 } END { print x }' log)
expect 0 "a table of carriers" train 1 named train.steps=30 stats.every=5 "protect.carriers={b: $least}" $balance --fork base
ls named/archive/layer_0*/expert_00$least/step-00000030.h5 > /dev/null 2>&1 && pass || fail "a carrier of the table was not archived at the end"
grep -q '"event":"archive","layer":1,"expert":'"$least"',"reason":"end of the run","written":true' named/events.jsonl && pass || fail "no event of its record"
h5carries=$(grep -c '"carries":"b"' -a "named/archive/layer_00/expert_00$least/step-00000030.h5")
[ "$h5carries" -ge 1 ] && pass || fail "the record of a carrier of the table does not name its domain"
run 78 "protect.carriers gives b to expert $least, which layer . would lose" prune named --keep 2 --out x
run 0 "b is left out of protect.carriers: expert $least" prune named --keep 2 --force --out x
rm -rf x
run 0 'split of expert' reseed base 0:$least --force --dry-run
busiest=$(grep -o 'split of expert [0-9]*' log | grep -o '[0-9]*$')
expect 0 "a busy carrier" train 1 busy train.steps=27 "protect.carriers={b: $busiest}" $balance --fork base
run 0 'split of expert' reseed busy 0:$least --force --dry-run
grep -q "split of expert $busiest\b" log && fail "a carrier of the table was split" || pass
record=$(ls named/archive/layer_00/expert_00$least/step-*.h5 | head -1)
rm -f $(ls named/archive/layer_00/expert_00$least/step-*.h5 | tail -n +2)
printf X | dd of=$record bs=1 seek=3000 conv=notrunc 2> /dev/null
run 65 'step-[0-9]*\.h5' restore named 0:$least --force --out x
run 64 'takes no --out' list base --out x

# ---------------------------------------------------------------- faults
if [ "${MUSTER_HAS_FAULTS:-}" = 1 ]; then
    record=base/archive/layer_00/expert_003/step-00000025.h5
    cp $record whole.h5
    for point in archive-open archive-middle archive-before-close archive-before-rename archive-compare expert-checkpoint; do
        MUSTER_FAULT=$point:0:enospc run 74 'no space left|read back' reseed base 0:2 --force --out x
        [ -e x ] && fail "$point: a result without an archive" || pass
        ls -d x.tmp* > /dev/null 2>&1 && fail "$point: left $(ls -d x.tmp*)" || pass
    done
    for point in archive-open archive-middle archive-before-close archive-before-rename; do
        MUSTER_FAULT=$point:0:kill on 1 "$MUSTER" expert archive base 0:3
        [ $? -gt 128 ] && cmp -s $record whole.h5 && pass || fail "a kill at $point damaged the record"
        MUSTER_FAULT=$point:0:kill on 1 "$MUSTER" expert reseed base 0:2 --force --out x
        [ -e x ] && fail "a kill at $point left a result" || pass
    done
    rm -rf x.tmp*
    run 0 'step-00000025.h5' archive base 0:3
    source_is_as_it_was "faults"
    for fault in enospc kill; do
        rm -rf full
        MUSTER_FAULT=archive-middle:0:$fault train 1 full train.steps=60 "${carriers[@]}"; code=$?
        if [ $fault = enospc ]; then
            [ $code = 0 ] && pass || fail "a full disk for an archive stopped the run: $code"
            says "a full disk for an archive" 'could not be archived.*no space left'
            grep -q '"written":false,"error":"archive-middle' full/events.jsonl && pass || fail "no event of a failed record"
        else
            expect 0 "after a kill while archiving" train 1 full train.steps=60 "${carriers[@]}"
            run 0 '^ +3 +carrier' list full
        fi
    done
fi
# a really full disk: no file may be larger than 8 KiB
( ulimit -f 8; timeout 60 "$MUSTER" expert reseed base 0:2 --force --out x > log 2>&1 ); code=$?
[ $code != 0 ] && [ ! -e x ] && pass || fail "a full disk: exit code $code"
source_is_as_it_was "a full disk"
finish
