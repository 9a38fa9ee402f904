# generate.sh - muster generate writes the same text with and without its KV cache.
. "$(dirname "$0")/train_lib.sh"

# text NAME ARGUMENTS...: stdout of generate in NAME.out, stderr in NAME.err
text() {
    local name=$1
    shift
    timeout -k 5 120 "$MUSTER" generate "$@" > "$name.out" 2> "$name.err"
}
# same ARGUMENTS...: with and without cache the text is the same, continues the prompt, and nothing else is printed
same() {
    if text with "$@" && text without "$@" --no-cache && cmp -s with.out without.out; then pass
    else cat with.err without.err > log; fail "generate $*: other text without the cache"; fi
    if [ -s with.err ] || [ -s without.err ]; then cp with.err log; fail "generate $*: a quiet run says something"; fi
}

# ---------------------------------------------------------------- four models with a context of 32 tokens
mkdir -p texts
for i in 1 2 3; do seq -s ' ' $i 900 > texts/$i.txt; done
own="data.train=[{domain: own, path: texts}]"
for device in cpu ref; do
    steps=$([ $device = cpu ] && echo 300 || echo 40)
    expect 0 "training on $device" train 1 $device "$own" train.device=$device train.steps=$steps optim.lr=1e-2
done
expect 0 "training, guarded" train 1 guarded "$own" train.device=guarded model.max_seq_len=35 moe.first_k_dense=1 \
    moe.score_func=sigmoid $families
expect 0 "training a dense model" train 1 dense "$own" moe.num_experts=0 model.num_kv_heads=2 model.qk_norm=false log.progress=line
thirty="1 2 3 4 5 6 7 8 9 10 11 12 13 "
long="$thirty$thirty$thirty"

for device in cpu ref guarded; do
    same $device --prompt 1 --tokens 100 --seed 5
    same $device --prompt "$thirty" --tokens 40 --temperature 0
    same $device --prompt "${thirty}14" --tokens 20 --temperature 2.5 --seed 8
    same $device --prompt "$long" --tokens 50 --top-p 0.8 --temperature 0.7 --show-experts
    same $device --prompt "$thirty" --tokens 2 --show-experts
done
same cpu --prompt "$long" --tokens 0 --show-experts
same cpu --prompt "7 8" --tokens 1 --show-experts
same cpu --prompt "7 8 " --tokens 300 --top-p 0.9 --temperature 1.3

# ---------------------------------------------------------------- inference on another device than training
same cpu train.device=ref --prompt "1 2 3" --tokens 12 --temperature 0
same cpu --prompt "1 2 3" --tokens 12 train.device=cpu-base train.threads=2
text wrong cpu --prompt x moe.top_k=1
if [ $? = 78 ] && grep -q 'error: moe.top_k=1: generate accepts only train.device' wrong.err; then pass; else fail "an override that generate does not take"; fi

# ---------------------------------------------------------------- one row of experts per token in the context
text with cpu --prompt "1 2 3 4" --tokens 50 --temperature 0 --show-experts
if [ "$(sed '1,/^  token/d' with.out | wc -l)" = 57 ]; then pass; else fail "not every token has its experts"; fi

# ---------------------------------------------------------------- a full context: its last half continues as if it were the prompt
for cache in "" --no-cache; do
    text with cpu --prompt "${thirty}14" --tokens 17 --temperature 0 $cache
    written=$(cat with.out)
    text half cpu --prompt "${written:17:16}" --tokens 16 --temperature 0 $cache
    if [ ${#written} = 49 ] && [ "$(cat half.out)" = "${written:17}" ]; then pass
    else fail "after a full view $cache: '$written', and from its last half '$(cat half.out)'"; fi
done

# ---------------------------------------------------------------- timing
text with dense --prompt 1 --tokens 20 --temperature 0
text without dense --prompt 1 --tokens 20 --temperature 0 --no-cache
if cmp -s with.out without.out; then pass; else fail "a dense model: other text without the cache"; fi
for name in with without; do
    if [ "$(grep -cE '^muster: 20 tokens in [0-9.]+ s: the first after [0-9.]+ s \(prompt of 1\), then [0-9.]+ tokens/s$' $name.err)" = 1 ] &&
        [ "$(wc -l < $name.err)" = 1 ]; then pass; else cp $name.err log; fail "the line about the speed"; fi
done
text with dense --prompt 1 --tokens 0 && text without dense --prompt 1 --tokens 1
if [ ! -s with.err ] && grep -q '^muster: 1 token in [0-9.]* s: the first after [0-9.]* s (prompt of 1)$' without.err; then pass
else cat with.err without.err > log; fail "the line about the speed of no token and of one"; fi
finish
