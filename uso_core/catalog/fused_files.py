"""Where the fused cache keeps its files, their names, and how to delete them. No torch."""

from __future__ import annotations

from pathlib import Path

from uso_core.errors import WeightsError

PREFIX, WEIGHTS, MANIFEST, LOCK, PART = "transformer-", ".safetensors", ".json", ".lock", ".part"


def folder_in(weights: Path) -> Path:
    """The fused cache's folder inside a weights folder."""
    return weights / "prepared"


def remove(folder: Path) -> int:
    """Deletes every file of the fused cache in the folder, and nothing else; returns the bytes freed.

    A program that has one open keeps it until it ends. Raises `WeightsError` if a file cannot be deleted.
    """
    freed = 0
    for suffix in (MANIFEST, WEIGHTS, PART, LOCK):
        for path in sorted(folder.glob(f"{PREFIX}*{suffix}")):
            try:
                size = path.stat().st_size
                path.unlink(missing_ok=True)
            except OSError as error:
                raise WeightsError("fused_not_deletable", path=path, reason=error.strerror) from None
            freed += size
    return freed
