"""A quick start: imports large libraries while the garbage collector is paused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pauses garbage collection for imports, whose hundreds of thousands of objects stay: scanning them repeatedly
    takes a quarter of PyTorch's and diffusers' import time. Later collections do not scan them either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
