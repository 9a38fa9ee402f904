# slow_ranks_fp64.sh - ranks_fp64.sh with every number of ranks, ep and micro-batches.
every=1
. "$(dirname "$0")/ranks_fp64.sh"
