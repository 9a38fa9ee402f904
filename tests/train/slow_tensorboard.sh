# slow_tensorboard.sh - TensorBoard's own reader finds every number of metrics.jsonl in RUN/tensorboard, and its pictures; after a kill,
# a resume and a rewind, too. Needs the Python package tensorboard (MUSTER_PYTHON names another interpreter that has it).
. "$(dirname "$0")/train_lib.sh"
python=${MUSTER_PYTHON:-python3}
"$python" -c 'import tensorboard, PIL' 2> /dev/null || skip "no Python package tensorboard"

cat > read.py <<'END_OF_PYTHON'
import io, json, struct, sys
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
def float32(x): return struct.unpack("f", struct.pack("f", x))[0]
run, maps = sys.argv[1], int(sys.argv[2])
wanted, statistics = {}, 0
for line in open(run + "/metrics.jsonl"):
    line = json.loads(line)
    statistics += "stats/steps" in line
    for key, x in line.items():
        if key != "step" and isinstance(x, (int, float)): wanted.setdefault(key, []).append((line["step"], float32(x)))
everything = {kind: 0 for kind in event_accumulator.DEFAULT_SIZE_GUIDANCE}
old = event_accumulator.EventAccumulator(run + "/tensorboard", everything).Reload()
found = {tag: [(x.step, x.value) for x in old.Scalars(tag)] for tag in old.Tags()["scalars"]}
for key in wanted.keys() | found.keys():
    assert found.get(key) == wanted.get(key), (key, found.get(key), wanted.get(key))
new = plugin_event_accumulator.EventAccumulator(run + "/tensorboard", {"tensors": 0}).Reload()
for key in wanted:
    values = [(x.step, x.tensor_proto.float_val[0]) for x in new.Tensors(key)]
    assert values == wanted[key], (key, values)
images = [image for tag in old.Tags()["images"] for image in old.Images(tag)]
assert len(images) == maps * statistics, (old.Tags()["images"], len(images), statistics)
for image in images:
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    picture.load()
    assert (picture.width, picture.height) == (image.width, image.height) and image.width >= 128
print(len(wanted), "tags,", sum(map(len, wanted.values())), "numbers,", len(images), "images")
END_OF_PYTHON
reads() {           # reads RUN MAPS_PER_STATISTICS_LINE
    if "$python" read.py "$1" "$2" > log 2>&1; then pass; else fail "TensorBoard's readers on $1"; fi
    cat log
}

maps=3          # load, and lift in two layers
train 1 run train.steps=12 train.eval_every=4 stats.every=3 checkpoint.every=5
reads run $maps
train 1 run train.steps=20 train.eval_every=4 stats.every=3 checkpoint.every=5
reads run $maps

# Resumed after steps that are computed again: a checkpoint was lost.
rm -r run/checkpoints/step-00000020
expect 0 "resumes at step 15" train 1 run train.steps=30 train.eval_every=4 stats.every=3 checkpoint.every=5
reads run $maps
expect 0 "resumes an older one" train 1 run train.steps=28 train.eval_every=4 stats.every=3 --resume run/checkpoints/step-00000025
reads run $maps

# A kill in the middle of a record: what is after it in the file is lost, and in the next file again.
cp -r run torn
for file in torn/tensorboard/*; do last=$file; done
truncate -s -7 "$last"
expect 0 "continues after a torn record" train 1 torn train.steps=40 train.eval_every=4 stats.every=3 --resume torn/checkpoints/step-00000025
reads torn $maps

# A dense model; and none at all.
expect 0 "a dense model" train 1 dense train.steps=6 train.eval_every=2 moe.num_experts=0
reads dense 0
expect 0 "switched off" train 1 off train.steps=6 log.tensorboard=false
if [ -e off/tensorboard ]; then fail "log.tensorboard=false writes events"; else pass; fi
finish
