"""Components that show kept images where they lie; Gradio's own copy every file that they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uso_core.ui.inputs import WithoutStub


def in_place(kind: type[Any], folder: Path) -> type[Any]:
    """A class like Gradio's `kind` that does not copy what lies below `folder`, which Gradio may serve.

    A class for each folder: Gradio makes a component anew for each session, and passes on only its own arguments.
    """
    whole = folder.absolute()

    async def show(self: Any, source: str | Path | None) -> str | None:
        if source and (path := Path(source).absolute()).is_relative_to(whole):
            return str(path)
        copied: str | None = await kind.async_move_resource_to_block_cache(self, source)
        return copied

    own = {"async_move_resource_to_block_cache": show, "is_template": True, "__module__": __name__}
    return WithoutStub(kind.__name__, (kind,), own)
