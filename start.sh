#!/bin/sh
# Starts the page in a browser; the first time it installs what that needs into .venv.
set -e
cd "$(dirname "$0")"
if [ ! -f .venv/.ready ]; then
  python=$(command -v python3 || command -v python) || { echo "Install Python 3.10 to 3.13 from python.org first." >&2; exit 2; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed." >&2; exit 2; }
  "$python" -m venv .venv
  .venv/bin/python -m pip install -r requirements.txt
  touch .venv/.ready
fi
exec .venv/bin/python app.py "$@"
