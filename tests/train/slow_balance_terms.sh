# slow_balance_terms.sh - balance_terms.sh with every term on every split.
every=1
. "$(dirname "$0")/balance_terms.sh"
