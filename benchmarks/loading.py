"""Time and memory for making the fused cache in fp8 from a full-size FLUX.1-dev file, and for the next start.

    python -m benchmarks.loading --folder DIR [--blocks DOUBLE SINGLE] [--dtype bfloat16] [--loras 2]

The file and its LoRA have FLUX.1-dev's real tensors but no content: holes in a sparse file read as zeros. Neither start
waits for disk reads: the first reads holes, the second what was just written. Prints JSON; deletes what it made.
The memory figures need Linux.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uso_core.loaders import keys
from uso_core.loaders.build import load_transformer
from uso_core.loaders.convert import finished
from uso_core.model.transformer import USOTransformer2DModel

FLUX_DEV = {"num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
            "joint_attention_dim": 4096, "pooled_projection_dim": 768, "in_channels": 64, "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56)}  # fmt: skip
LORA_RANK = 128
OTHER_RANK = 64  # of LoRAs beside USO's
LIMIT_SECONDS = 3600  # for one start
TOUCH_BYTES = 2**26  # bytes read at once when reading through a start's weights


def original_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of an original transformer file with this configuration."""
    with torch.device("meta"):
        model = USOTransformer2DModel(**config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        source = keys.original_name(name, keys.TRANSFORMER)
        rows = shapes.get(source, (0,))[0] + tensor.shape[0]  # several of our tensors stack to one original
        shapes[source] = (rows, *tensor.shape[1:])
    return shapes


def lora_shapes(config: dict[str, Any], rank: int) -> dict[str, tuple[int, ...]]:
    """The tensors of USO's LoRA for a transformer with this configuration."""
    with torch.device("meta"):
        model = USOTransformer2DModel(**config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        stem = keys.original_name(name, keys.LORA)
        if stem != name:
            rows = shapes.get(f"{stem}.up.weight", (0,))[0] + tensor.shape[0]
            shapes[f"{stem}.down.weight"] = (rank, tensor.shape[1])
            shapes[f"{stem}.up.weight"] = (rows, rank)
    return shapes


def other_lora_shapes(config: dict[str, Any], rank: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a LoRA in kohya's names for every matrix in the blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in original_shapes(config).items():
        if len(shape) == 2 and name.startswith(("double_blocks.", "single_blocks.")):
            flat = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            shapes |= {f"{flat}.lora_down.weight": (rank, shape[1]), f"{flat}.lora_up.weight": (shape[0], rank)}
    return shapes


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Writes a bf16 safetensors file that is only header and hole; returns its size in bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path.stat().st_size


def memory(entry: str) -> int:
    """Bytes of a line of /proc/self/status: VmRSS now resident, VmHWM its peak, RssAnon without mapped files."""
    found = re.search(rf"^{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found, entry
    return int(found[1]) * 1024


def one_start(transformer: Path, lora: Path, dtype: str, cache: Path, others: Sequence[Path] = ()) -> dict[str, float]:
    """Builds the transformer in this process, then reads every byte of it once, as a copy to a device would."""
    from optimum import quanto  # noqa: F401  (counted with the interpreter)

    before, anonymous, running = memory("VmRSS"), [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not running.wait(0.02):
            anonymous.append(memory("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    added = [(path, 0.5) for path in others]
    model = finished(load_transformer(transformer, lora, getattr(torch, dtype), fp8=True, cache=cache, others=added))
    built, peak = time.perf_counter(), memory("VmHWM")
    running.set()
    watcher.join()
    scratch = torch.empty(TOUCH_BYTES, dtype=torch.uint8)
    total = 0
    for tensor in model.state_dict().values():
        for some in tensor.reshape(-1).view(torch.uint8).split(TOUCH_BYTES):
            scratch[: len(some)].copy_(some)
        total += tensor.nbytes
    return {
        "interpreter_bytes": before,
        "peak_above_interpreter_bytes": peak - before,
        "peak_anonymous_above_interpreter_bytes": max(anonymous) - anonymous[0],
        "build_seconds": round(built - began, 2),
        "build_and_read_seconds": round(time.perf_counter() - began, 2),
        "weights_bytes": total,
    }


def start_in_a_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loading", "--start", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    if done.returncode:
        raise SystemExit(f"a start failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="on a disk with 20 GB to spare; default: the temporary folder")
    parser.add_argument("--blocks", type=int, nargs=2, default=(19, 38), help="double and single blocks, for a trial")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of what is not fp8")
    parser.add_argument("--loras", type=int, default=0, help="LoRAs beside USO's")
    parser.add_argument("--start", nargs="+", metavar="TRANSFORMER LORA CACHE OTHER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.start:
        transformer, lora, cache, *beside = map(Path, arguments.start)
        print(json.dumps(one_start(transformer, lora, arguments.dtype, cache, beside)))
        return
    config = FLUX_DEV | dict(zip(("num_layers", "num_single_layers"), arguments.blocks, strict=True))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        source = write_sparse(folder / "flux.safetensors", original_shapes(config))
        write_sparse(folder / "lora.safetensors", lora_shapes(config, LORA_RANK))
        others = [f"other-{number}.safetensors" for number in range(arguments.loras)]
        for other in others:
            write_sparse(folder / other, other_lora_shapes(config, OTHER_RANK))
        paths = [str(folder / part) for part in ("flux.safetensors", "lora.safetensors", "prepared", *others)]
        first, second = (start_in_a_process(*paths, "--dtype", arguments.dtype) for _ in range(2))
    times = {name: second[name] / first[name] for name in ("build_seconds", "build_and_read_seconds")}
    report = {
        "blocks": arguments.blocks,
        "loras": arguments.loras,
        "source_bytes": source,
        "first": first,
        "second": second,
        "second_over_first": {name: round(ratio, 4) for name, ratio in times.items()},
        "machine": {"cpus": os.cpu_count(), "torch": torch.__version__},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
