"""Uploads the Space: python deploy/space/publish.py OWNER/NAME [--token TOKEN]

A snapshot is uploaded, never the repository's history: the Hub refuses pushes whose history holds large files. Files of
the Space that the snapshot lacks are deleted there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Assembles, creates the Space if there is none, uploads; returns the exit code."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", metavar="OWNER/NAME")
    parser.add_argument("--token", help="with write access; default: the one of `hf auth login`")
    arguments = parser.parse_args()
    folder = ROOT / "build" / "space"
    subprocess.run([sys.executable, "-m", "deploy.space.assemble", str(folder)], cwd=ROOT, check=True)
    api = HfApi(token=arguments.token)
    try:
        api.create_repo(arguments.repo, repo_type="space", space_sdk="gradio", exist_ok=True)
        done = api.upload_folder(
            repo_id=arguments.repo, repo_type="space", folder_path=folder, delete_patterns="*",
            commit_message="Snapshot of USO",
        )  # fmt: skip
    except (HfHubHTTPError, ValueError) as error:
        print(f"error: the Space {arguments.repo} was not uploaded: {error}", file=sys.stderr)
        print("hint: give OWNER/NAME and a token with write access (`hf auth login`)", file=sys.stderr)
        return 2
    print(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
