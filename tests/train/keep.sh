# keep.sh - which checkpoints stay: the newest, and those of every n-th step; one at the end whatever the interval.
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

# What is kept can be changed, and what was there before counts.
expect 0 "fewer from now on" train 1 newest train.steps=24 checkpoint.every=2 checkpoint.keep=2 checkpoint.keep_every=16
has_steps newest "16 22 24"

# Checkpoints that are newer than the one a run goes on from, damaged or of a course that was left, are set aside:
# they are neither the newest later on nor among those that are kept.
expect 0 "one more" train 1 end train.steps=30 checkpoint.every=5 checkpoint.keep=2
has_steps end "25 30"
"$MUSTER_FLIP" end/checkpoints/step-00000030/manifest.json 100
expect 0 "goes on before the damage" train 1 end train.steps=28 checkpoint.every=1 checkpoint.keep=1
says "goes on before the damage" "resuming from end/checkpoints/step-00000025"
says_once "goes on before the damage" "warning: the checkpoint of step 30 is beyond step 25, .* renamed to end/checkpoints/step-00000030.aside"
has_steps end "28"
expect 0 "all whole" on 1 "$MUSTER" verify end

expect 0 "a long course" train 1 course train.steps=30 checkpoint.every=10 checkpoint.keep=9
expect 0 "another one from its step 10" train 1 course train.steps=15 --resume course/checkpoints/step-00000010 optim.lr=1e-3 checkpoint.keep=9
has_steps course "10 15"
expect 0 "which is the one that goes on" train 1 course train.steps=18 optim.lr=1e-3 checkpoint.keep=9
says "which is the one that goes on" "resuming from course/checkpoints/step-00000015"
expect 0 "the other is still there" on 1 "$MUSTER" inspect course/checkpoints/step-00000030.aside
finish
