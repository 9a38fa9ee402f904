# slow_signals.sh - signals.sh with every signal and moment.
every=1
. "$(dirname "$0")/signals.sh"
