# slow_ranks_fp32.sh - ranks_fp32.sh with every number of ranks, ep and micro-batches.
every=1
. "$(dirname "$0")/ranks_fp32.sh"
