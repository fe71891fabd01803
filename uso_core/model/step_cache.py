"""Leaving out most of a step whose first block says that little has changed since the last one computed in full.

The idea of a first-block cache is that of ParaAttention (github.com/chengzeyi/ParaAttention). It changes images,
so it is off unless asked for. Only the target's tokens count: text and references hardly move, and would hide it.
Letters: B batch, S target tokens, D width.
"""

from __future__ import annotations

import torch

THRESHOLD = 0.1  # of the relative change of what the first block adds
WARM_UP = 4  # steps in the beginning that are always computed: they decide the composition
LAST = 2  # steps in the end that are always computed: they decide the detail
MOST_HITS = 2  # in a row


class StepCache:
    """The memory of one image's denoising; `computed` and `reused` count its steps."""

    def __init__(self, steps: int, threshold: float = THRESHOLD) -> None:
        self.steps, self.threshold = steps, threshold
        self.computed = self.reused = self._in_a_row = 0
        self._added: torch.Tensor | None = None  # by the first block, in the last step computed (B, S, D)
        self._rest: torch.Tensor | None = None  # by all other blocks, then
        self._first: torch.Tensor | None = None  # the first block's output, now
        self._reusing = False

    def hit(self, after: torch.Tensor, before: torch.Tensor) -> bool:
        """Whether this step may be left out, from the target's tokens after and before the first block (B, S, D)."""
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
        """What the last block would give, about: (B, S, D). Only after a `hit`."""
        if self._first is None or self._rest is None:
            raise ValueError("there is nothing to reuse before a hit")
        return self._first + self._rest

    def keep(self, last: torch.Tensor) -> None:
        """Ends a step: `last` is the target's tokens after the last block, or those of `reuse`."""
        if self._reusing:
            self.reused += 1
            self._in_a_row += 1
            return
        if self._first is not None:
            self._rest = last - self._first
        self.computed += 1
        self._in_a_row = 0
