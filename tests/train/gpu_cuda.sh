# gpu_cuda.sh - cuda.sh on a GPU, where there is one: training follows the processor's, checkpoints move, ranks agree.
export MUSTER_GPU=$MUSTER
. "$(dirname "$0")/cuda.sh"
