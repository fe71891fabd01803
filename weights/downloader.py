"""Fetches a model's weights: python weights/downloader.py --variant flux-dev [--dry-run]. See `catalog/download.py`.

With --doctor it says what is there, what is missing and what to do instead. See `runtime/doctor.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    # A process of its own finds the package from any working directory, which `.env` and relative paths refer to.
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    arguments = [argument for argument in sys.argv[1:] if argument != "--doctor"]
    module = "uso_core.catalog" if arguments == sys.argv[1:] else "uso_core.runtime.doctor"
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": search}
    if os.name == "posix":
        os.execve(sys.executable, command, environment)  # signals reach it, its exit code is ours
    sys.exit(subprocess.call(command, env=environment))
