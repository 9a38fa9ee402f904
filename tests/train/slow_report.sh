# slow_report.sh - report.sh with a large run, and the pages in Chromium.
every=1
. "$(dirname "$0")/report.sh"
