# slow_processors.sh - processors.sh with the cases of AVX2, too.
every=1
. "$(dirname "$0")/processors.sh"
