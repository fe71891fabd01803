"""Contact sheets: what a model makes, beside what it was given and what the renderer would have made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL

from .autoencoder import load_vae
from .data import Shard, list_shards, open_pictures
from .latent_cache import encode, squash
from .model import TinyUso
from .precision import autocast
from .sampling import sample
from .world import write_prompt

MODES = ("text", "subject", "style", "both", "layout")
_GAP, _CAPTION, _GREY = 2, 14, 245


class Studio:
    """Makes pictures with a model and its VAE from the held-out records."""

    def __init__(self, model: TinyUso, run: Path) -> None:
        self.model, self.vae = model, load_vae(run).to(model.device)
        self.shard: Shard = list_shards(run / "records", "held_out")[0]
        kinds = ("target", "plain", "content", "style")
        self.pictures = {kind: open_pictures(run / "records", self.shard, kind) for kind in kinds}

    def prompts(self, mode: str, numbers: Sequence[int]) -> list[str]:
        """The words a mode is asked with; text mode names the technique, the others leave it to the style image."""
        rng = np.random.default_rng(99)
        records = [self.shard.record(number) for number in numbers]
        if mode == "layout":
            return [""] * len(records)
        detail = 0.0 if mode in ("subject", "both") else 1.0
        return [write_prompt(rng, r.target, r.style if mode == "text" else None, detail) for r in records]

    def make(
        self, mode: str, numbers: Sequence[int], prompts: list[str] | None = None, batch: int = 32, **options: float
    ) -> np.ndarray:
        """uint8 (N, 128, 128, 3)."""
        prompts = self.prompts(mode, numbers) if prompts is None else prompts
        results = []
        for start in range(0, len(numbers), batch):
            part = list(numbers[start : start + batch])
            reference = style = None
            if mode in ("subject", "both", "layout"):
                kind = "plain" if mode == "layout" else "content"
                reference = self.normalised(self.pictures[kind][part])
            if mode in ("style", "both", "layout"):
                style = torch.from_numpy(squash(self.pictures["style"][part]))[:, None]
            latents = sample(self.model, prompts[start : start + batch], reference=reference, style=style, seed=start,
                             **options)  # type: ignore[arg-type]  # fmt: skip
            results.append(self.decode(latents))
        return np.concatenate(results)

    def normalised(self, pictures: np.ndarray) -> torch.Tensor:
        """Pictures uint8 (B, H, W, 3) to normalised latents."""
        config = self.vae.config
        return (encode(self.vae, pictures, self.model.device.type) - config.shift_factor) * config.scaling_factor

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Normalised latents to uint8 (B, H, W, 3)."""
        return decode(self.vae, latents)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """Normalised latents (B, 16, h, w) to uint8 (B, H, W, 3)."""
    with autocast(latents.device.type):
        pixels = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    levels = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def row(cells: Sequence[np.ndarray | None], caption: str) -> np.ndarray:
    """Pictures side by side under a caption; None is an empty cell."""
    empty = np.full((128, 128, 3), _GREY, np.uint8)
    edge = ((_GAP, _GAP), (_GAP, _GAP), (0, 0))
    filled = [np.pad(empty if cell is None else cell, edge, constant_values=_GREY) for cell in cells]
    strip = np.concatenate(filled, 1)
    head = np.full((_CAPTION, strip.shape[1], 3), _GREY, np.uint8)
    cv2.putText(head, caption, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (20, 20, 20), 1, cv2.LINE_AA)
    return np.concatenate([head, strip])


def save_sheet(path: Path, rows: list[np.ndarray], columns: int) -> None:
    """Rows of one width in `columns` columns."""
    per_column = -(-len(rows) // columns)
    rows = rows + [np.full_like(rows[0], _GREY)] * (per_column * columns - len(rows))
    parts = [np.concatenate(rows[i * per_column : (i + 1) * per_column]) for i in range(columns)]
    cv2.imwrite(str(path), np.concatenate(parts, 1)[..., ::-1])


def mode_rows(
    studio: Studio, mode: str, numbers: Sequence[int], made: np.ndarray, prompts: list[str]
) -> list[np.ndarray]:
    """One row per picture: content, style image, result, the renderer's truth."""
    rows = []
    for number, picture, prompt in zip(numbers, made, prompts, strict=True):
        content = {"subject": "content", "both": "content", "layout": "plain"}.get(mode)
        cells = [
            studio.pictures[content][number] if content else None,
            studio.pictures["style"][number] if mode in ("style", "both", "layout") else None,
            picture,
            studio.pictures["plain" if mode == "subject" else "target"][number],
        ]
        rows.append(row(cells, f"{mode}: {prompt or '(empty prompt)'}"))
    return rows


def progress_sheet(model: TinyUso, run: Path, path: Path, each: int = 4) -> None:
    """A small sheet of all modes, the same records every time."""
    studio, rows = Studio(model, run), []
    for mode in MODES:
        prompts = studio.prompts(mode, range(each))
        rows += mode_rows(studio, mode, range(each), studio.make(mode, range(each), prompts), prompts)
    save_sheet(path, rows, columns=len(MODES))
