# resume.sh - resuming at the same number of ranks: from any step, with gradient accumulation, in the middle of an
# epoch and beyond the window of expert loads, every later metric, the final weights and routing.h5 are bit-identical
# to the uninterrupted run. Also the values of --resume and their errors.
. "$(dirname "$0")/train_lib.sh"

# A third domain of some fifty sequences, so that the run goes through several epochs of it.
mkdir texts
for i in 1 2 3 4 5 6; do printf 'Document %d says: %s\n' $i "$(seq -s ', ' $((i * 7)) $((i * 7 + 60)))" > texts/$i.txt; done
domains="data.train=[{domain: a, path: synthetic},{domain: small, path: texts, weight: 200}]"

# resume_at DIR STEP RANKS OPTION...: resumes DIR as a crash right after STEP would have left it
resume_at() {
    local dir=$1 step=$2 ranks=$3 copy=$1-from-$2 found
    shift 3
    cp -r "$dir" "$copy"
    for found in $(steps_in "$copy"); do
        [ "$found" -gt "$step" ] && rm -r "$copy/checkpoints/$(printf 'step-%08d' "$found")"
    done
    expect 0 "$copy" train "$ranks" "$copy" "$@"
    says "$copy" "resuming from $copy/checkpoints/$(printf 'step-%08d' "$step") \(step $step, written by"
    same_metrics "$dir" "$copy" exact
    same_checkpoint "$dir" "$copy" "$(steps_in "$dir" | sed 's/.* //')"
    if cmp -s "$dir/routing.h5" "$copy/routing.h5"; then pass; else fail "$copy/routing.h5 differs"; fi
    if cmp -s "$dir/events.jsonl" "$copy/events.jsonl"; then pass; else fail "$copy/events.jsonl differs"; fi
    rm -r "$copy"
}

all="checkpoint.every=1 checkpoint.keep=1000"
expect 0 "softmax, one rank" train 1 one $all "$domains" train.steps=24 train.eval_every=5 train.eval_sequences=4
for step in 1 6 20 23; do resume_at one $step 1 $all "$domains" train.steps=24 train.eval_every=5 train.eval_sequences=4; done
resume_at one 11 1 $all "$domains" train.steps=24 train.eval_every=5 train.eval_sequences=4 train.threads=3

bias="moe.score_func=sigmoid moe.balance=[expert_bias,seq_aux_loss] moe.num_shared_experts=1 moe.first_k_dense=1 moe.router_jitter=0.1"
expect 0 "sigmoid + bias, accumulating" train 1 micro $all "$domains" $bias train.micro_batch_size=2
resume_at micro 13 1 $all "$domains" $bias train.micro_batch_size=2
expect 0 "counts of the batch before, in double precision" train 1 wide $all train.device=ref moe.global_aux_counts=previous train.micro_batch_size=4
resume_at wide 7 1 $all train.device=ref moe.global_aux_counts=previous train.micro_batch_size=4

expect 0 "beyond the window of expert loads" train 1 long train.steps=230 checkpoint.every=69 checkpoint.keep=9
resume_at long 207 1 train.steps=230 checkpoint.every=69 checkpoint.keep=9

if [ -n "${MPIEXEC:-}" ]; then
    expect 0 "4 ranks, ep 2, accumulating" train 4 four $all "$domains" train.micro_batch_size=1 parallel.ep=2
    resume_at four 9 4 $all "$domains" train.micro_batch_size=1 parallel.ep=2
fi

# ---------------------------------------------------------------- values of --resume
expect 78 "never, where a run is" train 1 one $all "$domains" train.steps=24 --resume never
says "never" "run.dir one already holds a run"
expect 0 "never, in a new folder" train 1 fresh train.steps=6 --resume never
expect 0 "auto, with nothing there" train 1 empty train.steps=6 --resume auto
same_metrics fresh empty exact
expect 66 "a path that is not there" train 1 other --resume nowhere
says "not there" "nowhere: no such file"
expect 65 "a folder without a checkpoint" train 1 other --resume texts
expect 64 "--resume without a value" train 1 other --resume

expect 0 "another folder resumes from a checkpoint" train 1 branch $all "$domains" train.steps=24 train.eval_every=5 train.eval_sequences=4 \
    --resume one/checkpoints/step-00000020
same_metrics one branch exact 21 24
same_checkpoint one branch 24
expect 0 "... from the newest of a run" train 1 branch-2 $all "$domains" train.steps=26 --resume=one
says "newest" "resuming from one/checkpoints/step-00000024 "
has_steps branch-2 "25 26"
expect 78 "... but not into a folder that holds a run" train 1 branch $all "$domains" train.steps=26 --resume one
says "into a run" "run.dir branch already holds a run, and --resume one belongs to another"

# A finished run changes nothing; more steps extend it, and changed options are listed.
before=$(cat one/metrics.jsonl | cksum)
expect 0 "a finished run" train 1 one $all "$domains" train.steps=24 train.eval_every=5 train.eval_sequences=4
says "finished" "already at step"
if [ "$(cat one/metrics.jsonl | cksum)" = "$before" ]; then pass; else fail "a finished run's metrics changed"; fi
expect 0 "more steps" train 1 one $all "$domains" train.steps=25 train.eval_every=0 optim.lr=1e-3
says "more steps" "train.steps: 24 -> 25"
says "more steps" "optim.lr: 0.003 -> 0.001"

# All options that must not change are listed.
expect 78 "a changed model" train 1 one $all "$domains" train.steps=30 model.rope_theta=5000 moe.top_k=3 run.seed=8 train.global_batch_size=16
for key in model.rope_theta moe.top_k run.seed train.global_batch_size; do says "changed" "  $key was .* and is now"; done
expect 78 "changed texts" train 1 one $all "data.train=[{domain: a, path: synthetic}]" train.steps=30
says "changed texts" "data.train was"
echo "one more line" >> texts/3.txt
expect 78 "a text that was edited" train 1 one $all "$domains" train.steps=30
says "edited" "the texts differ from those of .*fingerprint"
says_once "edited" "^  domain [a-z]*: [0-9]+ tokens, fingerprint [0-9a-f]{32} then; [0-9]+ tokens, [0-9a-f]{32} now"

# ---------------------------------------------------------------- treating a run with starved experts
many="moe.num_experts=32 optim.lr=2e-2 stats.every=10 stats.window=20"
expect 0 "starving" train 1 sick $many train.steps=60 moe.balance=none checkpoint.every=15 checkpoint.keep=9
if [ "$(grep -c '"event":"state"' sick/events.jsonl)" -gt 20 ]; then pass; else fail "few events: the test shows nothing"; fi
resume_at sick 30 1 $many train.steps=60 moe.balance=none checkpoint.every=15 checkpoint.keep=9
starved() { grep -o '"moe/starved_frac":[0-9.]*\|"moe/dead_frac":[0-9.]*' "$1/metrics.jsonl" | tail -2 | awk -F: '{ n += $2 } END { print (n > 0.1 ? "yes" : "no") }'; }
imbalance() { grep -o '"moe/load_imbalance":[0-9.]*' sick/metrics.jsonl | tail -1 | sed 's/.*://'; }
sick=$(imbalance)
if [ "$(starved sick)" = yes ]; then pass; else fail "nobody starves: the test shows nothing"; fi
expect 0 "treated" train 1 sick $many train.steps=160 "moe.balance=[expert_bias,aux_loss]" moe.aux_loss_coeff=0.1 moe.bias_update_rate=0.01 \
    moe.router_jitter=0.01 moe.capacity_factor=4 moe.z_loss_coeff=0.0001 moe.seq_aux_loss_coeff=0.01 moe.global_aux_counts=previous log.progress=line
for key in balance aux_loss_coeff bias_update_rate router_jitter capacity_factor z_loss_coeff seq_aux_loss_coeff global_aux_counts; do
    says "treated" "  moe.$key: .* -> "
done
says "treated" "^experts: 64 healthy(;|$)"
if [ "$(starved sick)" = no ]; then pass; else fail "experts still starve"; fi
if awk "BEGIN { exit !($(imbalance) < 0.7 * $sick) }"; then pass; else fail "load imbalance $sick before, $(imbalance) after"; fi
biases() { grep -o '"moe/bias_absmax":[0-9.]*' sick/metrics.jsonl | tail -1 | sed 's/.*://'; }
expect 0 "the bias off and on again" train 1 sick $many train.steps=161 moe.balance=none
expect 0 "the bias off and on again" train 1 sick $many train.steps=170 moe.balance=expert_bias moe.bias_update_rate=0.001
if awk "BEGIN { exit !($(biases) <= 0.01801) }"; then pass; else fail "a bias switched on anew stands at $(biases) after 9 steps"; fi
expect 78 "what may not change" train 1 sick $many train.steps=180 moe.score_func=sigmoid moe.num_experts=16 moe.norm_topk_prob=false moe.balance=expert_bias
for key in score_func num_experts norm_topk_prob; do says "may not change" "  moe.$key was .* and is now"; done
if grep -q "moe.balance was" log; then fail "moe.balance is refused"; else pass; fi

# A warm-up that follows from train.steps is the checkpoint's when the run is extended.
sed -i 's/, warmup_steps: 5//' tiny.yaml
expect 0 "a short run" train 1 warm train.steps=40
expect 0 "extended" train 1 warm train.steps=80
if grep -q "optim\." log; then fail "the extended run changed optim options"; else pass; fi
rate() { grep "^{\"step\":$1," warm/metrics.jsonl | grep -o '"optim/lr":[0-9.e-]*' | sed 's/.*://'; }
if awk "BEGIN { exit !($(rate 41) < 0.003 && $(rate 41) > $(rate 60) && $(rate 60) > $(rate 80) && $(rate 4) == 0.003) }"; then pass
else fail "learning rates of steps 4, 41, 60, 80: $(rate 4) $(rate 41) $(rate 60) $(rate 80)"; fi
finish
