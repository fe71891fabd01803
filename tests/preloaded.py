"""What forks of the app share: everything that it imports sooner or later. Nothing of it starts a thread."""

from __future__ import annotations

import os

from uso_core.runtime.startup import gc_paused

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # as app.py does, before Gradio is imported
with gc_paused():
    import app  # noqa: F401
    import uso_core.runtime.generate
    import uso_core.runtime.load
    import uso_core.runtime.worker
    import uso_core.ui  # noqa: F401
