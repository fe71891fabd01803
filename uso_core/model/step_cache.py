"""Skips most of a step if its first block shows that little has changed since the last fully computed step.

The first-block cache is ParaAttention's idea (github.com/chengzeyi/ParaAttention). It changes images, so it is off by
default. Only the target's tokens count: text and references hardly move and would hide changes.
Letters: B batch, S target tokens, D width.
"""

from __future__ import annotations

import torch

THRESHOLD = 0.1  # relative change of the first block's contribution
WARM_UP = 4  # first steps, always computed: they decide the composition
LAST = 2  # last steps, always computed: they decide the detail
MOST_HITS = 2  # in a row


class StepCache:
    """State of one image's denoising; `computed` and `reused` count its steps."""

    def __init__(self, steps: int, threshold: float = THRESHOLD) -> None:
        self.steps, self.threshold = steps, threshold
        self.computed = self.reused = self._in_a_row = 0
        self._added: torch.Tensor | None = None  # by the first block in the last computed step (B, S, D)
        self._rest: torch.Tensor | None = None  # by all other blocks in that step
        self._first: torch.Tensor | None = None  # the first block's output in this step
        self._reusing = False

    def hit(self, after: torch.Tensor, before: torch.Tensor) -> bool:
        """Whether this step may be skipped: compares the target's tokens after and before the first block (B, S, D)."""
        step = self.computed + self.reused
        added = after - before
        self._first = after
        self._reusing = (
            self._added is not None
            and WARM_UP <= step < self.steps - LAST
            and self._in_a_row < MOST_HITS
            and bool((added - self._added).abs().mean() < self.threshold * self._added.abs().mean())
        )
        if not self._reusing:
            self._added = added
        return self._reusing

    def reuse(self) -> torch.Tensor:
        """An estimate of the last block's output: (B, S, D). Only after a `hit`."""
        if self._first is None or self._rest is None:
            raise ValueError("there is nothing to reuse before a hit")
        return self._first + self._rest

    def keep(self, last: torch.Tensor) -> None:
        """Ends a step: `last` is the target's tokens after the last block, or the result of `reuse`."""
        if self._reusing:
            self.reused += 1
            self._in_a_row += 1
            return
        if self._first is not None:
            self._rest = last - self._first
        self.computed += 1
        self._in_a_row = 0
