"""Runs a Space's own app.py, as the platform does, with the device API of these tests.

python -m tests.deploy.space_page FOLDER FILE: the API's calls are kept in FILE.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from tests.deploy.device_api import DeviceAPI


def main() -> None:
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    api = DeviceAPI()
    os.environ |= {"SPACES_ZERO_GPU": "1", "SPACES_ZERO_DEVICE_API_URL": api.url}
    sys.modules["torch"] = None  # type: ignore[assignment]  # no emulation of CUDA: see space_program.py
    import spaces  # noqa: F401
    from spaces.zero import utils

    utils.self_cgroup_device_path = lambda: "/"  # type: ignore[attr-defined]
    del sys.modules["torch"]

    def tell() -> None:
        while True:
            file.with_suffix(".new").write_text(json.dumps(api.calls))
            os.replace(file.with_suffix(".new"), file)
            threading.Event().wait(0.2)

    threading.Thread(target=tell, daemon=True).start()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "app.py"), run_name="__main__")


if __name__ == "__main__":
    threading.Timer(400, os.killpg, (0, signal.SIGKILL)).start()
    main()
