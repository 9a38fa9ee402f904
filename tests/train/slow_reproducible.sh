# slow_reproducible.sh - reproducible.sh with every split of the batch.
every=1
. "$(dirname "$0")/reproducible.sh"
