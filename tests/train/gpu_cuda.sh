# gpu_cuda.sh - cuda.sh on a GPU, if there is one: training agrees with the CPU, checkpoints move, ranks agree.
export MUSTER_GPU=$MUSTER
. "$(dirname "$0")/cuda.sh"
