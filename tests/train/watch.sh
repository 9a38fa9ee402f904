# watch.sh - muster watch: one snapshot into a pipe, of a finished, killed, dense and empty run, in any width; a running run in a terminal.
. "$(dirname "$0")/train_lib.sh"
export LANG=C.UTF-8 TERM=xterm
unset LC_ALL LC_CTYPE NO_COLOR COLUMNS

watch() { on 1 "$MUSTER" watch "$@"; }
widest() { LC_ALL=C.UTF-8 awk '{ if (length($0) > n) n = length($0) } END { print n }' log; }
is_plain() { if grep -q $'\e' log; then fail "$1: escape sequences"; else pass; fi; }

expect 0 "a run" train 1 run train.steps=40 train.eval_every=10 checkpoint.every=20 stats.every=10
expect 0 "finished" watch run
is_plain "finished"
says "finished" '^run  finished$'
says "finished" '^\[#{20}\] step 40 of 40  [0-9]+ tokens/s$'
says "finished" '^training +[0-9.]+ \([+-][0-9.]+\)$'
says "finished" '^validation +[0-9.]+ \([+-][0-9.]+\)  step 40$'
says "finished" '^a +[0-9.]+ \([+-][0-9.]+\) +b +[0-9.]+'
says "finished" '^  1 [▁▂▃▄▅▆▇█ ]{8} [0-9.]+$'
says "finished" '^[0-9]+ healthy$'
says "finished" '^run has finished'

# Losses on the probe, where nothing newer was evaluated.
expect 0 "a run without evaluations" train 1 probed train.steps=10 train.eval_every=0 stats.every=10 stats.budget=1
COLUMNS=100 expect 0 "probe" watch probed
says "probe" '^by domain, on the probe [(]change since the best[)]; criticality coverage [0-9]+ %$'

# Narrow, without UTF-8, a folder with a strange name and a line that is being written.
strange=$'r\e[31m'
cp -r run "$strange" && printf '{"step":41,"tra' >> "$strange/metrics.jsonl"
COLUMNS=40 LANG=C expect 0 "narrow" watch "$strange"
is_plain "narrow"
if LC_ALL=C grep -q $'[\x80-\xff]' log; then fail "not ASCII"; else pass; fi
sed -i '$d' log
if [ "$(widest)" -le 40 ]; then pass; else fail "$(widest) columns instead of 40"; fi
says "narrow" '^  0 [-.:=+*#@ ]{8} [0-9.]+$'

# Killed, dense, without steps, damaged; nothing.
cp -r run killed && rm -r killed/checkpoints && echo "process 1 on elsewhere start 1 launcher 0" > killed/lock
sed -i '5s/"train/"tr4in/' killed/metrics.jsonl
expect 0 "killed" watch killed && says "killed" '^killed was killed' && says "killed" '^1 damaged lines'
rm killed/metrics.jsonl killed/events.jsonl
expect 0 "without steps" watch killed && says "without steps" '^training +none yet$'
expect 0 "a dense run" train 1 dense moe.num_experts=0
expect 0 "dense" watch dense
if grep -q healthy log; then fail "experts of a dense run"; else pass; fi
expect 66 "no run" watch nowhere
expect 64 "no argument" watch
expect 64 "two runs" watch run dense

# In a terminal: drawn again while the run goes on, ends with it, leaves the terminal as it was.
command -v script > /dev/null || finish
in_terminal() { timeout -k 5 100 script -qefc "stty cols $1 rows $2; $3; stty -a | grep -o ' -\\?icanon\\| -\\?echo '" screen < /dev/null > /dev/null 2>&1; }
in_terminal 80 24 "$MUSTER watch run"
if grep -q 'run has finished' screen && ! grep -q '?1049h' screen; then pass; else fail "a finished run in a terminal"; fi
if grep -q $'\e\[32m' screen; then pass; else fail "no colours"; fi
NO_COLOR=1 in_terminal 80 24 "$MUSTER watch run"
if grep -q $'\e\[32m' screen; then fail "colours in spite of NO_COLOR"; else pass; fi
train 1 going train.steps=1000000 stats.every=50 log.every=10 &
wait_for "the run" '[ -s going/metrics.jsonl ]'
LANG=C expect 0 "a running run in a pipe" watch going && says "running" '^going still runs'
in_terminal 40 20 "(sleep 3; kill -USR1 \$(sed -n 's/process \([0-9]*\) .*/\1/p' going/lock)) & $MUSTER watch going; echo rc \$?"
wait
if [ "$(grep -o $'\e\\[H' screen | wc -l)" -ge 2 ]; then pass; else fail "not drawn again"; fi
if grep -q '?1049l' screen && grep -q 'going has stopped' screen && grep -q 'rc 0' screen; then pass; else fail "the end of the run: $(tail -n 3 screen)"; fi
# Killed and started again at once: it goes on with the new job; killed for good, it says so.
going() { train 1 going train.steps=1000000 stats.every=50 log.every=10 checkpoint.every=500; }
kill_it() { kill -"$1" "$(sed -n 's/process \([0-9]*\) .*/\1/p' going/lock)"; }
going &
wait_for "the run, resumed" 'grep -q ^process going/lock'
(sleep 2; kill_it KILL; sleep 1; going) &
(sleep 6; kill_it KILL) &
in_terminal 80 24 "$MUSTER watch going"
wait
if grep -q 'killed; waits for a restart' screen && grep -q 'going was killed' screen; then pass; else fail "killed: $(tail -n 3 screen)"; fi
if awk '/running/ { n = 1 } /crashed/ { if (n) was = 1 } /running/ { if (was) again = 1 } END { exit !again }' screen; then pass; else fail "it does not go on with the new job"; fi
if grep -q ' icanon' screen && grep -q ' echo ' screen; then pass; else fail "the terminal is not as it was"; fi
finish
