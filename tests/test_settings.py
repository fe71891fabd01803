"""Settings: one order of precedence, one reader, no secrets shown; and what `find_weights` finds with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uso_core.catalog.locate import choose_model, find_weights, names_flux_dev
from uso_core.catalog.models import MODELS, get_model
from uso_core.errors import SettingsError, UsageError, WeightsError
from uso_core.settings import ROOT, Parser, Settings, add_arguments, example_env, load_settings, settle_proxies


@pytest.fixture
def dotenv(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_example_env_matches_the_settings():
    assert (ROOT / "example.env").read_text(encoding="utf-8") == example_env()


def test_example_env_unchanged_gives_the_defaults():
    assert load_settings(dotenv=ROOT / "example.env") == Settings()


def test_order_of_precedence(dotenv, monkeypatch):
    dotenv.write_text("USO_PORT=1111\nUSO_HOST=10.0.0.1\nUSO_DEVICE=cpu\n")
    monkeypatch.setenv("USO_HOST", "10.0.0.2")
    monkeypatch.setenv("USO_DEVICE", "cuda")
    settings = load_settings({"device": "mps", "name": None}, dotenv)
    assert (settings.port, settings.host, settings.device, settings.name) == (1111, "10.0.0.2", "mps", None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_dotenv_in_any_unicode_encoding(dotenv, encoding):
    dotenv.write_text("USO_PORT=9000\nUSO_OUTPUT=Bücher\n", encoding=encoding)
    assert (load_settings(dotenv=dotenv).port, load_settings(dotenv=dotenv).output) == (9000, "Bücher")


PATHS = {  # a line: the value of FLUX_DEV
    r"""FLUX_DEV="C:\models\new\flux1-dev.safetensors" """: r"C:\models\new\flux1-dev.safetensors",
    r"""FLUX_DEV="C:\\models\\new\\a.safetensors" """: r"C:\models\new\a.safetensors",
    r"""FLUX_DEV="\\server\new\t5" # mine""": r"\\server\new\t5",
    r"""FLUX_DEV="D:\text encoders\t5\" """: "D:\\text encoders\\t5\\",
    r"""FLUX_DEV='D:\text encoders\t5\'""": "D:\\text encoders\\t5\\",
    r"""FLUX_DEV=C:\models\new""": r"C:\models\new",
    r"""FLUX_DEV="models\flux\new" """: r"models\flux\new",
    r"""set FLUX_DEV=C:\models\new""": r"C:\models\new",
    r"""SET "FLUX_DEV=C:\my models\new" """: r"C:\my models\new",
    r"""$env:FLUX_DEV = "C:\models\new" """: r"C:\models\new",
    "export FLUX_DEV=/models/flux": "/models/flux",
    """FLUX_DEV='"/models/flux"'""": "/models/flux",
    "FLUX_DEV=\u201c/my models/flux\u201d": "/my models/flux",
}


@pytest.mark.parametrize("line", PATHS)
def test_paths_as_people_write_them(dotenv, line):
    dotenv.write_text(f"# weights\r\n{line}\r\nUSO_PORT=9000\r\n", encoding="utf-8")
    settings = load_settings(dotenv=dotenv)
    assert (settings.flux_dev, settings.port) == (PATHS[line], 9000)


@pytest.mark.parametrize(
    ("line", "value"),
    [("FLUX_DEV=${SHELF}/flux", "/shelf/flux"), ('FLUX_DEV="${SHELF}/flux"', "/shelf/flux"),
     ("FLUX_DEV='${SHELF}/flux'", "${SHELF}/flux"), ("export FLUX_DEV = '${SHELF}/flux' # mine", "${SHELF}/flux")],
)  # fmt: skip
def test_single_quotes_keep_what_is_in_them(dotenv, monkeypatch, line, value):
    monkeypatch.setenv("SHELF", "/shelf")
    dotenv.write_text(f"# weights\n{line}\nUSO_PORT=9000\n")
    assert load_settings(dotenv=dotenv).flux_dev == value


def test_a_variable_that_is_not_set_is_named(dotenv, monkeypatch):
    monkeypatch.delenv("SHELF", raising=False)
    dotenv.write_text("USO_PORT=9000\nFLUX_DEV=${SHELF}/flux\nSHELF=/too/late\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(dotenv=dotenv)
    assert (caught.value.key, caught.value.values["line"]) == ("dotenv_undefined", 2)
    assert "${SHELF}" in caught.value.message
    assert "${SHELF:-default}" in caught.value.hint
    for line in ("FLUX_DEV=${SHELF:-/shelf}/flux", "SHELF=/shelf\nFLUX_DEV=${SHELF}/flux",
                 "SHELF=/shelf\nFLUX_DEV=${SHELF}/flux\nSHELF=/other",
                 "THEIRS=${SHELF}\nFLUX_DEV=/shelf/flux"):  # fmt: skip
        dotenv.write_text(line)
        assert load_settings(dotenv=dotenv).flux_dev == "/shelf/flux"
        for shared in ("SHELF", "THEIRS"):  # what is not ours
            monkeypatch.delenv(shared, raising=False)


def test_a_home_is_meant_where_no_shell_reads(dotenv, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "models").mkdir()
    dotenv.write_text("USO_OUTPUT=~/images\nUSO_WEIGHTS=~/weights\nUSO_MODELS_DIR=~/models\n")
    settings = load_settings(dotenv=dotenv)
    assert settings.output_folder == tmp_path / "images"
    assert (settings.weights_folder, settings.models_folders) == (tmp_path / "weights", (tmp_path / "models",))


@pytest.mark.parametrize("name", ["weights", "output"])
def test_a_folder_that_cannot_be_is_refused(name):
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: "x" * 5000})
    assert (caught.value.key, caught.value.values["variable"]) == ("folder_unusable", f"USO_{name.upper()}")
    assert Settings(**{name: "~nobody-of-this-name/x"})


@pytest.mark.parametrize("folder", ["~nobody-of-this-name", "x" * 5000])
def test_a_model_folder_that_cannot_be_is_refused(folder):
    with pytest.raises(SettingsError) as caught:
        _ = Settings(models_dir=folder).models_folders
    assert caught.value.key == "models_dir_missing"


@pytest.mark.parametrize("quoted", ['"/models/a"', "'/models/a'", ' "/models/a" '])
def test_quotes_that_containers_leave_are_taken_off(dotenv, monkeypatch, quoted):
    monkeypatch.setenv("FLUX_DEV", quoted)
    dotenv.touch()
    assert load_settings(dotenv=dotenv).flux_dev == "/models/a"


@pytest.mark.parametrize("line", ["FLUX_DEV: /models/a", "FLUX_DEV", "= 5", 'FLUX_DEV="/models/a'])
def test_a_line_without_name_or_value_is_refused(dotenv, line):
    dotenv.write_text(f"USO_PORT=9000\n\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(dotenv=dotenv)
    assert (caught.value.key, caught.value.values["line"]) == ("dotenv_line", 3)


def test_a_token_in_a_bad_line_is_not_shown(dotenv):
    dotenv.write_text("HF_TOKEN: hf_secret\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(dotenv=dotenv)
    assert "hf_secret" not in str(caught.value)


def test_an_unknown_name_is_named(dotenv, monkeypatch, caplog):
    monkeypatch.setenv("USO_OFFLAOD", "1")
    for name in ("FLUXDEV", "USO_PROT", "SOMETHING"):
        monkeypatch.delenv(name, raising=False)
    dotenv.write_text("FLUXDEV=/models/a\nUSO_PROT=9000\nSOMETHING=else\n")
    load_settings(dotenv=dotenv)
    said = [record.args[0] for record in caplog.records]
    assert [(each.key, each.values["name"], each.values["meant"]) for each in said] == [
        ("unknown_variable_meant", "FLUXDEV", "FLUX_DEV"),
        ("unknown_variable_meant", "USO_PROT", "USO_PORT"),
        ("unknown_variable", "SOMETHING", ""),
        ("unknown_variable_meant", "USO_OFFLAOD", "USO_OFFLOAD"),
    ]
    for name in ("FLUXDEV", "USO_PROT", "SOMETHING"):
        os.environ.pop(name, None)


def test_what_other_programs_read_counts_in_dotenv(dotenv, monkeypatch, caplog):
    monkeypatch.setenv("HF_HOME", "/given")
    monkeypatch.setenv("HF_ENDPOINT", "")
    monkeypatch.delenv("HF_ENDPOINT")
    dotenv.write_text("HF_ENDPOINT=http://127.0.0.1:9\nHF_HOME=/elsewhere\n")
    load_settings(dotenv=dotenv)
    assert (os.environ["HF_ENDPOINT"], os.environ["HF_HOME"], caplog.records) == ("http://127.0.0.1:9", "/given", [])


def test_gradios_own_variables_count_below_ours(dotenv, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.2")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8035")
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/uso")
    dotenv.write_text("USO_PORT=9000\n")
    settings = load_settings(dotenv=dotenv)
    assert (settings.host, settings.port, settings.root_path) == ("127.0.0.2", 9000, "/uso")


@pytest.fixture
def proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for each in (name, name.upper()):
            monkeypatch.setenv(each, "")
            monkeypatch.delenv(each)
    return monkeypatch


def test_a_proxy_is_not_asked_for_this_machine(proxies):
    settle_proxies()
    assert "no_proxy" not in os.environ
    proxies.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    proxies.setenv("NO_PROXY", "example.org,localhost")
    settle_proxies("10.0.0.1")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "example.org,localhost,127.0.0.1,::1,10.0.0.1"


@pytest.mark.parametrize(("address", "key"), [("socks5://u:secret@127.0.0.1:9", "proxy_socks"),
                                              ("socks4://127.0.0.1:9", "proxy_scheme")])  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_named(proxies, address, key):
    proxies.setattr("importlib.util.find_spec", lambda name: None)
    proxies.setenv("ALL_PROXY", address)
    with pytest.raises(SettingsError) as caught:
        settle_proxies()
    assert (caught.value.key, caught.value.values["variable"]) == (key, "ALL_PROXY")
    assert "secret" not in str(caught.value)


def test_empty_counts_as_not_given(dotenv, monkeypatch):
    dotenv.write_text("FLUX_DEV=/somewhere\n")
    monkeypatch.setenv("FLUX_DEV", " ")
    assert load_settings(dotenv=dotenv).flux_dev == "/somewhere"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("USO_PORT=abc", "USO_PORT"),
        ("USO_OFFLOAD=perhaps", "USO_OFFLOAD"),
        ("USO_DTYPE=int4", "USO_DTYPE"),
        ("USO_PORT=70000", "70000"),
        ("USO_VRAM_LIMIT=much", "USO_VRAM_LIMIT"),
        ("USO_VRAM_LIMIT=0", "0.0 GB"),
        ("USO_VRAM_LIMIT=nan", "nan GB"),
        ("USO_COMPILE=fast", "USO_COMPILE"),
    ],
)
def test_a_bad_value_is_named(dotenv, line, named):
    dotenv.write_text(line)
    with pytest.raises(SettingsError, match=named):
        load_settings(dotenv=dotenv)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("no", False)])
def test_truth_values(dotenv, text, value):
    dotenv.write_text(f"USO_OFFLOAD={text}")
    assert load_settings(dotenv=dotenv).offload is value


def test_memory_and_speed(dotenv):
    dotenv.write_text("USO_VRAM_LIMIT=7.5\nUSO_COMPILE=on\n")
    settings = load_settings(dotenv=dotenv)
    assert (settings.vram_limit, settings.compile) == (7.5, "on")
    assert (Settings().vram_limit, Settings().compile) == (None, "auto")


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--vram-limit", "8"], (8.0, None)),
        (["--no-compile"], (None, "off")),
        (["--compile", "on"], (None, "on")),
        ([], (None, None)),
    ],
)
def test_flags_of_memory_and_speed(argv, values):
    parser = Parser()
    add_arguments(parser, "vram_limit", "compile")
    args = parser.parse_args(argv)
    assert (args.vram_limit, args.compile) == values


@pytest.mark.parametrize("argv", [["--vram-limit", "8GB"], ["--compile", "sometimes"]])
def test_a_bad_flag_of_memory_and_speed(argv):
    parser = Parser(prog="inference.py")
    add_arguments(parser, "vram_limit", "compile")
    with pytest.raises(UsageError, match=argv[0]):
        parser.parse_args(argv)


def test_the_token_is_not_shown():
    assert "hf_secret" not in repr(Settings(hf_token="hf_secret"))


def test_an_unknown_model_name():
    with pytest.raises(SettingsError, match="flux-2"):
        get_model("flux-2")
    with pytest.raises(SettingsError, match="flux-krea-dev"):
        choose_model(Settings(name="flux-2"))


def test_without_files_the_embedded_model_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = Settings(weights=str(tmp_path))
    model, reason = choose_model(settings)
    assert model.name == "uso-tiny"
    assert reason.key == "reason_no_files"
    _, reason = choose_model(Settings(weights=str(tmp_path / "typo")))
    assert (reason.key, reason.values["folder"]) == ("reason_no_folder", str(tmp_path / "typo"))
    assert find_weights(model, settings).complete
    assert not names_flux_dev(settings)


def test_with_all_files_flux_dev_is_chosen(golden_environment):
    settings = load_settings()
    model, _ = choose_model(settings)
    assert model.name == "flux-dev"
    assert names_flux_dev(settings)
    assert set(find_weights(model, settings).require()) == {
        "transformer", "lora", "projector", "vae", "t5", "clip", "siglip",
    }  # fmt: skip


def test_a_variable_that_points_nowhere_is_named(golden_environment, monkeypatch):
    monkeypatch.setenv("AE", "/nowhere/ae.safetensors")
    with pytest.raises(WeightsError, match="AE points to /nowhere/ae.safetensors"):
        find_weights(MODELS["flux-dev"], load_settings()).require()


def test_files_in_the_weights_folder_are_found(tmp_path):
    model = MODELS["flux-dev"]
    for file in model.files:
        place = tmp_path / file.local
        place.parent.mkdir(parents=True, exist_ok=True)
        if len(file.patterns) == 1:
            place.write_bytes(b"x")
        else:
            place.mkdir()
            (place / "config.json").write_text("{}")
            (place / "model.safetensors").write_bytes(b"x")
    stock = find_weights(model, Settings(weights=str(tmp_path)))
    assert stock.complete
    assert stock.paths["vae"] == tmp_path / "FLUX.1-dev/ae.safetensors"


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_the_hugging_face_cache_is_used_in_place(tmp_path, monkeypatch, layout):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model, settings = MODELS["flux-dev"], Settings(weights=str(tmp_path / "none"))
    assert set(find_weights(model, settings).missing) == {file.role for file in model.files}
    folders = {"transformer": "transformer", "vae": "vae"}
    for file in model.files:
        snapshot = cache_repository(tmp_path / "cache", file.repo)
        if layout == "diffusers" and file.role in folders:
            names = [f"{folders[file.role]}/config.json", f"{folders[file.role]}/diffusion_pytorch_model.safetensors"]
        elif len(file.patterns) == 1:
            names = [file.patterns[0]]
        else:
            folder = {"t5": "text_encoder_2/", "clip": "text_encoder/"}.get(file.role, "")
            names = [f"{folder}config.json", f"{folder}model.safetensors"]
        for name in names:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(b"{}")
    stock = find_weights(model, settings)
    assert stock.complete, stock.missing
    assert stock.paths["vae"].name == {"original": "ae.safetensors", "diffusers": "vae"}[layout]
    assert stock.paths["t5"].name == "text_encoder_2"
    assert choose_model(settings)[0] is model


def cache_repository(cache: Path, repo: str) -> Path:
    """The snapshot folder of a repository in a Hugging Face cache, as laid out by the client."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    snapshot = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def test_an_unfinished_download_does_not_count(tmp_path):
    model = MODELS["flux-dev"]
    folder = tmp_path / next(file.local for file in model.files if file.role == "t5")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x")
    (folder / "model-00002-of-00002.safetensors.0123.part").write_bytes(b"x")
    assert "t5" in find_weights(model, Settings(weights=str(tmp_path))).missing


def test_a_diffusers_folder_brings_its_own_parts(tmp_path):
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        (tmp_path / part).mkdir()
    stock = find_weights(MODELS["flux-dev"], Settings(flux_dev=str(tmp_path), weights=str(tmp_path / "none")))
    assert stock.paths["transformer"] == tmp_path / "transformer"
    assert stock.paths["vae"] == tmp_path / "vae"
    assert stock.paths["t5"] == tmp_path / "text_encoder_2"
    assert "lora" in stock.missing


@pytest.mark.parametrize("name", ["history_images", "history_gb", "cache_gb"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_bound_that_would_empty_the_history_is_refused(name, value):
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert caught.value.key == "limit_range"
