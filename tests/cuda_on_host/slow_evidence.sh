#!/usr/bin/env bash
# slow_evidence.sh - on the emulation the main kernels have no bank conflicts, coalesced accesses, and little more traffic
# than necessary; all training steps launch the same number of kernels. Each check is also run on figures that fail it.
set -u
[ -x "$MUSTER_BUILD/tests/cuda_on_host/muster_evidence" ] || { echo "skipped: this build has no checked emulation"; exit 77; }
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
python3 "$MUSTER_SOURCE/bench/gpu/evidence.py" "$MUSTER_BUILD" --counted || exit 1
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$MUSTER_SOURCE/bench/gpu python3 - <<'END'
import evidence
good = dict(launches=1, read_footprint=900, written_footprint=100, accesses=1000, uncoalesced=1, shared_accesses=9, bank_conflicts=0)
call = lambda **changed: dict(kernel="add", reads=900, writes=100, launches=[{**good, **changed}])
assert not list(evidence.complaints([call()]))
for wrong in (dict(bank_conflicts=1), dict(uncoalesced=2), dict(read_footprint=2000)):
    assert len(list(evidence.complaints([call(**wrong)]))) == 1, wrong
assert evidence.occupancy("sm_90", 256, 96, 0) == 0.25      # 20 warps fit by registers, 16 of them are whole blocks
assert evidence.occupancy("sm_80", 128, 64, 57344) == 0.125 and evidence.occupancy("sm_90", 1024, 32, 0) == 1
assert evidence.without_parameters("void f<a::b<float, 2>, (int)3>(long, float*)") == "f<a::b<float, 2>, (int)3>"
END
