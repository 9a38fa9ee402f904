# slow_parquet.sh - scripts/parquet-to-jsonl.py on Parquet files, Arrow files and datasets with splits: muster reads the same texts
# from each. Needs the Python package pyarrow (MUSTER_PYTHON names another interpreter that has it).
. "$(dirname "$0")/train_lib.sh"
python=${MUSTER_PYTHON:-python3}
"$python" -c 'import pyarrow.parquet' 2> /dev/null || skip "no Python package pyarrow"
convert() { timeout 120 "$python" "$MUSTER_SOURCE/scripts/parquet-to-jsonl.py" "$@" > log 2>&1; }
fails() {           # fails CODE TEXT ARGUMENT...
    local code=$1 text=$2 got=0
    shift 2
    convert "$@" || got=$?
    if [ "$got" = "$code" ] && grep -qF -- "$text" log; then pass; else fail "parquet-to-jsonl $*: exit code $got, expected $code and: $text"; fi
    if ls refused* > /dev/null 2>&1; then fail "a refused conversion left a file"; fi
}

cat > make.py <<'END_OF_PYTHON'
import json, os
import pyarrow as pa, pyarrow.parquet as pq
os.makedirs("hub/data"), os.makedirs("disk/train"), os.makedirs("disk/test")
texts = ["one \u00e9\U0001F600\n\"x\"\\", None, "", "nul\0", "two"] + ["row %d " % i * 20 for i in range(5000)]
table = pa.table({"id": list(range(len(texts))), "text": texts, "label": pa.array(["a"] * len(texts)).dictionary_encode()})
pq.write_table(table.slice(0, 2500), "hub/data/train-00000-of-00002.parquet", row_group_size=700)
pq.write_table(table.slice(2500), "hub/data/train-00001-of-00002.parquet", compression="zstd")
pq.write_table(table.slice(0, 3), "hub/data/test-00000-of-00001.parquet")
with pa.OSFile("disk/train/data-00000-of-00001.arrow", "wb") as f, pa.ipc.new_stream(f, table.schema) as w: w.write_table(table, max_chunksize=999)
with pa.OSFile("disk/test/data-00000-of-00001.arrow", "wb") as f, pa.ipc.new_file(f, table.schema) as w: w.write_table(table.slice(0, 9))
open("disk/train/state.json", "w").write("{}")
for name, data in (("cut.parquet", "hub/data/train-00001-of-00002.parquet"), ("cut.arrow", "disk/train/data-00000-of-00001.arrow")):
    open(name, "wb").write(open(data, "rb").read()[:3000])
with open("expected.jsonl", "w") as f:
    for t in texts:
        if t and "\0" not in t: f.write(json.dumps({"text": t}) + "\n")
END_OF_PYTHON
"$python" make.py || fail "the files could not be made"

fingerprint() { "$MUSTER" tokenize --out "$1.h5" x="$1" | sed -n 's/.*fingerprint //p'; }
expected=$(fingerprint expected.jsonl)
for case in "hub a.jsonl" "hub b.jsonl.zst" "disk c.jsonl.gz"; do
    set -- $case
    if convert "$1" --split train --out "$2" && grep -q "^$2: 5002 documents" log && grep -q "^left out: 2 empty" log && grep -q "^left out: 1 with a NUL" log
    then pass; else fail "conversion of $1"; fi
    if [ "$(fingerprint "$2")" = "$expected" ]; then pass; else fail "$2 holds other texts"; fi
done
if convert disk/test hub/data/test-00000-of-00001.parquet --text-key label --out labels.jsonl && [ "$(sort -u labels.jsonl)" = '{"text": "a"}' ] && [ "$(wc -l < labels.jsonl)" = 12 ]
then pass; else fail "another column, of a dictionary"; fi
fails 64 "several splits (test, train); choose one with --split" hub --out refused.jsonl
fails 64 "a.jsonl exists" hub --split train --out a.jsonl
fails 64 "must end in .jsonl" hub --split train --out refused.json
fails 66 "no .parquet or .arrow files of split dev (there are: test, train)" disk --split dev --out refused.jsonl
fails 66 "absent: no such file or folder" absent --out refused.jsonl
fails 65 "column id is of type int64, not text" disk/test --text-key id --out refused.jsonl
fails 65 "no column body; --text-key selects one of: id, text, label" disk/test --text-key body --out refused.jsonl
fails 65 "cut.parquet: damaged" cut.parquet --out refused.jsonl
fails 65 "cut.arrow: damaged" cut.arrow --out refused.jsonl.zst
finish
