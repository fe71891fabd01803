"""Loads a model under ZeroGPU's emulation of CUDA, in a process of its own; prints what is then known as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import torch

from tests.deploy.device_api import DeviceAPI

API = DeviceAPI()
os.environ |= {"SPACES_ZERO_GPU": "1", "SPACES_ZERO_DEVICE_API_URL": API.url, "OMP_NUM_THREADS": "1"}
torch.version.cuda = "13.0"
torch._C._cuda_init = lambda: None  # type: ignore[attr-defined]
torch.cuda._is_in_bad_fork = bool  # type: ignore[attr-defined]  # False, and travels to another process
from uso_core.catalog.models import get_model  # noqa: E402
from uso_core.runtime.executors.zerogpu import ZeroGPUExecutor  # noqa: E402
from uso_core.settings import Settings  # noqa: E402


def main() -> None:
    executor = ZeroGPUExecutor(Settings(name="uso-tiny", device="cuda", vram_limit=44.0, compile="off"))
    executor.load(get_model("uso-tiny"))
    pipeline = executor._worker.loaded.pipeline
    devices = {
        parameter.device.type
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for parameter in part.parameters()
    }
    with ThreadPoolExecutor(1) as pool:  # such as one of the page's
        (state,) = pool.submit(executor.state).result()
    assert state is not None
    told = {"device": state.device, "dtype": state.dtype, "devices": sorted(devices),
            "initialized": torch.cuda.is_initialized()}  # fmt: skip
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    threading.Timer(400, os.killpg, (0, signal.SIGKILL)).start()
    try:
        main()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os.killpg(0, signal.SIGKILL)
