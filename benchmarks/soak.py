"""Many clients, many images, many kills: what a server loses (nothing), and how much it grows. Loopback only.

    python -m benchmarks.soak clients --count 200     each gets its own image, in its order; the last is accepted soon
    python -m benchmarks.soak waiting --count 1000    memory of requests that wait with a 12-megapixel image each
    python -m benchmarks.soak images --count 500      memory, files and threads after so many images in a row
    python -m benchmarks.soak kills --count 100       kill -9 at random moments; history and styles afterwards
    python -m benchmarks.soak calls --count 3000      mutated calls of every endpoint: a sentence each, never a bare 500

Each is limited in count and time, ends by itself, and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from uso_core.errors import UsoError
from uso_core.settings import ROOT
from uso_core.storage.history import History
from uso_core.storage.png import read_request
from uso_core.storage.styles import StyleStore
from uso_core.ui.api import ANSWER_SECONDS as KEPT_SECONDS

SMALL = {"width": 64, "height": 64, "steps": 1}
ANSWER_SECONDS = 1800.0
PROMPTS = 40  # different ones: the cache of encodings, bounded in bytes, is full of them early
LONGEST_REPLY = 20_000  # characters; what was sent is never quoted at length
# Values that callers get wrong, or send on purpose.
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, "9" * 10**5, [], [1], {}, {"path": "/etc/passwd"}, "\ud800", "<img src=x>", 1e308, "",
    {"url": "http://127.0.0.1:1/a.png"}, "data:image/png;base64,AAAA", "../../.env", "\0", float("nan"), -(2**63),
    {"path": 7, "meta": {"_type": "gradio.FileData"}}, {"url": "file:///etc/passwd"}, [[[[[[]]]]]],
)  # fmt: skip
ENDPOINTS: dict[str, tuple[str, ...]] = {
    "generate": ("prompt", "content", "style_1", "width", "height", "steps", "seed", "images", "guidance", "schedule",
                 "model", "fast", "style_1_strength", "private", "unknown"),
    "grid": ("across", "down", "prompt", "style_1", "width", "steps", "seed", "private", "unknown"),
    "settings_from_image": ("image", "unknown"),
    "models": ("unknown",),
}  # fmt: skip


@contextmanager
def server(folder: Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A page on a free port of this machine, with its own folders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--name", "uso-tiny", "--device", "cpu", "--port", str(port)]
    command += ["--output", str(folder / "output")]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1", **variables}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/gradio_api/info", timeout=5, trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url, process
    finally:
        process.kill()
        process.wait()


def ask(url: str, **values: Any) -> str:
    reply = httpx.post(f"{url}/gradio_api/call/v2/generate", json=values, timeout=120, trust_env=False)
    reply.raise_for_status()
    return f"{url}/gradio_api/call/generate/{reply.json()['event_id']}"


def answer(address: str) -> list[Any]:
    """The last event's data; raises `RuntimeError` for an error."""
    words = httpx.get(address, timeout=ANSWER_SECONDS, trust_env=False).text
    kind = words.rpartition("event: ")[2].partition("\n")[0]
    if kind != "complete":
        raise RuntimeError(words[-500:])
    return json.loads(words.rpartition("data: ")[2])


def resident(pid: int) -> float:
    """Megabytes of memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def state(pid: int, folder: Path) -> dict[str, float]:
    files = sum(path.is_file() for path in (folder / "cache").rglob("*"))
    return {
        "megabytes": round(resident(pid), 1),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "temporary files": files,
    }


def clients(count: int, folder: Path) -> dict[str, Any]:
    """Each client requests one image with the same seed and its own prompt, all at once."""
    accepted: list[float] = []

    def one(number: int) -> bool:
        began = time.monotonic()
        address = ask(url, prompt=f"client {number}", seed=7, **SMALL)
        accepted.append(time.monotonic() - began)
        (image,), *_ = answer(address)
        path = folder / f"{number}.png"
        path.write_bytes(httpx.get(image["url"], timeout=60, trust_env=False).content)
        return read_request(path).prompt == f"client {number}"

    with server(folder, USO_MAX_WAITING="5000") as (url, _), ThreadPoolExecutor(count) as pool:
        answer(ask(url, prompt="first", **SMALL))
        began = time.monotonic()
        own = list(pool.map(one, range(count)))
        kept = len(list((folder / "output").glob("*.png")))
    return {
        "clients": count, "got their own": sum(own), "kept": kept - 1,
        "seconds until accepted (median, most)": [round(statistics.median(accepted), 2), round(max(accepted), 2)],
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def waiting(count: int, folder: Path) -> dict[str, Any]:
    """Requests that wait behind a long one, each with an image from its own file."""
    levels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    large = Image.fromarray(levels).resize((4000, 3000))
    large.save(folder / "large.jpg", quality=80)
    with server(folder, USO_MAX_WAITING="5000") as (url, process):
        answer(ask(url, prompt="first", **SMALL))
        with (folder / "large.jpg").open("rb") as file:
            upload = httpx.post(f"{url}/gradio_api/upload", files={"files": file}, timeout=60, trust_env=False)
        given = {"path": upload.json()[0], "meta": {"_type": "gradio.FileData"}}
        ask(url, prompt="long", width=256, height=256, steps=500, images=8)
        idle = resident(process.pid)
        for number in range(count):
            ask(url, prompt=str(number), content=given, **SMALL)
        time.sleep(20)  # the last of them are read
        grown = resident(process.pid) - idle
    return {"requests": count, "megabytes above idle": round(grown)}


def images(count: int, folder: Path) -> dict[str, Any]:
    """Makes images in a row from one client; compares the state after the first tenth with the end."""
    with server(folder) as (url, process):
        after = {}
        for number in range(count):
            answer(ask(url, prompt=f"image {number % PROMPTS}", **SMALL))
            if number + 1 in (count // 10, count):
                time.sleep(KEPT_SECONDS + 5)  # until what the answers need is gone
                after[number + 1] = state(process.pid, folder)
    return {"after": after}


def kills(count: int, folder: Path) -> dict[str, Any]:
    """Kills the server at random moments while it makes images; everything it reported must be there afterwards."""
    chance, told, output = random.Random(0), 0, folder / "output"
    for _ in range(count):
        with server(folder) as (url, process):
            done: list[str] = []

            def work(url: str = url, done: list[str] = done) -> None:
                try:
                    while True:
                        answer(ask(url, prompt="a", **SMALL))
                        done.append("image")
                except (httpx.HTTPError, RuntimeError, ValueError):
                    pass

            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(chance.uniform(0.5, 8.0))
            process.kill()
            thread.join(60)
            told += len(done)
    history = History(output, 10**6, 10**12)
    entries = history.entries()
    unreadable = 0
    for entry in entries:
        try:
            history.restore(entry.path)
        except UsoError:
            unreadable += 1
    StyleStore(output / "styles").entries()
    left = [path.name for path in output.rglob("*.part")]
    return {"kills": count, "told": told, "kept": len(entries), "unreadable": unreadable, "left behind": left}


def mutated(chance: random.Random) -> tuple[str, bytes]:
    """A call that is wrong somewhere: the path below /gradio_api, and a JSON body (now and then none at all)."""
    name = chance.choices(tuple(ENDPOINTS), (8, 3, 3, 1))[0]
    known = ENDPOINTS[name]
    values = {each: chance.choice(STRANGE) for each in chance.sample(known, min(len(known), chance.randint(0, 3)))}
    if name in ("generate", "grid"):
        values = {**SMALL, **({"across": "guidance=2, 4"} if name == "grid" else {}), **values}
    if chance.random() < 0.2:  # by position, as gradio_client and older programs call
        body = json.dumps({"data": [chance.choice(STRANGE) for _ in range(chance.randint(0, 4))]}).encode()
        path = f"call/{name}"
    else:
        body, path = json.dumps(values).encode(), f"call/v2/{name}"
    if chance.random() < 0.1:
        body = chance.choice((body[:-1], b"", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 10**4))
    return path, body


def call(url: str, folder: Path, path: str, body: bytes) -> str:
    """What is wrong with the answer to such a call; "" where it is a result or a sentence without the folder in it."""
    kind = {"content-type": "application/json"}
    reply = httpx.post(f"{url}/gradio_api/{path}", content=body, headers=kind, timeout=120, trust_env=False)
    words = reply.text
    if reply.status_code == 200 and "event_id" in reply.json():
        name = path.rpartition("/")[2]
        address = f"{url}/gradio_api/call/{name}/{reply.json()['event_id']}"
        words = httpx.get(address, timeout=ANSWER_SECONDS, trust_env=False).text
        if "event: complete" not in words and '"error": "' not in words:
            return f"no sentence: {words[-300:]}"
    elif reply.status_code >= 500:
        return f"{reply.status_code}: {words[:300]}"
    if len(words) > LONGEST_REPLY:
        return f"{len(words)} characters: {words[:100]}"
    refusal = "" if "event: complete" in words else words  # results do tell where their files lie
    return next((f"{bad}: {words[-300:]}" for bad in ("Traceback", str(folder)) if bad in refusal), "")


def calls(count: int, folder: Path) -> dict[str, Any]:
    """Mutated calls of every endpoint, four at a time; afterwards an image is made as before."""
    chance = random.Random(4)
    with server(folder) as (url, process), ThreadPoolExecutor(4) as pool:
        answer(ask(url, prompt="first", **SMALL))
        made = [mutated(chance) for _ in range(count)]
        wrong = [f"{path} {body[:200]!r} {what}" for (path, body), what in
                 zip(made, pool.map(lambda each: call(url, folder, *each), made), strict=True) if what]  # fmt: skip
        answer(ask(url, prompt="last", **SMALL))
        return {"calls": count, "without a sentence": len(wrong), "such as": wrong[:5], **state(process.pid, folder)}


RUNS = {run.__name__: run for run in (clients, waiting, images, kills, calls)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({arguments.run: RUNS[arguments.run](arguments.count, Path(folder))}, indent=1))


if __name__ == "__main__":
    main()
