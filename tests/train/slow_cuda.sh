# slow_cuda.sh - cuda.sh with three models and up to four ranks.
every=1
. "$(dirname "$0")/cuda.sh"
