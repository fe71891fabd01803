"""What the parts of the page work with, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore
from uso_core.ui.downloads import Downloads
from uso_core.ui.run import Runs, Sessions
from uso_core.ui.temporary_files import PassingImages
from uso_core.ui.visitors import VISITORS, folder_name, visitor_of

MOST_STORES = 256  # visitors whose stores stay open; others' are reopened


@dataclass(frozen=True)
class Stores:
    """What is stored for one visitor, or for all."""

    history: History
    styles: StyleStore


@dataclass(frozen=True)
class Services:
    """The engine, the settings, what belongs to open pages, and access to what is stored."""

    engine: Engine
    settings: Settings
    passing: PassingImages
    sessions: Sessions
    runs: Runs
    downloads: Downloads
    _stores: Callable[[str], Stores]

    @classmethod
    def of(cls, engine: Engine, settings: Settings) -> Services:
        """The services for one engine, storing in the output folder of the settings."""

        @lru_cache(maxsize=MOST_STORES)
        def stores(visitor: str) -> Stores:
            folder = settings.output_folder
            if visitor:
                folder = folder / VISITORS / folder_name(visitor)
            history = History(folder, settings.history_images, settings.history_gb * 10**9)
            return Stores(history, StyleStore(folder / "styles"))

        return cls(engine, settings, PassingImages(), Sessions(), Runs(), Downloads(settings), stores)

    def visitor(self, request: Any, program: bool = False) -> str:
        """The visitor who asks, by a page or a program, for the queue and for what is stored."""
        return visitor_of(request, self.settings.separates, program)

    def stores(self, request: Any = None, program: bool = False) -> Stores:
        """What is stored for the visitor who asks; without a request, for all."""
        return self._stores(self.visitor(request, program))
