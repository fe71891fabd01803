"""Offers words that the embedded model knows, and names those of a prompt that it does not, while they are typed.

It reads whole words from a short list, so the browser can compare; larger models read any word.
"""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape

from uso_core.catalog.models import EMBEDDED_FILES, Model
from uso_core.settings import ROOT
from uso_core.ui.language import say

MARK = "▁"  # before each word of the vocabulary
OFFERED = (
    "cat", "mug", "house", "tree", "fish", "car", "robot", "flower", "boat", "rocket", "clock", "mushroom",
    "beach", "forest", "city", "desert", "snow", "underwater", "room", "space",
)  # fmt: skip


def html(model: Model) -> str:
    """One line, so that nothing moves; empty for a model that reads any word."""
    known = vocabulary(model)
    if not known:
        return ""
    offered = "".join(f'<button type="button">{escape(word)}</button>' for word in OFFERED)
    unknown, knows = escape(say("typed_unknown")), escape(say("known_words"))
    words = escape(" ".join(sorted(known)))
    return f'<p data-words="{words}"><span role="status" hidden>{unknown} <b></b></span> {knows} {offered}</p>'


@lru_cache
def vocabulary(model: Model) -> frozenset[str]:
    """The words of a model whose tokenizer has a short list of them; empty for others."""
    if model.folder is None:
        return frozenset()
    path = ROOT / "weights" / model.folder / EMBEDDED_FILES["t5"] / "tokenizer.json"
    try:
        pieces = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError):
        return frozenset()
    return frozenset(piece[1:] for piece, _ in pieces if piece.startswith(MARK) and len(piece) > 1)
