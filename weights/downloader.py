"""Fetches a model's weights: python weights/downloader.py --variant flux-dev [--dry-run]. See `catalog/download.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    # A process of its own finds the package from any working directory, which `.env` and relative paths refer to.
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "uso_core.catalog.download", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": search}
    if os.name == "posix":
        os.execve(sys.executable, command, environment)  # signals reach it, its exit code is ours
    sys.exit(subprocess.call(command, env=environment))
