"""The page on a Hugging Face Space: python app.py, started by the platform.

The model is loaded here, in the main thread, before the page is served: see `executors/zerogpu.py`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading

from uso_core.catalog.models import EMBEDDED, Model, get_model
from uso_core.errors import UsoError, exit_code
from uso_core.messages import Message, message
from uso_core.runtime.engine import Engine
from uso_core.runtime.executors.zerogpu import ZeroGPUExecutor
from uso_core.settings import Settings, load_settings

log = logging.getLogger(__name__)

MODEL = "flux-dev"
# A large GPU of ZeroGPU has 48 GB, though the emulated one shows the whole card's; above 45.1 GB of weights the
# platform takes a double one, at twice the visitor's quota. There is no room on the disk for a fused copy.
SPACE = {"host": "0.0.0.0", "allow_host": "*.hf.space", "vram_limit": 44.0, "compile": "off", "fused_cache": False}


def main() -> None:
    """Fetches and loads the model, then serves the page until the platform ends it."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    settings = chosen()
    executor = ZeroGPUExecutor(settings)  # before PyTorch is imported
    model, reason = provide(settings)
    executor.load(model)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from uso_core import ui

    settings = dataclasses.replace(settings, name=model.name)
    engine = Engine(settings, executor, reason)
    page = ui.build(engine, settings)
    ui.launch(page, engine, settings)
    threading.Event().wait()


def chosen() -> Settings:
    """The Space's settings, but for those that its owner has set; its own address is answered beside theirs."""
    given, usual = load_settings(), Settings()
    unset = {name: value for name, value in SPACE.items() if getattr(given, name) == getattr(usual, name)}
    hosts = ",".join(filter(None, (str(SPACE["allow_host"]), given.allow_host)))
    return load_settings({**unset, "allow_host": hosts})


def provide(settings: Settings) -> tuple[Model, Message | None]:
    """FLUX.1-dev, its files fetched into the Hugging Face cache; else the embedded model and how to get the other."""
    model = get_model(settings.name or MODEL)
    if model.folder is not None:
        return model, None
    if settings.hf_token is None:
        return get_model(EMBEDDED), message("reason_space_no_token")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    for row in model.files:
        try:
            snapshot_download(row.repo, allow_patterns=list(row.patterns), token=settings.hf_token)
        except (HfHubHTTPError, OSError) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            log.warning("%s: %s", row.repo, reason)
            return get_model(EMBEDDED), message("reason_space_denied", repo=row.repo, reason=reason)
    return model, None


if __name__ == "__main__":
    try:
        main()
    except UsoError as error:
        sys.exit(exit_code(error))
