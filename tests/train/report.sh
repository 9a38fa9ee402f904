# report.sh - muster report and compare: the page of finished, crashed, damaged, moved, dense and unfinished runs; nothing is fetched, every picture has its
# data. With `every` (slow_report.sh) also a run of 64 layers x 256 experts x 50 domains, and the pages in Chromium.
. "$(dirname "$0")/train_lib.sh"

report() { on 1 "$MUSTER" report "$@"; }
has() {             # has FILE WHAT PATTERN
    if grep -Eq -- "$3" "$1"; then pass; else fail "$1: $2: nothing like '$3'"; fi
}
has_not() {
    if grep -Eq -- "$3" "$1"; then fail "$1: $2: $(grep -Eo -- ".{0,40}$3.{0,40}" "$1" | head -n 1)"; else pass; fi
}
# A page is whole: closed, self-contained, and each figure has a caption, a picture and its data.
is_whole() {        # is_whole FILE FIGURES
    local figures
    has "$1" "begins" '^<!DOCTYPE html>$'
    has "$1" "ends" '^</html>$'
    has_not "$1" "fetches" '(src|href)="(https?:|//|[a-z]+\.)|https?://|@import|url\('
    has_not "$1" "values" '[>" ,:\[](nan|-nan|inf|-inf|null)[<",\]]'
    figures=$(grep -c '<figure ' "$1")
    for part in '<figcaption><b>' '<script type="application/json">{' '</script></figure>' 'class="area"'; do
        if [ "$(grep -c -- "$part" "$1")" = "$figures" ]; then pass; else fail "$1: $figures figures, but $(grep -c -- "$part" "$1") x $part"; fi
    done
    if [ "$figures" -ge "$2" ]; then pass; else fail "$1: $figures figures, expected $2"; fi
}

# ---------------------------------------------------------------- a finished run, with everything
printf 'The <b>letter</b> & the "word": \303\244\n%.0s' $(seq 300) > plain.txt
texts="data.train=[{domain: plain, path: $work/plain.txt}, {domain: made-up, path: synthetic}]"
expect 0 "a run" train 1 run train.steps=40 train.eval_every=10 checkpoint.every=20 "$texts"
expect 0 "report" report run
says "report" '^written to run/report.html, [0-9.]+ MB$'
is_whole run/report.html 14
has run/report.html "state" '<h1>run <span class="state">finished</span>'
has run/report.html "steps" '<dt>steps</dt><dd>40 of 40'
has run/report.html "parameters" '<dt>parameters</dt><dd>[0-9]+</dd>'
has run/report.html "margins" '"y":"logits"|>logits<'
has run/report.html "sizes" '<dt>compute saved against the dense model of equal size</dt><dd>[0-9]+ %'
has run/report.html "diagnosis" '<li class="good">Validation loss went from'
has run/report.html "text" '&lt;b&gt;|&lt;</span>'
has_not run/report.html "text" '<b>letter'
has run/report.html "text" 'title="expert [0-7]"'
has run/report.html "all experts have colours" '[.]e15[{]background:#'
has_not run/report.html "all experts have colours" '<span>others <b>'
has run/report.html "drops" 'Dropless: moe.capacity_factor is 0'
has run/report.html "lift" 'Lift is from the statistics of steps 1 to 40[.]'
cp run/report.html first.html
expect 0 "report again" report run --out=run/report.html
if cmp -s first.html run/report.html; then pass; else fail "two reports of one run differ"; fi
# Figures of criticality: only measured cells are compared, each domain has one statement, present and past figures have their steps.
expect 0 "a run with measurements" train 1 needs train.steps=20 train.eval_every=10 stats.every=10 stats.budget=1 "$texts"
list() { sed -Ei "s|\"moe/layer_$1/$2\":\[[^]]*\]|\"moe/layer_$1/$2\":[$3]|" needs/metrics.jsonl; }
sed -i 's|,"xxh3":"[^"]*"||' needs/metrics.jsonl
list 0 criticality '0.42,0.5,0,0.3,0.6,0.9,0.01,0,0,0,0,0,0,0,0,0'
list 0 criticality_step '20,20,0,20,20,0,20,0,0,0,-1,0,0,0,0,0'
list 1 criticality "$(printf '0,%.0s' $(seq 15))0" && list 1 criticality_step "$(printf '0,%.0s' $(seq 15))0"
list 0 state 0,3,0,0,0,0,0,0
cat >> needs/events.jsonl << 'end'
{"step":10,"event":"state","layer":0,"expert":1,"to":"carrier","reason":"criticality 0.36 nats","domain":"made-up","criticality":0.36,"xxh3":"8331e5ff984c6629"}
{"step":12,"event":"state","layer":0,"expert":2,"to":"healthy","reason":"no longer the carrier of made-up, criticality 0.01 nats","domain":"made-up","criticality":0.01,"xxh3":"2bbd3856854c7501"}
end
expect 0 "report of made-up criticality" report needs --no-texts
has needs/report.html "most" '>plain depends most on expert 2 of layer 0: without it its loss on the probe rises by 0.60 nats/token \(step 20\); no other domain was measured with this expert; next: expert 0 of layer 0, 0.42[.]<'
has needs/report.html "shared" '>made-up depends most on expert 0 of layer 0: .* 0.50 nats/token \(step 20\); shared with plain 0.42; next: expert 1 of layer 0, 0.30[.] Carriers: expert 1 of layer 0 \(0.30 at step 20, since step 10 with 0.36\)[.]<'
has needs/report.html "coverage" 'Of these cells <b>100 %</b> were measured in the last ten intervals'
has needs/report.html "cells" '5 of 16 cells were measured'
has needs/report.html "cells" '</span>not measured yet<'
has needs/report.html "cells" '</span>screened out: too few tokens of the domain<'
has needs/report.html "reason" '<td class="words">no longer the carrier of made-up'
has_not needs/report.html "once" 'expert 1 is |twice what other'
expect 0 "report elsewhere, without texts" report run --out other.html --no-texts
has other.html "texts" 'Left out on request \(--no-texts\)'

# Changes of state with reasons, and advice; a capacity limit.
expect 0 "a run of two phases" train 1 phases train.steps=30 train.eval_every=10 data.phases='[{until_step: 15, mix: {a: 1}}, {mix: {a: 1, b: 1}}]'
expect 0 "report of it" report phases
has phases/report.html "phases" 'Dashed line 1: phase 2 of 2 from step 16: b begins'
has phases/report.html "phases" '<i style="left:50.00%" title="phase 2 of 2'
expect 0 "a fork" train 1 forked --fork phases train.steps=40
expect 0 "report of it" report forked
is_whole forked/report.html 12
has forked/report.html "parent" '<dt>forked from</dt><dd>[^<]*phases/checkpoints/step-00000030<small>step 30'
expect 0 "a run out of balance" train 1 uneven train.steps=60 moe.balance=[none] moe.router_jitter=0 optim.lr=0.03 moe.capacity_factor=0.5 stats.every=10 data.train='[{domain: a, path: synthetic}]'
expect 0 "report of it" report uneven
is_whole uneven/report.html 12
has uneven/report.html "one domain" 'No lift and no domain information: .* has only a[.]<'
expect 0 "a run without a budget" train 1 idle train.steps=20 stats.every=10 stats.budget=0 train.eval_every=0
expect 0 "report of it" report idle --no-texts
has idle/report.html "probe" 'No probe losses: stats.budget is 0[.]<'
has idle/report.html "criticality" 'No criticality: stats.budget is 0[.]<'
has idle/report.html "evaluation" 'No validation losses: train.eval_every is 0[.]<'
expect 0 "a run without validation texts" train 1 unseen train.steps=20 stats.every=10 data.val_fraction=0
expect 0 "report of it" report unseen
has unseen/report.html "probe" 'No probe losses: data.val_fraction is 0'
has unseen/report.html "evaluation" 'No validation losses: data.val_fraction is 0'
has unseen/report.html "criticality" 'No criticality: data.val_fraction is 0'
has uneven/report.html "drops" '<li class="bad">[0-9.]+ % of all assignments exceed moe.capacity_factor 0.5'
has_not uneven/report.html "the only domain" 'what other domains lose|hardest domain'
if grep -q '"event":"advice"' uneven/events.jsonl; then pass; else fail "no advice in $(cat uneven/events.jsonl)"; fi
has uneven/report.html "advice" '<li class="note">Advice of step [0-9]+: '
if ! grep -q '"event":"state"' uneven/events.jsonl; then fail "no change of state"; fi
has uneven/report.html "events" '<td class="words">(starved|dead|healthy)</td><td class="words">[a-z].* of '
has uneven/report.html "marks" '<i style="left:[0-9.]+%" title="step [0-9]+: layer [01], expert [0-7] '

# ---------------------------------------------------------------- errors
refuses() { expect "$1" "report ${*:3}" report "${@:3}" && says_once "report ${*:3}" "^muster: error: .*$2"; }
refuses 64 "needs a run folder"
refuses 64 "unknown option --nonsense" run --nonsense
refuses 64 "compare several with" run run
refuses 66 "nowhere: no such file or folder" nowhere
echo mine > mine.html
refuses 64 "was not made by muster" run --out mine.html
if [ "$(cat mine.html)" = mine ]; then pass; else fail "another file was replaced"; fi
refuses 74 "nowhere" run --out nowhere/page.html

# ---------------------------------------------------------------- moved, damaged, texts gone, a strange name
strange=$'a <script>alert(1)</script> \e[31m'
mkdir -p there && cp -r run "there/strange" && rm plain.txt
sed -i '3s/"train/"tr4in/' there/strange/metrics.jsonl
printf 'x' | dd of=there/strange/statistics.rec bs=1 seek=2000 conv=notrunc 2> /dev/null
printf '{"step":41,"tra' >> there/strange/metrics.jsonl
echo '{"step":30,"event":"state"}' >> there/strange/events.jsonl
mv there/strange "${strange//\//_}"
expect 0 "report of a damaged run" report "${strange//\//_}" --out strange.html
is_whole strange.html 10
has strange.html "moved" 'moved or copied'
has strange.html "damage" 'metrics.jsonl: 1 lines are damaged'
has strange.html "damage" 'statistics.rec: 1 records are damaged'
has strange.html "damage" 'events.jsonl: 1 lines are damaged'
has strange.html "texts" 'could not read its texts: .*plain.txt'
has strange.html "name" 'a &lt;script&gt;alert\(1\)&lt;_script&gt; \\x1b\[31m'
has_not strange.html "name" '<script>alert'

# ---------------------------------------------------------------- crashed without a checkpoint, without statistics, dense, not begun
cp -r run crashed && rm -r crashed/checkpoints crashed/statistics.rec && echo "process 1 on elsewhere start 1 launcher 0" > crashed/lock
expect 0 "report of a crashed run" report crashed
is_whole crashed/report.html 4
has crashed/report.html "state" '<span class="state">crashed</span>'
has crashed/report.html "texts" 'no checkpoint yet'
has crashed/report.html "counts" 'No counts: .*statistics.rec'
cp -r run copies && sed -i '/"stats\/steps"/d' copies/metrics.jsonl
expect 0 "report of a run without statistics lines" report copies --no-texts
has copies/report.html "lift" 'Lift is from the logged steps since 21[.]'
: > crashed/metrics.jsonl
expect 0 "report of a run without steps" report crashed
is_whole crashed/report.html 0
has crashed/report.html "steps" 'No step was logged yet'
rm crashed/metrics.jsonl
expect 0 "report of a run without metrics" report crashed
expect 0 "a dense run" train 1 dense moe.num_experts=0
expect 0 "report of a dense run" report dense
is_whole dense/report.html 1
has dense/report.html "experts" 'A dense model'

# ---------------------------------------------------------------- several runs
compare() { on 1 "$MUSTER" compare "$@"; }
expect 0 "another run" train 1 second train.steps=30 optim.lr=1e-3 train.eval_every=10
expect 0 "compare" compare run second dense --out both.html
says "compare" '^written to both.html, [0-9.]+ MB$'
is_whole both.html 12
has both.html "options" '<tr><td>optim.lr</td><td class="value">0.003</td><td class="value">0.001</td><td class="value">0.003</td></tr>'
has both.html "options" '<tr><td>data.train: plain</td>'
has_not both.html "options" '<td>(run.dir|train.seq_len|moe.top_k)</td>'
has_not both.html "shares below 0" '<span style="top:[0-9.]+%">-'
for axis in step tokens 'seconds of training'; do has both.html "curves" "<div class=\"xn\">$axis</div>"; done
cp -r run there/run
expect 0 "compare with itself" compare run there/run
has compare.html "same options" 'None: the runs have the same options'
has compare.html "names" '>there/run</th>'
expect 64 "compare of one run" compare run && says "compare of one run" 'needs at least two'
expect 66 "compare with nothing" compare run nowhere
expect 64 "compare into another file" compare run second --out mine.html

# ---------------------------------------------------------------- large
layers=4 experts=64 domains=20 steps=30
[ -n "${every:-}" ] && layers=64 experts=256 domains=50 steps=200
expect 0 "a large run" "$MUSTER_LARGE_RUN" large $layers $experts $domains $steps
TIMEFORMAT='%U %S'
cpu=$( { time report large > /dev/null; } 2>&1 | awk '{ print ($1 + $2 < 10) ? "fast" : $1 + $2 " s" }')
if [ "$cpu" = fast ]; then pass; else fail "the report of a large run took $cpu of processor time"; fi
is_whole large/report.html $((3 * layers + 5))
bytes=$(stat -c %s large/report.html)
if [ "$bytes" -lt 10000000 ]; then pass; else fail "the report has $bytes bytes"; fi
has large/report.html "pairs" 'most frequent pairs: [0-9]+ \+ [0-9]+'
has large/report.html "states" 'overwritten'
# Beyond 64 layers of 256 experts only some layers have pictures.
if [ -n "${every:-}" ]; then
    expect 0 "a larger run" "$MUSTER_LARGE_RUN" larger 160 256 50 20
    expect 0 "report of it" report larger
    has larger/report.html "layers" 'drawn for one layer of 3'
    bytes=$(stat -c %s larger/report.html)
    if [ "$bytes" -lt 10000000 ]; then pass; else fail "the report of a larger run has $bytes bytes"; fi
else finish; fi

# ---------------------------------------------------------------- in Chromium: every picture is drawn, and shows its values under the pointer
command -v chromium > /dev/null || skip "no chromium"
cat > pointer.js <<'END'
addEventListener('load', function () { setTimeout(function () {
    var tip = document.querySelector('.tip');
    document.querySelectorAll('details').forEach(function (d) { d.open = true; });
    document.querySelectorAll('.tabs>section').forEach(function (s) { s.style.display = 'block'; });
    document.querySelectorAll('figure').forEach(function (f) {
        var area = f.querySelector('.area'), r = area.getBoundingClientRect();
        tip.textContent = '';
        area.dispatchEvent(new PointerEvent('pointermove', { clientX: r.left + r.width / 2, clientY: r.top + r.height / 2 }));
        f.setAttribute('data-tip', tip.textContent.replace(/\n/g, '; '));
    });
}, 2000); });
END
for page in first.html strange.html both.html uneven/report.html large/report.html; do
    { sed 's|</body>||; s|</html>||' $page; echo "<script>"; cat pointer.js; echo "</script></body></html>"; } > seen.html
    timeout -k 5 120 chromium --no-sandbox --headless=new --disable-gpu --no-first-run --user-data-dir="$work/profile" \
        --virtual-time-budget=20000 --dump-dom "file://$work/seen.html" > dom.html 2> log
    figures=$(grep -c '<figure ' dom.html) ready=$(grep -c '<figure [^>]*data-ready=""' dom.html) told=$(grep -c '<figure [^>]*data-tip="[^"]*[a-z0-9][^"]*"' dom.html)
    if [ "$figures" -gt 0 ] && [ "$figures" = "$ready" ] && [ "$figures" = "$told" ]; then pass
    else fail "$page in Chromium: $figures figures, $ready ready, $told with values"; fi
    cp dom.html "${page%%[./]*}.dom"
done
has first.dom "a curve's values" 'data-tip="step 20; training  [0-9.]+; validation  [0-9.]+"'
has first.dom "a map's values" 'data-tip="layer [01], expert [0-7]; [0-9.]+ x mean load of the layer"'
has uneven.dom "a state" 'data-tip="expert 4, step 3[0-9]; (healthy|starved|dead)"'
finish
