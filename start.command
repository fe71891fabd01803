#!/bin/sh
# For a double click in Finder: the same as start.sh.
exec "$(dirname "$0")/start.sh" "$@"
