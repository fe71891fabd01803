"""Names of images in workflows: bare file names, and the hashes that our own export notes beside them."""

from __future__ import annotations

import re
from typing import Any

MAX_NAME_CHARACTERS = 255
IMAGE_NAME, IMAGE_SHA256 = "uso_image", "uso_sha256"  # in a node's properties, or in its _meta
SHA256 = re.compile("[0-9a-f]{64}")


def file_name(text: str) -> str | None:
    """The last component of a file name, without the "[output]" that ComfyUI may append; None if there is none."""
    name = re.split(r"[\\/]", text[-4096:].strip())[-1]
    for folder in ("input", "output", "temp"):
        name = name.removesuffix(f"[{folder}]")
    name = "".join(c for c in name if c.isprintable()).strip()
    return name if name not in ("", ".", "..") and len(name) <= MAX_NAME_CHARACTERS else None


def noted_hash(holder: dict[str, Any]) -> tuple[str, str] | None:
    """The file name and sha256 of an image that our own export noted."""
    name, sha256 = holder.get(IMAGE_NAME), holder.get(IMAGE_SHA256)
    return (name, sha256) if isinstance(name, str) and isinstance(sha256, str) and SHA256.fullmatch(sha256) else None
