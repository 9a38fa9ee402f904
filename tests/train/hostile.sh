# hostile.sh - malicious HDF5 files: token files and checkpoints with changed metadata but valid checksums and
# hashes are rejected with 65 and one line, by every command; nothing crashes, hangs or exhausts memory.
# MUSTER_FUZZ (default 150) changed files of each kind; the full number is 20000.
. "$(dirname "$0")/train_lib.sh"

ulimit -d 3000000
inputs=${MUSTER_FUZZ:-150}
for domain in a b c d e f g h i j; do echo "a text of $domain" > $domain.txt; done
seq 1 110000 > a.txt                            # more than a chunk of tokens
expect 0 "tokenize" on 1 "$MUSTER" tokenize --out tokens.h5 a=a.txt b=b.txt c=c.txt d=d.txt e=e.txt f=f.txt g=g.txt h=h.txt i=i.txt j=j.txt
options="model.hidden_size=8 model.num_layers=1 model.num_heads=1 moe.num_experts=9 moe.moe_ffn_hidden_size=4 train.steps=1
    optim.warmup_steps=0 train.global_batch_size=2 parallel.ep=1"
expect 0 "a checkpoint" train 1 run $options
newest=run/checkpoints/step-00000001
shard=$newest/shard-0000.h5

# ---------------------------------------------------------------- random changes
fuzz() {            # fuzz FILE NAME...: the store opens, walks and reads randomly changed files
    if timeout $((60 + inputs)) "$MUSTER_FUZZ_STORE" "$1" "$inputs" 1 "${@:2}" > log 2>&1; then pass; else fail "changed metadata of $1"; fi
    [ -n "${VERBOSE:-}" ] && tail -1 log
}
fuzz tokens.h5 /tokenizer /tokenizer_fingerprint /fingerprint /domains/a/tokens /domains/a/document_offsets /domains/a/text_bytes /domains/j/tokens
fuzz $shard /embed_tokens/weight /layers/0/mlp/experts/7/up_proj/weight /optim/m/layers/0/mlp/experts/8/gate_proj/weight \
    /optim/v/lm_head/weight /state/window/counts /state/loader

# ---------------------------------------------------------------- two files that crashed HDF5, through the program
# set FILE HEX+OFFSET BYTE...: metadata is found by the bytes it has
set_bytes() { "$MUSTER_FUZZ_STORE" "$1" set "${@:2}" || fail "changing $1"; }
layout=04020202                                 # version 4, chunked, one filtered chunk, rank 1 + 1
refused() {         # refused WHAT SAYS COMMAND...: exit code 65, one line of error that says this
    expect 65 "$1" on 1 "$MUSTER" "${@:3}"
    says_once "$1" "error: .*not an HDF5 file as muster writes it .*: byte [0-9]+: $2"
}
cp tokens.h5 good.h5
IFS=: ; for case in "rank 0:$layout+3:0:chunks of -1 dimensions" "chunks of no rows:$layout+5:0:a chunk's dimension 0 is 0" \
    "a group in itself:0007646f6d61696e73+9:48 0 0 0 0 0 0 0:OHDR is used twice" "an old superblock:894844460d0a1a0a+8:0:superblock of version 0"; do
    read -r what where bytes text <<< "$case"
    IFS=' '
    cp good.h5 tokens.h5
    set_bytes tokens.h5 "$where" $bytes
    refused "a token file with $what" "$text" train tiny.yaml run.dir=other $options "data.train=[{domain: a, path: tokens.h5}]"
    IFS=:
done
IFS=$' \t\n'
if [ -n "${MPIEXEC:-}" ]; then
    expect 65 "on two ranks" train 2 other $options "data.train=[{domain: a, path: tokens.h5}]"
    says_once "on two ranks" "error: .*tokens.h5: cannot be read: not an HDF5 file"
fi
set_bytes $shard $layout+3 0
"$MUSTER_SIGN" $newest/manifest.json $shard || fail "sign"
for command in "verify run" "generate run --prompt x --tokens 1" "train tiny.yaml run.dir=run $options train.steps=2"; do
    expect 65 "a shard: $command" on 1 "$MUSTER" $command
    says "a shard: $command" "shard-0000.h5: cannot be read: not an HDF5 file as muster writes it .*: byte [0-9]+: chunks of -1 dimensions"
done

# The probe beside muster: a valid file passes, and its output is one line.
probe=${MUSTER%/*}/muster-probe-hdf5
expect 0 "the look at a sound file" on 1 "$probe" probe-hdf5 good.h5
says_once "the look at a sound file" '^ok$'
expect 65 "the look at another file" on 1 "$probe" probe-hdf5 tiny.yaml
if [ "$(wc -l < log)" = 1 ]; then pass; else fail "more than one line"; fi
mkdir -p moved/bin moved/libexec/muster
cp "$MUSTER" moved/bin
cp good.h5 tokens.h5
own() { expect 0 "$1" on 1 moved/bin/muster train tiny.yaml run.dir="$2" $options "data.train=[{domain: a, path: tokens.h5}]"; }
own "a copy of muster alone" alone
says_once "a copy of muster alone" 'warning: muster-probe-hdf5, .* is neither beside muster nor in'
printf '#!/bin/sh\necho "$2" > looked; exec "%s" "$@"\n' "$probe" > moved/libexec/muster/muster-probe-hdf5
chmod +x moved/libexec/muster/muster-probe-hdf5
own "a copy with the program that looks first" both
if grep -qx tokens.h5 looked && ! grep -q warning log; then pass; else fail "the installed program was not used"; fi
finish
