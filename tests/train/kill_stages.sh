# kill_stages.sh - a rank is killed with SIGKILL, or its disk is full, at each stage of a save: the previous checkpoint
# is intact, no partial one is ever loaded, and the run resumes to the same end. Also with a really full disk, by
# a limit on file sizes, and on a small file system if one can be mounted.
. "$(dirname "$0")/train_lib.sh"
needs_ranks
needs_faults

options="train.steps=12 checkpoint.every=4 parallel.ep=2 moe.num_experts=4"
expect 0 "the run without trouble" train 2 whole $options

# resumes WHAT: the same command ends like the undisturbed run, and leaves nothing partial behind
resumes() {
    expect 0 "$1, then again" train 2 run $options
    same_metrics whole run exact
    same_checkpoint whole run 12
    has_steps run "4 8 12"
    if ls -d run/checkpoints/*.tmp > /dev/null 2>&1; then fail "$1: left $(ls -d run/checkpoints/*.tmp)"; else pass; fi
}
stages() {      # point, rank, the checkpoints after a failure of the second save
    for point in open mid-shard before-close after-close; do
        echo "$point 0 4"
        echo "$point 1 4"
    done
    for point in before-manifest after-manifest before-rename; do echo "$point 0 4"; done
    echo "after-rename 0 4 8"
}
while read -r point rank left; do
    rm -rf run
    MUSTER_FAULT=$point:$rank:kill:2 train 2 run $options < /dev/null
    code=$?
    if [ $code != 0 ]; then pass; else fail "a kill of rank $rank at $point went unnoticed"; fi
    has_steps run "$left"
    resumes "rank $rank killed at $point" < /dev/null

    rm -rf run
    MUSTER_FAULT=$point:$rank:enospc:2 expect 74 "disk full on rank $rank at $point" train 2 run $options < /dev/null
    says_once "disk full on rank $rank at $point" "^muster: error: .*$point: no space left on device"
    has_steps run "$left"
    expect 0 "what is there is whole" on 1 "$MUSTER" verify run < /dev/null
done <<< "$(stages)"
resumes "disk full at the last stage" < /dev/null

# Killed in the very first save: a new start.
rm -rf run
MUSTER_FAULT=before-rename:0:kill train 2 run $options
resumes "killed in the first save"

# Killed where a damaged checkpoint of the same step is being replaced.
rm -rf run
cp -r whole run
"$MUSTER_FLIP" run/checkpoints/step-00000012/shard-0001.h5 5000
MUSTER_FAULT=before-rename:0:kill train 2 run $options
resumes "killed while replacing a damaged checkpoint"

# ---------------------------------------------------------------- a really full disk
# A limit of 40 KiB on every file: less than a shard, more than the metrics so far. (On one rank that starts no
# daemon: the files of mpirun and of shared memory would fall under the limit too.)
rm -rf run
alone="train.steps=12 checkpoint.every=4 moe.num_experts=4"
expect 0 "one rank without trouble" train 1 alone $alone
OMPI_MCA_ess_singleton_isolated=1 expect 74 "files may not grow" on 1 bash -c 'ulimit -f 40 && exec "$0" "$@"' "$MUSTER" train tiny.yaml run.dir=run $alone
says_once "files may not grow" "^muster: error: .*shard-0000.h5.*no space left"
has_steps run ""
expect 0 "files may grow again" train 1 run $alone
same_metrics alone run exact
same_checkpoint alone run 12

disk=$work/disk
mkdir "$disk"
mount_options="train.steps=12 checkpoint.every=2 moe.num_experts=4 checkpoint.keep=9"
expect 0 "every second step" train 1 whole-1 $mount_options
size=$(($(du -sk whole-1/checkpoints/step-00000012 | cut -f 1) * 7 / 2))       # space for three and a half
if mount -t tmpfs -o size=${size}k muster-test "$disk" 2> /dev/null; then
    trap 'cd /; umount "$work/disk"; rm -rf "$work"' EXIT
    expect 74 "the file system is full" train 1 "$disk/run" $mount_options
    says_once "the file system is full" "^muster: error: .*no space left"
    expect 0 "what is there is whole" on 1 "$MUSTER" verify "$disk/run"
    kept=$(steps_in "$disk/run")
    if [ -n "$kept" ]; then pass; else fail "nothing fitted: the test shows little"; fi
    if ls -d "$disk"/run/checkpoints/*.tmp > /dev/null 2>&1; then fail "a half-made checkpoint still takes the room"; else pass; fi
    mount -o remount,size=20m "$disk"
    expect 0 "with more room" train 1 "$disk/run" $mount_options
    same_metrics whole-1 "$disk/run" exact
    same_checkpoint whole-1 "$disk/run" 12
else
    echo "(no file system could be mounted here: that part is left out)"
fi
finish
