"""What the parts of the page work with, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore
from uso_core.ui.downloads import Downloads
from uso_core.ui.run import Sessions
from uso_core.ui.temporary_files import PrivateImages


@dataclass(frozen=True)
class Services:
    """The engine, the settings, what is stored, and what belongs to open pages."""

    engine: Engine
    settings: Settings
    history: History
    styles: StyleStore
    private: PrivateImages
    sessions: Sessions
    downloads: Downloads

    @classmethod
    def of(cls, engine: Engine, settings: Settings) -> Services:
        """The services for one engine, storing in the output folder of the settings."""
        output = Path(settings.output)
        history = History(output, settings.history_images, settings.history_gb * 10**9)
        styles, downloads = StyleStore(output / "styles"), Downloads(settings)
        return cls(engine, settings, history, styles, PrivateImages(), Sessions(), downloads)
