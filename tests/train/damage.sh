# damage.sh - damaged checkpoints: a flipped bit anywhere in any file, files truncated, missing, swapped or of
# another step are found, named and never loaded; the run resumes from the newest valid checkpoint, with the same
# losses. Exit code 65 when none is valid, or the given one is not.
. "$(dirname "$0")/train_lib.sh"

ranks=1
[ -n "${MPIEXEC:-}" ] && ranks=2
options="train.steps=12 checkpoint.every=3 checkpoint.keep=9 parallel.ep=$ranks moe.num_experts=4"
expect 0 "the run to damage" train $ranks whole $options
has_steps whole "3 6 9 12"
expect 0 "verify finds nothing" on 1 "$MUSTER" verify whole
shards=$(cd whole/checkpoints/step-00000012 && ls shard-*.h5)

fresh() { rm -rf run; cp -r whole run; newest=run/checkpoints/step-00000012; }
# damaged CHECKPOINT FILE LOG: verify calls the checkpoint damaged and names FILE
damaged() {
    timeout -k 5 120 "$MUSTER" verify "$1" > "$3" 2>&1
    code=$?
    [ $code = 65 ] && grep -q "^damaged  $1: .*$2" "$3"
}
# refused FILE WHAT: the newest checkpoint is
refused() { if damaged $newest "$1" log; then pass; else fail "$2: exit code $code"; fi; }
# falls_back STEP FILE WHAT: training resumes from STEP, names FILE as the reason, and ends like the undamaged run
falls_back() {
    expect 0 "$3" train $ranks run $options
    says "$3" "resuming from run/checkpoints/step-0*$1 "
    says_once "$3" "warning: checkpoint of step 12 skipped, failed verification: (rank 1 on [^ ]*: )?$newest/$2"
    same_metrics whole run exact
    same_checkpoint whole run 12
    expect 0 "$3, afterwards all is whole" on 1 "$MUSTER" verify run
}

# ---------------------------------------------------------------- single bits
bits=${every:+40}
bits=${bits:-8}
# flip_bits FILE: in a copy of its own, so that files can be done at once. FILE.found gets a line for each bit that verify
# finds as it should, FILE.missed for any other.
flip_bits() {
    local file=$1 copy=flipped-$1/step-00000012 size positions at
    mkdir flipped-$file && cp -r whole/checkpoints/step-00000012 $copy
    size=$(stat -c %s $copy/$file)
    positions="0 1 8 $((size - 1)) $((size - 33)) $((size - 34)) $((size - 35))"
    for i in $(seq 1 $bits); do positions="$positions $(((i * 7919 * size / bits + i * 131) % size)):$((i % 8))"; done
    for at in $positions; do
        if "$MUSTER_FLIP" $copy/$file $at && damaged $copy $file flipped-$file/log; then echo $at >> $file.found
        else echo $at >> $file.missed; fi
        "$MUSTER_FLIP" $copy/$file $at
    done
}
for file in manifest.json $shards; do flip_bits $file & done
wait
for file in manifest.json $shards; do
    if [ "$(wc -l < $file.found)" = $((bits + 7)) ] && ! [ -e $file.missed ]; then pass; else fail "bits of $file: missed $(cat $file.missed)"; fi
    expect 0 "all bits of $file are back" on 1 "$MUSTER" verify flipped-$file/step-00000012
done
for file in manifest.json $shards; do
    fresh
    "$MUSTER_FLIP" $newest/$file 4000:3
    on 1 "$MUSTER" verify run
    if [ "$(grep -c '^ok ' log)" = 3 ]; then pass; else fail "verify of a run with one damaged checkpoint"; fi
    if [ -n "${every:-}" ] || [ $file = manifest.json ]; then falls_back 9 $file "a bit of $file"; fi
done

# The same bit, with the damaged shard's hash in the manifest: loading finds it, on one rank, and all fall back.
last=$(echo "$shards" | tail -1)
fresh
"$MUSTER_FLIP" $newest/$last 4000:3 && "$MUSTER_SIGN" $newest/manifest.json $newest/$last
refused $last "a shard that hashes right and is damaged"
expect 65 "a shard that hashes right and is damaged, named" train $ranks other $options --resume $newest
for n in 1 $ranks; do
    expect 0 "eval of a run with it on $n" on $n "$MUSTER" eval run train.eval_sequences=1
    says "eval of a run with it on $n" "^run/checkpoints/step-00000009, step 9: "
done
falls_back 9 $last "a shard that hashes right and is damaged"

# ---------------------------------------------------------------- whole files
for file in manifest.json $shards; do
    size=$(stat -c %s whole/checkpoints/step-00000012/$file)
    for length in 0 $((size - 1)) ${every:+1 $((size / 2))}; do
        fresh
        truncate -s $length $newest/$file
        refused $file "$file cut to $length bytes"
    done
    fresh
    echo "and more" >> $newest/$file
    refused $file "$file with a longer end"
    fresh
    rm $newest/$file
    refused $file "$file missing"
done
fresh
rm $newest/$last
falls_back 9 $last "a shard missing"
fresh
cp run/checkpoints/step-00000009/$last $newest/$last
refused "$last" "a shard of another step"
fresh
cp run/checkpoints/step-00000009/manifest.json $newest/manifest.json
refused manifest "the manifest of another step"
fresh
dd if=/dev/zero of=$newest/$last bs=4096 seek=5 count=1 conv=notrunc 2> /dev/null
refused "$last" "a block of zeros"
if [ $ranks = 2 ]; then
    fresh
    mv $newest/shard-0000.h5 $newest/x && mv $newest/shard-0001.h5 $newest/shard-0000.h5 && mv $newest/x $newest/shard-0001.h5
    refused "shard" "shards swapped"
fi
fresh
rm -r $newest && cp -r run/checkpoints/step-00000006 $newest
refused "manifest" "a checkpoint under the name of another step"
falls_back 9 manifest "a checkpoint under the name of another step"
fresh
rm $newest/* && refused manifest "an empty folder"
fresh
rm -r $newest && touch $newest && refused manifest "a file in the place of the folder"
fresh
rm $newest/$last && mkdir $newest/$last && refused "$last" "a folder in the place of a shard"
# A manifest with a valid hash and invalid content.
fresh
resign() {      # resign SED: changes the manifest and updates its hash, as another tool might
    head -1 $newest/manifest.json | sed "$1" > line
    mv line $newest/manifest.json
    "$MUSTER_SIGN" $newest/manifest.json || fail "sign"
}
resign 's/x/x/'
expect 0 "a manifest signed anew" on 1 "$MUSTER" verify $newest
for change in 's/"version":[0-9]*/"version":999/' 's/"step":12/"step":-1/' 's/"step":12/"step":13/' 's/"shards":\[/"shards":[7,/' 's/shard-0000.h5/..\/lock/' \
    's/"bytes":[0-9]*/"bytes":1/' 's/"tensors":{/"tensors":{"\/x":99,/' 's/"tensors":{/"tensors":{"\/x":0,/' 's/^{/[/' 's/"config":"[^"]*"/"config":7/' \
    's/"step":12/"step":12,"step":12/' 's/"tokenizer":"bytes"/"tokenizer":"none"/' 's/hidden_size: 32/hidden_size: 64/' 's/num_experts: 4/num_experts: 8/'; do
    fresh
    resign "$change"
    case $change in
    *'"\/x":0'*) refused manifest "a manifest changed by $change" ;;
    *hidden_size* | *tokenizer* | *num_experts*)
        expect 65 "generate from a manifest changed by $change" on 1 "$MUSTER" generate $newest --prompt x --tokens 1 ;;
    *) refused manifest "a manifest changed by $change" ;;
    esac
done

# A contradiction to the manifest's own configuration is damage, whatever the configuration of the run.
for change in 's/seed: 7/seed: 8/' 's/global_batch_size: 8/global_batch_size: 16/'; do
    fresh
    resign "$change"
    refused shard-0000 "a manifest changed by $change"
    expect 0 "inspect after $change" on 1 "$MUSTER" inspect run
    says_once "inspect after $change" "warning: checkpoint of step 12 skipped, failed verification: $newest/shard-0000.h5: "
    says "inspect after $change" "^run/checkpoints/step-00000009"
    expect 65 "a manifest changed by $change, named" train $ranks other $options --resume $newest
    if [ -n "${every:-}" ]; then falls_back 9 shard-0000 "a manifest changed by $change"; fi
done

# Nothing is taken from a rejected checkpoint, however late: the loss is that of a run without it.
fresh
cp -r run straight
expect 0 "a run that changes z_loss_coeff" train $ranks run $options train.steps=15 moe.z_loss_coeff=0.5
newest=run/checkpoints/step-00000015
"$MUSTER_FLIP" $newest/$last 4000:3 && "$MUSTER_SIGN" $newest/manifest.json $newest/$last
for run in straight run; do expect 0 "$run resumes" train $ranks $run $options train.steps=15; done
says "options of a refused checkpoint" "warning: checkpoint of step 15 skipped, failed verification"
says "options of a refused checkpoint" "resuming from run/checkpoints/step-00000012"
if grep -q z_loss_coeff log; then fail "an option of a refused checkpoint stays"; else pass; fi
same_metrics run straight exact

# ---------------------------------------------------------------- several, all, and the given one
fresh
"$MUSTER_FLIP" $newest/shard-0000.h5 5000
rm run/checkpoints/step-00000009/manifest.json
mkdir run/checkpoints/step-00000015.tmp && touch run/checkpoints/step-00000015.tmp/shard-0000.h5
mkdir run/checkpoints/notes
falls_back 6 shard-0000 "two damaged and one unfinished"
if [ -e run/checkpoints/step-00000015.tmp ]; then fail "what a killed save left is still there"; else pass; fi
if [ -d run/checkpoints/notes ]; then pass; else fail "a folder that is not muster's is gone"; fi
fresh
for step in 03 06 09 12; do "$MUSTER_FLIP" run/checkpoints/step-000000$step/manifest.json 100; done
before=$(cksum run/metrics.jsonl run/checkpoints/*/*)
expect 65 "none is whole" train $ranks run $options
says "none is whole" "error: run/checkpoints: all checkpoints failed verification .4.; the newest: .*manifest.json is damaged"
if [ "$(cksum run/metrics.jsonl run/checkpoints/*/*)" = "$before" ]; then pass; else fail "a refused resume changed the run folder"; fi
fresh
"$MUSTER_FLIP" $newest/shard-0000.h5 5000
for command in "train tiny.yaml run.dir=other $options --resume $newest" "inspect $newest" "eval $newest" "verify $newest" "generate $newest --prompt x"; do
    case $command in train*) n=$ranks ;; *) n=1 ;; esac
    expect 65 "the one that was named: $command" on $n "$MUSTER" $command
    says "$command" "$newest/shard-0000.h5 is damaged"
done
expect 0 "inspect takes the one before" on 1 "$MUSTER" inspect run
says "inspect" "run/checkpoints/step-00000009"
finish
