# intervene.sh - protect.reseed_dead: an expert that dies is archived and becomes half of a busy one; protect.starved_boost: the selection bias of a starved one
# is raised once it is archived. The same bits for any split of the batch and after a resume; without an archive the experts stay as they are, and training
# goes on.
. "$(dirname "$0")/train_lib.sh"

# Without balancing, and with a high learning rate, experts die.
dying="moe.num_experts=32 moe.balance=[none] moe.z_loss_coeff=0 optim.lr=2e-2 train.steps=60 stats.every=5 stats.window=20 stats.dead_windows=2 stats.dead_silence=3 stats.budget=0.1"
dying="$dying train.reproducible=true train.eval_every=30 checkpoint.every=10 checkpoint.keep=99"
on="protect.reseed_dead=true"
same_run() {            # A B STEP: whole run folders
    same_metrics "$1" "$2" exact
    same_checkpoint "$1" "$2" "$3"
    if cmp -s "$1/events.jsonl" "$2/events.jsonl"; then pass; else fail "the events of $1 and $2 differ"; fi
}

expect 0 "the run" train 1 whole $dying $on log.progress=line
says "on the console" 'layer [01]: expert [0-9]+ is re-seeded \(dead since step [0-9]+; now half of expert [0-9]+, load [0-9.]+ of the mean\)'
events=$(grep -c '"event":"reseed".*"parent":[0-9]*,"from":"dead","to":"healthy","reason":"dead since step' whole/events.jsonl)
if [ "$events" -ge 2 ] && [ "$events" = "$(grep -c '"event":"reseed"' whole/events.jsonl)" ]; then pass; else fail "$events events of re-seeding"; fi
grep '"event":"reseed"' whole/events.jsonl | sed 's/.*"step":\([0-9]*\),.*"layer":\([0-9]*\),"expert":\([0-9]*\).*/\1 \2 \3/' > acts
while read -r step layer expert; do
    record=$(printf 'whole/archive/layer_%02d/expert_%03d/step-%08d.h5' "$layer" "$expert" "$step")
    if [ -e "$record" ]; then pass; else fail "no $record"; fi
    if grep -q "\"step\":$step,\"event\":\"archive\",\"layer\":$layer,\"expert\":$expert,\"reason\":\"before it is re-seeded\",\"written\":true" whole/events.jsonl; then pass; else
        fail "no event of that record"; fi
    if [ "$step" -le 54 ]; then pass; else fail "re-seeded at step $step of 60"; fi
done < acts
if [ "$(cut -d' ' -f1,2 acts | sort | uniq -d)" = "" ]; then pass; else fail "two actions in one layer at once"; fi
read -r step layer expert < acts
expect 0 "list" on 1 "$MUSTER" expert list "whole/checkpoints/$(printf 'step-%08d' "$step")"
says "list" "^ +$expert +healthy .*replaced at step $step"
expect 0 "verify" on 1 "$MUSTER" verify whole
expect 0 "report" on 1 "$MUSTER" report whole --out whole.html --no-texts
if grep -q 're-seeded: dead since' whole.html; then pass; else fail "the report does not show it"; fi

cuts="1:1:3"
[ -n "${MPIEXEC:-}" ] && cuts="2:1:4 4:2:2"
for cut in $cuts; do
    IFS=: read -r ranks ep micro <<< "$cut"
    expect 0 "on $cut" train "$ranks" split $dying $on parallel.ep="$ep" train.micro_batch_size="$micro"
    same_run whole split 60
    rm -r split
done
for from in $((step - 10)) "$step"; do
    cp -r whole again
    expect 0 "from step $from" train 1 again $dying $on --resume "again/checkpoints/$(printf 'step-%08d' "$from")"
    same_run whole again 60
    rm -r again
done

# Nothing is written to the archive: the same run as without the option, in every bit.
expect 0 "off" train 1 off $dying protect.archive=false
mkdir full
echo "no folder" > full/archive
expect 0 "no archive" train 1 full $dying $on protect.archive=false log.progress=line
says "no archive" 'expert [0-9]+ of layer [01] could not be archived, so it is not re-seeded'
if grep -q '"reason":"before it is re-seeded","written":false,"error":"' full/events.jsonl; then pass; else fail "no event of a failed record"; fi
if grep -q '"event":"reseed"' full/events.jsonl; then fail "re-seeded without an archive"; else pass; fi
same_checkpoint off full 60
if [ "${MUSTER_HAS_FAULTS:-}" = 1 ]; then
    for point in archive-middle archive-compare; do
        MUSTER_FAULT=$point:0:enospc expect 0 "$point" train 1 faulty $dying $on protect.archive=false
        if grep -q "\"step\":$step,\"event\":\"archive\",\"layer\":$layer,\"expert\":$expert,.*\"written\":false" faulty/events.jsonl; then pass; else fail "$point: no failed record"; fi
        if grep -q "\"step\":$step,\"event\":\"reseed\",\"layer\":$layer,\"expert\":$expert," faulty/events.jsonl; then fail "$point: overwritten without a record"; else pass; fi
        if grep -q '"event":"reseed"' faulty/events.jsonl; then pass; else fail "$point: never tried again"; fi
        rm -r faulty
    done
    for point in archive-before-rename; do
        MUSTER_FAULT=$point:0:kill train 1 killed $dying $on
        expect 0 "after a kill at $point" train 1 killed $dying $on
        same_checkpoint whole killed 60
        rm -r killed
    done
fi
# Starved experts: at most three times each until they are healthy, and one of a layer at a time.
boosts="$dying protect.starved_boost=0.02 moe.balance=[expert_bias] moe.bias_update_rate=0 $on"
expect 0 "boosts" train 1 boosted $boosts log.progress=line
says "boosts" 'layer [01]: expert [0-9]+ has its selection bias raised \(starved since step [0-9]+, load [0-9.]+ of the mean; raised by 0.02 to [0-9.]+\)'
if grep -q '"event":"boost","layer":[01],"expert":\([0-9]*\),"parent":\1,"reason":"starved since step' boosted/events.jsonl; then pass; else fail "no event of a boost"; fi
actions=$(grep -E '"event":"(boost|reseed)"' boosted/events.jsonl | sed 's/"step":\([0-9]*\),.*"layer":\([0-9]*\),.*/\1 \2/' | sort | uniq -d)
if [ -z "$actions" ]; then pass; else fail "two actions in one layer at once: $actions"; fi
most=$(grep '"event":"boost"' boosted/events.jsonl | sed 's/.*"layer":\([0-9]*\),"expert":\([0-9]*\),.*since step \([0-9]*\).*/\1 \2 \3/' | sort | uniq -c | sort -rn | awk '{ print $1; exit }')
if [ "$most" -le 3 ]; then pass; else fail "boosted $most times"; fi
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "boosts on 4:2:2" train 4 split $boosts parallel.ep=2 train.micro_batch_size=2
    same_run boosted split 60
fi
cp -r boosted again
expect 0 "boosts from step 20" train 1 again $boosts --resume again/checkpoints/step-00000020
same_run boosted again 60
expect 0 "off" train 1 unboosted $boosts protect.archive=false protect.starved_boost=0 protect.reseed_dead=false
mkdir blocked
echo "no folder" > blocked/archive
expect 0 "no archive" train 1 blocked $boosts protect.archive=false log.progress=line
says "no archive" 'expert [0-9]+ of layer [01] could not be archived, so its selection bias is not raised'
same_checkpoint unboosted blocked 60
expect 78 "without states" train 1 x $dying $on stats.every=0
finish
