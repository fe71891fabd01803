"""The page: python app.py [--name NAME] [--device D] [--offload] [--port 7860] [--host 127.0.0.1]"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from uso_core.errors import UsageError, UsoError, exit_code
from uso_core.runtime.engine import Engine
from uso_core.runtime.startup import gc_paused
from uso_core.settings import Parser, add_arguments, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit code (2: something the user can fix)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = Parser(prog="app.py", description=__doc__)
    names = (
        "name", "device", "dtype", "offload", "vram_limit", "compile", "host", "port", "weights", "output",
        "allow_switch", "allow_download", "mcp",
    )  # fmt: skip
    add_arguments(parser, *names)
    try:
        args = parser.parse_args(argv)
        settings = load_settings({name: getattr(args, name) for name in names})
        engine = Engine(settings)
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported: no look-ups
        with gc_paused():
            from uso_core import ui
        ui.launch(ui.build(engine, settings), settings)
    except UsoError as error:
        return exit_code(error)
    except OSError as error:  # Gradio's error if the port is taken
        return exit_code(UsageError("port", reason=error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
