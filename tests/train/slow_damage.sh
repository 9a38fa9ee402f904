# slow_damage.sh - damage.sh with more bits and lengths, and training from each.
every=1
. "$(dirname "$0")/damage.sh"
