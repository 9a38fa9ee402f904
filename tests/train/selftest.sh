# selftest.sh - muster selftest passes, on one rank and on two, and sees what is broken on purpose: exit code 70 and a line for it.
. "$(dirname "$0")/train_lib.sh"

mkdir own
TMPDIR=$work/own expect 0 "selftest" on 1 "$MUSTER" selftest
for name in aux_loss seq_aux_loss global_aux_loss z_loss splits device 'batch invariance' checkpoint speed; do
    says_once "selftest" "^ok +$name  +[^ ]"
done
says_once "selftest" '^all 9 checks passed in [0-9.]+ s$'
if rmdir own; then pass; else fail "the checkpoint's folder is still there"; fi
TMPDIR=$work/own expect 70 "no folder for a checkpoint" on 1 "$MUSTER" selftest
says_once "no folder for a checkpoint" '^FAILED +checkpoint .*/own/muster-selftest-.* cannot be created: No such file or directory'
expect 64 "an argument" on 1 "$MUSTER" selftest run
says_once "an argument" "unexpected argument 'run'"
expect 78 "an option of training" on 1 "$MUSTER" selftest train.steps=3
says_once "an option of training" 'selftest accepts only train\.device, train\.dtype, train\.threads; all other options come from its checks$'
expect 78 "an unknown device" on 1 "$MUSTER" selftest train.device=abacus
says_once "an unknown device" 'error: .*train.device: .*abacus'
if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "two ranks" on 2 "$MUSTER" selftest
    says_once "two ranks" '^ok +splits .*, 2 ranks or one by [0-9.e-]+, with expert parallelism [0-9.e-]+$'
    says_once "two ranks" '^all 9 checks passed'
fi

[ "${MUSTER_HAS_FAULTS:-}" = 1 ] || finish
broken() {          # broken RANKS RANK POINT COUNT NAME: only this check fails
    export MUSTER_FAULT=$3:$2:skip:$4
    expect 70 "$5 broken on rank $2 of $1" on "$1" "$MUSTER" selftest
    unset MUSTER_FAULT
    says_once "$5 broken" "^FAILED +$5 "
    says_once "$5 broken" 'error: selftest: 1 of 9 checks failed'
}
broken 1 0 selftest_term 4 z_loss
[ -n "${every:-}" ] || finish
broken 1 0 selftest_device 1 device
broken 1 0 selftest_rows 1 'batch invariance'
broken 1 0 selftest_checkpoint 1 checkpoint
if [ -n "${MPIEXEC:-}" ]; then broken 2 1 selftest_split 1 splits; fi
finish
