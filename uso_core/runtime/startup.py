"""A quick start: large libraries are imported without the garbage collector looking on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """For imports, whose hundreds of thousands of objects stay: going through them again and again takes a quarter of
    PyTorch's and diffusers' time. Afterwards no later collection goes through them either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
