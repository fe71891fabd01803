"""Downloads as the page starts them: only if allowed, one at a time, stopped and failed with sentences."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.catalog.hub_server import HubServer
from tests.catalog.test_download import LORA, PROJECTOR, TOKEN, USO, content
from uso_core.catalog.hub import Hub
from uso_core.catalog.models import MODELS, Model
from uso_core.errors import DownloadError
from uso_core.messages import message
from uso_core.settings import Settings
from uso_core.ui import downloads as module
from uso_core.ui.downloads import Download, Downloads

LORA_BYTES = 60_000


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on loopback for `Downloads`, with the client's pieces small enough to count."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    huggingface_hub.close_session()
    with HubServer({USO: {LORA: content(LORA, LORA_BYTES), PROJECTOR: content(PROJECTOR)}}) as server:
        server.members.add(TOKEN)
        monkeypatch.setattr(module, "Hub", lambda token: Hub(token, endpoint=server.url))
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def model() -> Model:
    """A model of the two files in USO's repository."""
    files = tuple(row for row in MODELS["flux-dev"].files if row.repo == USO)
    return dataclasses.replace(MODELS["flux-dev"], name="two-files", files=files)


@pytest.fixture
def downloads(tmp_path: Path) -> Downloads:
    return Downloads(Settings(weights=str(tmp_path), allow_download=True))


def wait(downloads: Downloads, condition: Callable[[Download], bool]) -> Download:
    deadline = time.monotonic() + 240
    while downloads.now is None or not condition(downloads.now):
        assert time.monotonic() < deadline, downloads.now
        time.sleep(0.01)
    return downloads.now


def test_a_visitor_may_not_download_unless_the_owner_allows_it(model: Model, tmp_path: Path) -> None:
    downloads = Downloads(Settings(weights=str(tmp_path)))
    with pytest.raises(DownloadError, match="may not start downloads") as caught:
        downloads.start(model)
    assert "--allow-download" in caught.value.hint
    assert downloads.now is None


def test_everything_arrives_and_is_counted(hub: HubServer, model: Model, downloads: Downloads, tmp_path: Path) -> None:
    downloads.start(model)
    ended = wait(downloads, lambda now: not now.running)
    assert (ended.outcome, ended.failed) == (message("download_done", model="two-files"), False)
    assert ended.done == ended.total == LORA_BYTES + 300
    assert (tmp_path / "USO" / LORA).read_bytes() == content(LORA, LORA_BYTES)


def test_one_at_a_time_stopped_and_resumed(hub: HubServer, model: Model, downloads: Downloads, tmp_path: Path) -> None:
    hub.stall[LORA] = 5 * 4096
    downloads.start(model)
    now = wait(downloads, lambda now: now.done == 5 * 4096)
    assert now.total == LORA_BYTES + 300
    assert now.file == f"{USO}/{LORA}"
    with pytest.raises(DownloadError, match="two-files is already being downloaded"):
        downloads.start(model)
    downloads.cancel()
    assert downloads.now is not None
    assert downloads.now.stopping
    hub.release.set()
    ended = wait(downloads, lambda now: not now.running)
    assert ended.outcome == message("download_stopped")
    (part,) = tmp_path.rglob("*.part")
    kept = part.stat().st_size
    assert 5 * 4096 <= kept < LORA_BYTES
    hub.body_bytes.clear()
    downloads.start(model)
    assert wait(downloads, lambda now: not now.running).outcome == message("download_done", model="two-files")
    assert hub.body_bytes[LORA] == LORA_BYTES - kept


@pytest.mark.parametrize(
    ("token", "words"), [(None, "is gated and no token is set. Accept the licence"), ("hf_wrong", "does not accept")]
)
def test_a_refusal_arrives_as_a_sentence_without_the_token(
    hub: HubServer, model: Model, tmp_path: Path, token: str | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.gated.add(USO)
    downloads = Downloads(Settings(weights=str(tmp_path), allow_download=True, hf_token=token))
    downloads.start(model)
    ended = wait(downloads, lambda now: not now.running)
    assert ended.failed
    assert words in str(ended.outcome)
    assert "hf_" not in str(ended.outcome) + caplog.text
    assert not list(tmp_path.rglob("*.part"))
