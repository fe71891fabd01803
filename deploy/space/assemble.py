"""Assembles a Space's folder from this repository: python -m deploy.space.assemble [build/space]"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from uso_core.settings import ROOT

HERE = Path(__file__).parent
OWN = ("app.py", "README.md", "requirements.txt")  # in the place of the repository's
FOLDERS = ("uso_core", "examples", "weights/uso-tiny")
FILES = ("LICENSE", "weights/downloader.py")


def assemble(folder: Path) -> Path:
    """Writes the folder anew and returns it; a folder that holds something else is left alone (`FileExistsError`)."""
    if folder.exists():
        if not (folder / "uso_core").is_dir() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} holds something else")
        shutil.rmtree(folder)
    leave_out = shutil.ignore_patterns("__pycache__", "*.part", ".*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / name)
    for name in OWN:
        shutil.copyfile(HERE / name, folder / name)
    return folder


if __name__ == "__main__":
    print(assemble(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "space")))
