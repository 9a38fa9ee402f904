# slow_cuda_orders.sh - cuda_orders.sh with threads running backward, too.
every=1
. "$(dirname "$0")/cuda_orders.sh"
