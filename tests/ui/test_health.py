"""What watchers read: alive, ready with the reason if not, and numbers that follow what happens."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Served, serve
from uso_core.catalog.models import get_model
from uso_core.errors import SettingsError
from uso_core.messages import message
from uso_core.runtime.engine import Status
from uso_core.runtime.executors import WorkerState
from uso_core.settings import Settings
from uso_core.ui import text
from uso_core.ui.health import require_metrics
from uso_core.ui.language import say

FLAGS = ("--metrics", "--auth", "ann:secret")


def asked(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=240) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def numbers(url: str) -> dict[tuple[str, ...], float]:
    status, text = asked(f"{url}/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples  # whose labels are sorted by name
    }


def test_it_is_alive_and_ready_without_a_login(served: Served) -> None:
    assert asked(f"{served.url}/healthz") == (200, "ok\n")
    status, text = asked(f"{served.url}/readyz")
    assert status == 200
    assert json.loads(text) == {
        "ready": True, "model": "uso-tiny", "waiting": 0, "running": 0, "workers": [{"place": "", "model": None}],
    }  # fmt: skip


def test_numbers_follow_what_happens(served: Served) -> None:
    before = numbers(served.url)
    assert before["uso_waiting_requests",] == before["uso_running_requests",] == 0
    assert before["process_resident_memory_bytes",] > 10**7
    client = Client(served.url, verbose=False, analytics_enabled=False, auth=("ann", "secret"))
    values: dict[str, Any] = {"prompt": "a red mug", "width": 64, "height": 64, "steps": 2, "images": 2}
    client.submit(**values, api_name="/generate").result(timeout=240)
    client.close()
    after = numbers(served.url)
    assert after["uso_requests_total", "uso-tiny", "done"] == 1
    assert after["uso_images_total", "uso-tiny"] == 2
    assert after["uso_request_seconds_count", "uso-tiny", "done"] == 1
    assert after["uso_request_seconds_sum", "uso-tiny", "done"] > 0
    assert after["uso_model_bytes", "cpu", "uso-tiny", "", "0"] > 10**8
    assert json.loads(asked(f"{served.url}/readyz")[1])["workers"] == [{"place": "", "model": "uso-tiny"}]


def test_an_address_of_another_name_is_not_answered(served: Served) -> None:
    call = urllib.request.Request(f"{served.url}/metrics", headers={"Host": "evil.example.org"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(call, timeout=240)
    assert caught.value.code == 421


def test_without_its_files_it_is_alive_but_not_ready_and_metrics_are_off(tmp_path: Path) -> None:
    with serve(tmp_path / "app", name="flux-dev", USO_WEIGHTS=str(tmp_path), HF_HUB_CACHE=str(tmp_path)) as running:
        assert asked(f"{running.url}/healthz")[0] == 200
        status, text = asked(f"{running.url}/readyz")
        assert status == 503
        assert (json.loads(text)["ready"], json.loads(text)["model"]) == (False, "flux-dev")
        assert "FLUX" in json.loads(text)["reason"]
        assert asked(f"{running.url}/metrics")[0] == 404


def test_metrics_without_their_package_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError) as caught:
        require_metrics()
    assert caught.value.key == "metrics_missing"


@pytest.mark.parametrize(
    ("given", "kept"), [("/uso", "/uso"), ("/a/uso/", "/a/uso"), ("/", ""), ("https://x.org/uso/", "https://x.org/uso")]
)
def test_root_paths(given: str, kept: str) -> None:
    assert Settings(root_path=given).root_path == kept


@pytest.mark.parametrize("given", ["uso", "/u so", "x.org/uso", "/uso?a", "ftp://x.org"])
def test_a_root_path_that_is_none_is_named(given: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(root_path=given)
    assert (caught.value.key, caught.value.values["path"]) == ("root_path", given)


def test_the_model_tab_lists_workers_of_other_processes_and_their_machines() -> None:
    model, reason = get_model("uso-tiny"), message("reason_as_asked")
    held = WorkerState(model, "cuda:0", "bfloat16", None)  # type: ignore[arg-type]  # the table does not show the plan
    assert text.workers_table(Status(model, reason, (held,), 0, 0)) == ""
    shown = text.workers_table(Status(model, reason, (held, None), 0, 0, ("one", "<b>two")))
    rows = re.findall(r"<td class='place'>(.*?)</td><td>(.*?)</td>", shown)
    assert rows == [("one", f"{model.title} (cuda:0, bfloat16)"), ("&lt;b&gt;two", say("worker_unloaded"))]
