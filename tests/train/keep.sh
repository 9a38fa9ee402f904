# keep.sh - which checkpoints are kept: the newest, and those of every n-th step; one at the end whatever the interval. Also the metrics.
. "$(dirname "$0")/train_lib.sh"

expect 0 "the three newest" train 1 newest train.steps=20 checkpoint.every=2 checkpoint.keep=3
has_steps newest "16 18 20"
expect 0 "the newest and every sixth step" train 1 sixth train.steps=20 checkpoint.every=2 checkpoint.keep=1 checkpoint.keep_every=6
has_steps sixth "6 12 18 20"
expect 0 "only at the end" train 1 end train.steps=20 checkpoint.every=0
has_steps end "20"
expect 0 "the last step is not a multiple" train 1 odd train.steps=20 checkpoint.every=7
has_steps odd "7 14 20"
expect 0 "everything is whole" on 1 "$MUSTER" verify sixth

# Retention can be changed, and existing checkpoints count.
expect 0 "fewer from now on" train 1 newest train.steps=24 checkpoint.every=2 checkpoint.keep=2 checkpoint.keep_every=16
has_steps newest "16 22 24"

# Checkpoints newer than the resume step, damaged or of an abandoned history, are moved aside:
# they are neither the newest later on nor counted by checkpoint.keep.
expect 0 "one more" train 1 end train.steps=30 checkpoint.every=5 checkpoint.keep=2
has_steps end "25 30"
"$MUSTER_FLIP" end/checkpoints/step-00000030/manifest.json 100
expect 0 "resumes before the damage" train 1 end train.steps=28 checkpoint.every=1 checkpoint.keep=1
says "resumes before the damage" "resuming from end/checkpoints/step-00000025"
says_once "resumes before the damage" "warning: checkpoint of step 30 is newer than resume step 25, moved aside to end/checkpoints/step-00000030.aside"
has_steps end "28"
expect 0 "all whole" on 1 "$MUSTER" verify end

eager="stats.every=5 stats.starved_load=0.9"       # so that there are events
expect 0 "a long course" train 1 course $eager train.steps=30 checkpoint.every=10 checkpoint.keep=9
expect 0 "another one from its step 10" train 1 course $eager train.steps=15 --resume course/checkpoints/step-00000010 optim.lr=1e-3 checkpoint.keep=9
says_once "another one from its step 10" "warning: course/metrics.jsonl: lines newer than resume step 10, moved aside to course/metrics.jsonl.aside and"
if [ "$(wc -l < course/metrics.jsonl.aside)" = 36 ] && [ "$(wc -l < course/metrics.jsonl)" = 18 ]; then pass; else fail "metrics of the course that was left"; fi
says_once "another one from its step 10" "warning: course/events.jsonl: lines newer than resume step 10, moved aside to course/events.jsonl.aside"
newest() { tail -1 "$1" | grep -o '"step":[0-9]*' | cut -d: -f2; }
if [ "$(newest course/events.jsonl.aside)" -gt 15 ] && [ "$(newest course/events.jsonl)" -le 15 ]; then pass; else fail "events of the course that was left"; fi
has_steps course "10 15"
expect 0 "resumes the new history" train 1 course train.steps=18 optim.lr=1e-3 checkpoint.keep=9
says "resumes the new history" "resuming from course/checkpoints/step-00000015"
expect 0 "the other is still there" on 1 "$MUSTER" inspect course/checkpoints/step-00000030.aside

# Metrics: only lines of steps that are computed again are dropped without a warning and a copy. routing.h5 is derived, and
# a failure to write it does not prevent a checkpoint.
expect 0 "metrics to lose" train 1 lost train.steps=10 checkpoint.every=5
cp -r lost damaged && cp -r lost other
rm -r lost/checkpoints
expect 0 "the checkpoints are gone" train 1 lost train.steps=6
says_once "the checkpoints are gone" "warning: lost/metrics.jsonl is from an earlier job and there is no checkpoint to resume from: moved aside to lost/metrics.jsonl.aside and lost/routing.h5.aside"
if cmp -s lost/metrics.jsonl.aside other/metrics.jsonl && cmp -s lost/routing.h5.aside other/routing.h5; then pass; else fail "what is kept differs"; fi
if [ "$(wc -l < lost/metrics.jsonl)" = 7 ]; then pass; else fail "lines of the new run"; fi
"$MUSTER_FLIP" damaged/metrics.jsonl 3000:5
expect 0 "a bit of the metrics" train 1 damaged train.steps=11
says_once "a bit of the metrics" "warning: damaged/metrics.jsonl: [12] of (9|10|11) lines are damaged, .* moved aside to damaged/metrics.jsonl.aside and"
cp -r damaged torn && "$MUSTER_FLIP" torn/statistics.rec 1200:2
expect 0 "a bit of the statistics" train 1 torn train.steps=15
says_once "a bit of the statistics" "warning: torn/statistics.rec: 1 of 11 records are damaged or missing .* moved aside to torn/statistics.rec.aside"
rm other/routing.h5 && mkdir other/routing.h5 && touch other/routing.h5/mine
expect 0 "a folder named routing.h5" train 1 other train.steps=20 checkpoint.every=5 checkpoint.keep=9
says_once "a folder named routing.h5" "warning: other/routing.h5 is a directory; the loads are in statistics.rec"
has_steps other "5 10 15 20"
if [ -e other/routing.h5/mine ]; then pass; else fail "the folder named routing.h5 is gone"; fi
rm -r other/tensorboard && touch other/tensorboard
expect 0 "a file named tensorboard" train 1 other train.steps=22 checkpoint.every=5 checkpoint.keep=9
says_once "a file named tensorboard" "warning: other/tensorboard cannot be written: .* this job writes no further events for TensorBoard"
if [ "${MUSTER_HAS_FAULTS:-}" = 1 ]; then
    MUSTER_FAULT=tensorboard:0:enospc:5 expect 0 "no room for events" train 1 room
    says_once "no room for events" "warning: room/tensorboard/events.out.tfevents.* cannot be written: No space left on device; this job"
fi
rm other/metrics.jsonl && mkdir other/metrics.jsonl
expect 74 "a folder named metrics.jsonl" train 1 other train.steps=30
says_once "a folder named metrics.jsonl" "error: other/metrics.jsonl is a directory; move it out of the way"
has_steps other "5 10 15 20 22"
finish
