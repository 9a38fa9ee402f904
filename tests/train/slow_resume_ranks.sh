# slow_resume_ranks.sh - resume_ranks.sh with every pair of numbers of ranks.
every=1
. "$(dirname "$0")/resume_ranks.sh"
