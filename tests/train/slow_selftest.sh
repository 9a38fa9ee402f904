# slow_selftest.sh - selftest.sh with every check broken.
every=1
. "$(dirname "$0")/selftest.sh"
