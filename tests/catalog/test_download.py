"""The downloader with the real client, against a hub on loopback that fails in the ways hubs fail."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from tests.catalog.hub_server import HubServer
from uso_core.catalog import download
from uso_core.catalog.locate import find_weights
from uso_core.catalog.models import MODELS, Model
from uso_core.errors import DownloadError, SettingsError
from uso_core.settings import ROOT, Settings

DEV, USO, SIGLIP = "black-forest-labs/FLUX.1-dev", "bytedance-research/USO", "google/siglip-so400m-patch14-384"
LORA, PROJECTOR = "uso_flux_v1.0/dit_lora.safetensors", "uso_flux_v1.0/projector.safetensors"
TOKEN = "hf_secretsecretsecret"
BIG = 40_000  # bytes; several of the client's chunks, as the fixture sets them


def content(name: str, size: int = 300) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def repos(lora_bytes: int = BIG) -> dict[str, dict[str, bytes]]:
    dev = ["ae.safetensors", "flux1-dev.safetensors", "README.md", "transformer/config.json"]
    dev += [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ]
    dev += ["text_encoder_2/config.json", "text_encoder_2/model-00001-of-00002.safetensors"]
    dev += ["text_encoder_2/model-00002-of-00002.safetensors", "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json"]
    siglip = ["config.json", "preprocessor_config.json", "model.safetensors", "README.md", "spiece.model"]
    return {
        DEV: {name: content(name) for name in dev},
        USO: {LORA: content(LORA, lora_bytes), PROJECTOR: content(PROJECTOR)},
        SIGLIP: {name: content(name) for name in siglip},
    }


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    with HubServer(repos()) as server:
        server.members.add(TOKEN)
        yield server


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client without this machine's cache, proxy and offline switch; small chunks and no pauses."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def model() -> Model:
    """flux-dev as in the catalog, with its pins set to the small contents."""
    rows = []
    for row in MODELS["flux-dev"].files:
        if row.sha256:
            data = content(row.patterns[0])
            row = dataclasses.replace(row, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        rows.append(row)
    return dataclasses.replace(MODELS["flux-dev"], files=tuple(rows))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(weights=str(tmp_path / "weights"))


def hub(server: HubServer, token: str | None = TOKEN) -> download.Hub:
    return download.Hub(token, endpoint=server.url)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def test_everything_that_find_weights_looks_for_is_fetched(hub_server, model, settings, capsys):
    hub_server.gated.add(DEV)
    assert not find_weights(model, settings).complete
    download.download(model, settings, hub(hub_server))
    stock = find_weights(model, settings)
    assert stock.complete
    assert stock.paths["lora"].read_bytes() == content(LORA, BIG)
    fetched = files_below(Path(settings.weights))
    assert "FLUX.1-dev/tokenizer_2/spiece.model" in fetched
    assert "FLUX.1-dev/tokenizer/merges.txt" in fetched
    assert not [name for name in fetched if "README" in name or "transformer/" in name or name.endswith(".part")]
    # The storage behind the hub is another host, which must not receive the token.
    assert hub_server.storage_headers
    assert not any("authorization" in headers for headers in hub_server.storage_headers)
    out = capsys.readouterr()
    assert TOKEN not in out.out + out.err
    assert out.out.count("MIT") == 1


def test_a_second_run_fetches_nothing(hub_server, model, settings, capsys):
    download.download(model, settings, hub(hub_server))
    hub_server.body_bytes.clear()
    download.download(model, settings, hub(hub_server))
    assert not hub_server.body_bytes
    assert "To fetch: 0 B." in capsys.readouterr().out


def test_a_download_interrupted_midway_resumes_where_it_broke(hub_server, model, settings):
    hub_server.drop[LORA] = [3 * 4096, 2 * 4096]
    download.download(model, settings, hub(hub_server), only=["lora"])
    assert find_weights(model, settings).paths["lora"].read_bytes() == content(LORA, BIG)
    assert hub_server.body_bytes[LORA] == BIG
    assert hub_server.ranges == ["bytes=12288-", "bytes=20480-"]


def test_the_next_run_transfers_only_the_rest(hub_server, model, settings, capsys):
    hub_server.drop[LORA] = [5 * 4096, *[0] * 20]
    with pytest.raises(DownloadError, match="could not be reached"):
        download.download(model, settings, hub(hub_server), only=["lora"])
    assert "lora" in find_weights(model, settings).missing
    del hub_server.drop[LORA]
    hub_server.body_bytes.clear()
    capsys.readouterr()
    download.download(model, settings, hub(hub_server), only=["lora"])
    assert hub_server.body_bytes[LORA] == BIG - 5 * 4096
    assert find_weights(model, settings).paths["lora"].read_bytes() == content(LORA, BIG)
    assert "partly (20.48 kB of 40.00 kB)" in capsys.readouterr().out
    assert files_below(Path(settings.weights)) == ["USO/" + LORA]


def test_partial_files_of_another_revision_or_too_long_do_no_harm(hub_server, model, settings):
    folder = Path(settings.weights) / "USO" / "uso_flux_v1.0"
    folder.mkdir(parents=True)
    key = hashlib.sha256(content(LORA, BIG)).hexdigest()[:12]
    (folder / f"dit_lora.safetensors.{key}.part").write_bytes(bytes(BIG + 1))
    (folder / "dit_lora.safetensors.0123456789ab.part").write_bytes(b"older")
    download.download(model, settings, hub(hub_server), only=["lora"])
    assert [path.name for path in folder.iterdir()] == ["dit_lora.safetensors"]
    assert (folder / "dit_lora.safetensors").read_bytes() == content(LORA, BIG)


@pytest.mark.parametrize("name", [LORA, "text_encoder/config.json"])
def test_other_content_than_listed_is_deleted(hub_server, model, settings, name):
    hub_server.corrupt.add(name)
    role = "lora" if name == LORA else "clip"
    with pytest.raises(DownloadError, match="different content") as caught:
        download.download(model, settings, hub(hub_server), only=[role])
    assert name in caught.value.message
    assert not [found for found in files_below(Path(settings.weights)) if name in found]
    hub_server.corrupt.clear()
    download.download(model, settings, hub(hub_server), only=[role])
    assert role in find_weights(model, settings).paths


def test_a_hub_with_another_file_than_the_pinned_one_is_refused_before_the_first_byte(hub_server, model, settings):
    hub_server.repos[DEV]["ae.safetensors"] = content("another", 300)
    with pytest.raises(DownloadError, match="now lists ae.safetensors with different content"):
        download.download(model, settings, hub(hub_server))
    assert not hub_server.body_bytes


def test_verify_finds_and_replaces_a_damaged_file_of_the_right_size(hub_server, model, settings, capsys):
    download.download(model, settings, hub(hub_server), only=["projector"])
    path = find_weights(model, settings).paths["projector"]
    path.write_bytes(bytes(300))
    download.download(model, settings, hub(hub_server), only=["projector"])
    assert path.read_bytes() == bytes(300)
    download.download(model, settings, hub(hub_server), only=["projector"], verify=True)
    assert path.read_bytes() == content(PROJECTOR)
    assert f"{path} differs from what the hub lists: it will be replaced." in capsys.readouterr().out


def test_a_stop_while_the_last_file_is_checked_ends_well_at_the_next_start(hub_server, model, settings, monkeypatch):
    def stop(path, file):
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(download, "is_intact", stop)
        with pytest.raises(KeyboardInterrupt):
            download.download(model, settings, hub(hub_server), only=["projector"])
    sent = dict(hub_server.body_bytes)
    download.download(model, settings, hub(hub_server), only=["projector"])
    assert find_weights(model, settings).paths["projector"].read_bytes() == content(PROJECTOR)
    assert dict(hub_server.body_bytes) == sent


def test_a_file_stays_until_its_successor_has_come(hub_server, model, settings):
    path = Path(settings.weights) / "USO" / PROJECTOR
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of an earlier revision")
    hub_server.drop[PROJECTOR] = [100] * 20
    with pytest.raises(DownloadError):
        download.download(model, settings, hub(hub_server), only=["projector"])
    assert path.read_bytes() == b"of an earlier revision"
    hub_server.drop.clear()
    download.download(model, settings, hub(hub_server), only=["projector"])
    assert path.read_bytes() == content(PROJECTOR)


def test_a_password_in_the_hubs_address_is_not_shown(settings, model):
    away = download.Hub(None, "http://mirror:topsecret@127.0.0.1:9/hf")
    with pytest.raises(DownloadError) as caught:
        download.download(model, settings, away, only=["projector"])
    assert "127.0.0.1:9/hf" in caught.value.message
    assert "topsecret" not in caught.value.message + caught.value.hint


def test_a_truncated_file_is_fetched_again(hub_server, model, settings):
    path = Path(settings.weights) / "USO" / PROJECTOR
    path.parent.mkdir(parents=True)
    path.write_bytes(content(PROJECTOR)[:100])
    download.download(model, settings, hub(hub_server), only=["projector"])
    assert path.read_bytes() == content(PROJECTOR)


@pytest.mark.parametrize(
    ("token", "message", "hint"),
    [
        (
            None,
            "is gated and no token is set",
            "Accept the licence at https://huggingface.co/black-forest-labs/FLUX.1-dev",
        ),
        ("hf_stranger", "behind HF_TOKEN has no access", "Accept the licence at https://huggingface.co/black-forest"),
        ("hf_mistyped", "does not accept the token in HF_TOKEN", "https://huggingface.co/settings/tokens"),
    ],
)
def test_a_gated_repository(hub_server, model, settings, token, message, hint):
    hub_server.gated.add(DEV)
    hub_server.strangers.add("hf_stranger")
    with pytest.raises(DownloadError) as caught:
        download.download(model, settings, hub(hub_server, token))
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "HF_TOKEN" in str(caught.value)
    assert "hf_" not in str(caught.value)
    assert not hub_server.body_bytes


def test_access_to_every_repository_is_checked_before_the_first_byte(hub_server, model, settings):
    hub_server.gated.add(DEV)
    with pytest.raises(DownloadError, match="is gated"):
        download.download(model, settings, hub(hub_server, None), only=["lora", "vae"])
    assert not hub_server.body_bytes


def test_an_invalid_token_is_refused_without_being_shown():
    with pytest.raises(SettingsError) as caught:
        download.Hub("hf_half and half")
    assert "half" not in str(caught.value)


def test_a_missing_repository_and_a_missing_file(hub_server, model, settings):
    del hub_server.repos[USO][PROJECTOR]
    with pytest.raises(DownloadError, match="holds no uso_flux_v1.0/projector.safetensors"):
        download.download(model, settings, hub(hub_server))
    del hub_server.repos[USO]
    with pytest.raises(DownloadError, match="There is no repository bytedance-research/USO"):
        download.download(model, settings, hub(hub_server))
    assert not hub_server.body_bytes


def test_no_network_and_a_login_page(model, settings):
    with HubServer({}) as server:
        server.login_page = True
        with pytest.raises(DownloadError, match="does not answer like a Hugging Face hub"):
            download.download(model, settings, hub(server))
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        download.download(model, settings, hub(server))
    assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("name", ["text_encoder/../../../../stolen.safetensors", "text_encoder/..\\stolen.json"])
def test_names_that_lead_out_of_the_folder_are_refused(hub_server, model, settings, name):
    hub_server.repos[DEV][name] = b"x"
    with pytest.raises(DownloadError, match="does not answer like a Hugging Face hub"):
        download.download(model, settings, hub(hub_server), only=["clip"])
    assert not hub_server.body_bytes


def test_the_offline_switch_is_named(hub_server, model, settings, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        download.download(model, settings, hub(hub_server))


def test_a_disk_too_small_is_reported_before_the_first_byte(hub_server, model, settings, monkeypatch):
    usage = shutil.disk_usage(settings.weights[:1])._replace(free=12_345)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    needed = sum(len(data) for names in repos().values() for data in names.values())
    needed -= 300 * 4  # what no pattern names
    with pytest.raises(DownloadError) as caught:
        download.download(model, settings, hub(hub_server))
    assert (caught.value.key, caught.value.values["needed"], caught.value.values["free"]) == (
        "disk_too_small", needed, 12_345,
    )  # fmt: skip
    assert not hub_server.body_bytes
    assert not Path(settings.weights).exists()


def test_a_disk_full_midway_keeps_what_came(hub_server, model, settings, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DownloadError, match="The disk is full"):
            download.download(model, settings, hub(hub_server), only=["lora"])
    download.download(model, settings, hub(hub_server), only=["lora"])
    assert hub_server.body_bytes[LORA] == BIG


def test_a_folder_that_cannot_be_written(hub_server, model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written to"):
        download.download(model, Settings(weights=str(tmp_path / "file" / "weights")), hub(hub_server))
    assert not hub_server.body_bytes


def test_two_downloads_into_one_folder(hub_server, model, settings):
    with (
        download.weights_folder(Path(settings.weights)),
        pytest.raises(DownloadError, match="Another download is running"),
    ):
        download.download(model, settings, hub(hub_server))
    download.download(model, settings, hub(hub_server), only=["lora"])


def test_a_dry_run_prints_the_table_and_writes_nothing(hub_server, model, settings, tmp_path, capsys):
    download.download(model, settings, hub(hub_server, None), dry_run=True)
    out = capsys.readouterr().out
    for row in model.files:
        assert re.search(rf"^{row.role} +{re.escape(row.local)} .*{re.escape(row.licence)} .*missing$", out, re.M)
    assert re.search(r"To fetch: 44.50 kB\. Free on that disk: [\d.]+ [GM]B", out)
    assert not hub_server.body_bytes
    assert not list(tmp_path.rglob("*"))


def test_a_dry_run_without_a_network_shows_the_catalog(model, settings, capsys):
    with HubServer({}) as server:
        pass
    download.download(MODELS["flux-dev"], settings, hub(server), dry_run=True)
    out = capsys.readouterr().out
    assert out.count("could not be reached") == 1
    assert "23.80 GB" in out


def test_only_and_what_it_refuses(hub_server, model, settings):
    download.download(model, settings, hub(hub_server), only=["clip", "projector"])
    assert set(find_weights(model, settings).paths) == {"clip", "projector"}
    with pytest.raises(SettingsError, match="no role 'unet'"):
        download.download(model, settings, hub(hub_server), only=["unet"])


def test_what_a_variable_or_the_cache_provides_is_not_fetched(hub_server, model, settings, tmp_path, capsys):
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"my own file")
    cached = tmp_path / "cache" / f"models--{USO.replace('/', '--')}" / "snapshots" / ("a" * 40) / PROJECTOR
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"cached")
    (cached.parents[3] / "refs").mkdir()
    (cached.parents[3] / "refs" / "main").write_text("a" * 40)
    settings = dataclasses.replace(settings, flux_dev=str(mine))
    download.download(model, settings, hub(hub_server))
    assert find_weights(model, settings).complete
    assert "flux1-dev.safetensors" not in hub_server.body_bytes
    assert PROJECTOR not in hub_server.body_bytes
    assert f"there: {mine}" in capsys.readouterr().out


def test_a_variable_that_points_nowhere_is_refused_first(hub_server, model, settings, tmp_path):
    with pytest.raises(SettingsError, match="LORA points to"):
        download.download(model, dataclasses.replace(settings, lora=str(tmp_path / "nowhere")), hub(hub_server))
    # The download's destination may be named before it exists.
    target = str(Path(settings.weights) / "USO" / LORA)
    download.download(model, dataclasses.replace(settings, lora=target), hub(hub_server), only=["lora"])


def test_every_row_lands_where_find_weights_looks(tmp_path):
    for model in MODELS.values():
        for row in model.files:
            first, *rest = Path(row.local).parts
            if len(row.patterns) == 1:
                assert "/".join(rest) == row.patterns[0]
            else:
                assert not rest or f"{'/'.join(rest)}/*" in row.patterns
            assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
            assert row.sha256 is None or len(row.patterns) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--variant", "flux-prod"], "There is no model named 'flux-prod'."),
        (["--only", "unet"], "flux-dev has no role 'unet'."),
        (["--resume"], "Unrecognized arguments: --resume"),
    ],
)
def test_command_line_errors_are_two_lines(argv, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert download.main(argv) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert second.startswith("hint: ")


def test_the_embedded_model_needs_no_download(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert download.main(["--variant", "uso-tiny"]) == 0
    assert "nothing to download" in capsys.readouterr().out


def start(server: HubServer, folder: Path, *argv: str) -> subprocess.Popen[str]:
    """Runs the script as a user would, in `folder`, with the hub given by HF_ENDPOINT."""
    (folder / ".env").write_text(f"HF_TOKEN={TOKEN}\n")
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "hf"),
        "NO_PROXY": "*",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, str(ROOT / "weights" / "downloader.py"), "--weights", "here", *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_script_takes_the_hub_from_dotenv(hub_server, tmp_path):
    """As `HF_ENDPOINT` and its kind stand there for whoever uses a mirror."""
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub_server.url}\nHF_TOKEN={TOKEN}\n")
    hub_server.gated.add(DEV)
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [sys.executable, str(ROOT / "weights" / "downloader.py"), "--weights", "here", "--only", "clip"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "here/FLUX.1-dev/text_encoder/model.safetensors").is_file()


def test_script_takes_the_hub_from_the_environment_and_the_token_from_dotenv(hub_server, tmp_path):
    hub_server.gated.add(DEV)
    out, err = start(hub_server, tmp_path, "--only", "clip").communicate(timeout=240)
    assert (tmp_path / "here/FLUX.1-dev/text_encoder/model.safetensors").is_file()
    assert err == ""
    assert TOKEN not in out


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for a child there")
def test_ctrl_c_keeps_what_came(tmp_path):
    size = 35_000_000  # the client passes on 10 MB at a time
    with HubServer(repos(lora_bytes=size)) as server:
        server.members.add(TOKEN)
        server.stall[LORA] = 25_000_000
        process = start(server, tmp_path, "--only", "lora")
        assert server.stalled.wait(240)
        deadline = 200
        while not any(path.stat().st_size for path in tmp_path.rglob("*.part")) and (deadline := deadline - 1):
            server.closing.wait(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 130
        assert err.splitlines() == ["stopped: what was fetched so far is kept; run the same command again to resume."]
        server.body_bytes.clear()
        process = start(server, tmp_path, "--only", "lora")
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert 0 < server.body_bytes[LORA] < size
        assert TOKEN not in out + err
        assert (tmp_path / "here" / "USO" / LORA).read_bytes() == content(LORA, size)
