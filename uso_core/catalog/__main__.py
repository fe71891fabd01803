"""The downloader, after `.env` has set what the Hugging Face client reads from the environment when it is imported."""

from __future__ import annotations

import contextlib
import sys

from uso_core.errors import SettingsError
from uso_core.settings import share_dotenv

if __name__ == "__main__":
    with contextlib.suppress(SettingsError):  # told by the downloader
        share_dotenv()
    from uso_core.catalog.download import main

    sys.exit(main())
