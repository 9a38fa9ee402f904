# slow_bf16.sh - bf16.sh with 200 steps, not 110.
every=1
. "$(dirname "$0")/bf16.sh"
