"""Every setting in one frozen value: defaults < .env < environment < command line. Only this reads the environment."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import itertools
import logging
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from uso_core.dotenv_file import read_dotenv
from uso_core.errors import SettingsError, UsageError
from uso_core.messages import message

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LIMITS = {  # on this machine alone, and where others reach the page
    "max_waiting": (1000, 100),
    "max_waiting_each": (math.inf, 8),
    "max_work": (math.inf, 800),
    "max_minutes": (math.inf, 30),
    "max_calls": (math.inf, 120),
    "max_upload_mb": (math.inf, 1000),
}
# Names in `.env` that other programs read: they count as if they stood in the environment.
FOREIGN = re.compile(
    r"(HF|HUGGINGFACE|HUGGING_FACE|GRADIO|CUDA|NVIDIA|PYTORCH|TORCH\w*|OMP|MKL|KMP|TRANSFORMERS|TOKENIZERS|DIFFUSERS"
    r"|SAFETENSORS|ACCELERATE|TRITON|RAY|HIP|ROCR|HSA|XDG|COMPOSE|DOCKER|SPACES?|PIP|PYTHON\w*|SSL|REQUESTS|CURL|LC"
    r"|FORWARDED)_\w+|(https?|all|no)_proxy|TMPDIR|TEMP|TMP|LANG|TZ|PATH|NO_COLOR|BROWSER",
    re.IGNORECASE,
)
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
QUOTES = ('""', "''", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019")  # around a whole value
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def setting(default: Any, env: str, text: str, choices: tuple[str, ...] = (), also: tuple[str, ...] = ()) -> Any:
    """A field of `Settings` with the environment variable that sets it and a text that explains it.

    The variables in `also`, which other programs read too, count below it.
    """
    return dataclasses.field(default=default, metadata={"env": env, "help": text, "choices": choices, "also": also})


@dataclass(frozen=True)
class Settings:
    """What the person starting the program chose. Paths may be relative to the working directory.

    A weight path is a file, a folder, or the id of a repository in the local Hugging Face cache.
    """

    name: str | None = setting(None, "USO_NAME", "model to use; empty: flux-dev if its files are found, else uso-tiny")
    device: str = setting("auto", "USO_DEVICE", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = setting("auto", "USO_DTYPE", "number format of the computation", ("auto", "float32", "bfloat16"))
    executor: str = setting(
        "local", "USO_EXECUTOR", "where images are made: in this process, or by the workers of a Ray cluster (needs "
        "requirements-ray.txt)", ("local", "ray"),
    )  # fmt: skip
    workers: str = setting(
        "auto", "USO_WORKERS", "of Ray at most; auto: one for each GPU of the cluster, without GPUs for each 4 cores"
    )
    idle_minutes: float | None = setting(
        None, "USO_IDLE_MINUTES", "after which an idle worker of Ray is given back; empty: never"
    )
    ray_address: str | None = setting(
        None, "RAY_ADDRESS", "HOST:PORT of a running Ray cluster's head; empty: this machine becomes one, on loopback"
    )
    offload: bool = setting(False, "USO_OFFLOAD", "keep only the active part on the GPU, the rest in RAM")
    vram_limit: float | None = setting(None, "USO_VRAM_LIMIT", "GB of GPU memory to use at most; empty: what is free")
    compile: str = setting(
        "auto", "USO_COMPILE", "compile the transformer's blocks; auto: on NVIDIA GPUs", ("auto", "on", "off")
    )
    host: str = setting(
        "127.0.0.1", "USO_HOST", "address the page listens on; 0.0.0.0 opens it to the network",
        also=("GRADIO_SERVER_NAME",),
    )  # fmt: skip
    port: int = setting(7860, "USO_PORT", "port the page listens on", also=("GRADIO_SERVER_PORT",))
    root_path: str = setting(
        "", "USO_ROOT_PATH", "path below which a proxy serves the page, like /uso", also=("GRADIO_ROOT_PATH",)
    )
    fused_cache: bool = setting(
        True, "USO_FUSED_CACHE", "keep large transformers fused with their LoRA on disk, for the next start"
    )
    weights: str = setting("weights", "USO_WEIGHTS", "folder for downloads, searched for weight files")
    models_dir: str = setting(
        "", "USO_MODELS_DIR", "folders to search for models, such as ComfyUI's, separated by : (on Windows by ;)"
    )
    output: str = setting("output", "USO_OUTPUT", "folder where the page saves its images")
    background: str = setting(
        "white", "USO_BACKGROUND", "what stands behind transparent images", ("white", "black", "grey")
    )
    history_images: int = setting(1000, "USO_HISTORY_IMAGES", "images the page keeps; the oldest go first")
    history_gb: int = setting(10, "USO_HISTORY_GB", "gigabytes the page keeps; the oldest images go first")
    allow_switch: bool = setting(
        False, "USO_ALLOW_SWITCH", "visitors may switch and unload the model; users of this machine always may"
    )
    allow_download: bool = setting(False, "USO_ALLOW_DOWNLOAD", "visitors may download a model's files from the page")
    max_waiting: int | None = setting(
        None, "USO_MAX_WAITING", "requests that may wait; empty: 1000 on this machine alone, else 100"
    )
    max_waiting_each: int | None = setting(
        None, "USO_MAX_WAITING_EACH", "of these per visitor; empty: no limit on this machine alone, else 8"
    )
    max_work: float | None = setting(
        None,
        "USO_MAX_WORK",
        "images x steps x megapixels of a request; empty: no limit on this machine alone, else 800",
    )
    max_minutes: float | None = setting(
        None, "USO_MAX_MINUTES", "minutes that a request may run; empty: no limit on this machine alone, else 30"
    )
    max_calls: int | None = setting(
        None, "USO_MAX_CALLS", "calls per visitor and minute; empty: no limit on this machine alone, else 120"
    )
    max_upload_mb: int | None = setting(
        None, "USO_MAX_UPLOAD_MB", "megabytes that a visitor uploads in an hour; empty: no limit on this machine "
        "alone, else 1000",
    )  # fmt: skip
    cache_gb: int = setting(2, "USO_CACHE_GB", "gigabytes of uploads and previews kept meanwhile; the oldest go first")
    shared_history: bool = setting(
        False, "USO_SHARED_HISTORY", "on an open server all visitors see one history and the same styles"
    )
    auth: str | None = setting(None, "USO_AUTH", "USER:PASSWORD to log in with, or a file with one a line")
    allow_host: str = setting("", "USO_ALLOW_HOST", "host names that the page answers to besides its own, by commas")
    share: bool = setting(
        False, "USO_SHARE", "open the page to the internet by a link of Gradio's", also=("GRADIO_SHARE",)
    )
    log: bool = setting(False, "USO_LOG", "write a line for each request: model, size, steps, seconds, outcome")
    mcp: bool = setting(False, "USO_MCP", "serve MCP tools too (needs requirements-mcp.txt)")
    metrics: bool = setting(False, "USO_METRICS", "serve /metrics for Prometheus (needs requirements-metrics.txt)")
    flux_dev: str | None = setting(None, "FLUX_DEV", "FLUX.1-dev transformer (file or diffusers folder)")
    flux_dev_fp8: str | None = setting(
        None, "FLUX_DEV_FP8", "transformer for flux-dev-fp8; the FLUX.1-dev file works too"
    )
    flux_schnell: str | None = setting(None, "FLUX_SCHNELL", "FLUX.1-schnell transformer")
    flux_krea_dev: str | None = setting(None, "FLUX_KREA_DEV", "FLUX.1-Krea-dev transformer")
    ae: str | None = setting(None, "AE", "VAE (ae.safetensors, or a diffusers vae folder)")
    t5: str | None = setting(None, "T5", "T5-XXL (folder in the transformers layout, or a file)")
    clip: str | None = setting(None, "CLIP", "CLIP-L (folder in the transformers layout, or a file)")
    lora: str | None = setting(None, "LORA", "USO's LoRA (dit_lora.safetensors)")
    projection_model: str | None = setting(None, "PROJECTION_MODEL", "USO's style projector (projector.safetensors)")
    turbo_lora: str | None = setting(None, "TURBO_LORA", "step-distilled LoRA of FLUX.1-dev, for the switch Turbo")
    siglip_path: str | None = setting(None, "SIGLIP_PATH", "SigLIP (folder in the transformers layout, or a file)")
    hf_token: str | None = setting(
        None, "HF_TOKEN", "Hugging Face token, for the downloader only",
        also=("HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise SettingsError("port_range", port=self.port)
        if self.vram_limit is not None and not 0 < self.vram_limit < math.inf:
            raise SettingsError("vram_limit_range", limit=self.vram_limit)
        if self.workers != "auto" and not (self.workers.isascii() and self.workers.isdigit() and int(self.workers)):
            raise SettingsError("workers_value", workers=self.workers)
        for name in ("workers", "idle_minutes"):
            if self.executor != "ray" and getattr(self, name) not in ("auto", None):
                raise SettingsError("only_of_ray", variable=env_name(name))
        if self.executor == "ray" and self.device.startswith("cuda:"):
            raise SettingsError("device_of_ray", device=self.device)
        if self.ray_address is not None and not re.fullmatch(r"\[?[\w.:-]+\]?:\d{1,5}", self.ray_address):
            raise SettingsError("ray_address", address=self.ray_address)
        if self.root_path and not re.fullmatch(r"(https?://[^/\s?#]+)?(/[^/\s?#]+)*/?", self.root_path):
            raise SettingsError("root_path", path=self.root_path)
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))
        _ = self.allowed_hosts
        for name, folder in (("weights", self.weights_folder), ("output", self.output_folder)):
            try:
                folder.exists()
            except OSError as error:  # a name that no disk takes, or a place that this user may not look into
                variable, reason = env_name(name), error.strerror
                raise SettingsError("folder_unusable", variable=variable, folder=folder, reason=reason) from None
        for name in (*LIMITS, "idle_minutes", "history_images", "history_gb", "cache_gb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError("limit_range", variable=env_name(name), value=value)

    @property
    def weights_folder(self) -> Path:
        """The weights folder; by default the project's own, from any working directory."""
        return ROOT / "weights" if self.weights == "weights" else given_path(self.weights)

    @property
    def output_folder(self) -> Path:
        """Where the page keeps its images."""
        return given_path(self.output)

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """The names in `allow_host`, out of addresses too; raises `SettingsError` for what has none."""
        given = [each.strip().lower() for each in self.allow_host.split(",") if each.strip()]
        address = r"(?:https?://)?(\[[\da-f:.]+\]|[\w.*?-]+)(?::\d{1,5})?/?|([\da-f]*:[\da-f:.]+)"
        found = [re.fullmatch(address, each) for each in given]
        for each, name in zip(given, found, strict=True):
            if name is None:
                raise SettingsError("host_name", value=each)
        return tuple((name[1] or name[2]).strip("[]") for name in found if name is not None)

    @property
    def models_folders(self) -> tuple[Path, ...]:
        """The folders to search for models, as absolute paths; raises `SettingsError` for one that does not exist."""
        folders = [given_path(each.strip()) for each in self.models_dir.split(os.pathsep) if each.strip()]
        for folder in folders:
            if not os.path.isdir(folder):  # also for a name that no disk takes
                raise SettingsError("models_dir_missing", variable=env_name("models_dir"), folder=folder)
        return tuple(folder.absolute() for folder in folders)

    @property
    def is_open(self) -> bool:
        """Whether people beyond this machine can reach the page."""
        return self.share or self.host not in LOOPBACK

    @property
    def separates(self) -> bool:
        """Whether each visitor has their own history and styles."""
        return self.is_open and not self.shared_history

    def limit(self, name: str) -> float:
        """The limit of that name, or its default: generous on this machine alone; infinite if there is none."""
        value = getattr(self, name)
        if value is not None:
            return value
        alone, opened = LIMITS[name]
        return opened if self.is_open else alone

    @property
    def may_switch(self) -> bool:
        """Whether visitors may choose the model: they use this machine, or its owner allows it."""
        return self.allow_switch or not self.is_open

    def __repr__(self) -> str:
        """Omits token and password, so that no log can show them."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("hf_token", "auth")}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def given_path(text: str) -> Path:
    """The path that a person wrote: `~` is their home, and stays as it is where that is unknown."""
    return Path(os.path.expanduser(text))


def env_name(field_name: str) -> str:
    """The environment variable behind a field: env_name("flux_dev") == "FLUX_DEV"."""
    return _fields()[field_name].metadata["env"]


def load_settings(arguments: Mapping[str, Any] | None = None, dotenv: Path | None = None) -> Settings:
    """Settings from `.env` (in the working directory, else beside app.py), the environment and `arguments`.

    An argument of None counts as not given, and so does an empty variable. What `.env` gives other programs is put into
    the environment, where it is not set. A name that nobody reads is logged. Raises `SettingsError` naming the source.
    """
    dotenv = dotenv or _own_dotenv()
    from_file = read_dotenv(dotenv, _known()) if dotenv and dotenv.is_file() else {}
    sources: list[tuple[str, Mapping[str, str]]] = [
        ("the environment", os.environ),
        (str(dotenv), {name: value for name, (value, _) in from_file.items()}),
    ]
    values: dict[str, Any] = {}
    for name, field in _fields().items():
        variables = (field.metadata["env"], *field.metadata["also"])
        for variable, (source, mapping) in itertools.product(variables, sources):
            if text := _unquoted(mapping.get(variable, "")):
                values[name] = _parse(field, text, f"{variable} in {source}")
                break
    for name, value in (arguments or {}).items():
        if value is not None:
            values[name] = os.pathsep.join(value) if isinstance(value, list) else value
    known = _known()
    for name, (value, line) in from_file.items():
        if name not in known:
            os.environ.setdefault(name, value)
            if not FOREIGN.fullmatch(name):
                _warn_unknown(name, f"{dotenv}, line {line}", known)
    for name in os.environ.keys() - known - from_file.keys():
        if name.upper().startswith("USO_"):
            _warn_unknown(name, "the environment", known)
    return Settings(**values)


def share_dotenv() -> None:
    """Puts what `.env` gives other programs into the environment, as `load_settings` does, and says nothing.

    For programs whose imports read the environment. Raises `SettingsError` for a file that cannot be understood.
    """
    dotenv = _own_dotenv()
    for name, (value, _) in (read_dotenv(dotenv) if dotenv else {}).items():
        if name not in _known():
            os.environ.setdefault(name, value)


def _own_dotenv() -> Path | None:
    return next((path for path in (Path(".env"), ROOT / ".env") if path.is_file()), None)


def _known() -> set[str]:
    return {each for field in _fields().values() for each in (field.metadata["env"], *field.metadata["also"])}


def settle_proxies(host: str = LOOPBACK[0]) -> None:
    """Lets this process reach itself directly, whatever proxy the environment names.

    Raises `SettingsError` naming a variable with a proxy that cannot be spoken to here.
    """
    given = {name: os.environ.get(name) for each in PROXIES for name in (each, each.upper())}
    for variable, address in given.items():
        scheme, separator, _ = (address or "http://").partition("://")
        if separator and scheme.lower() not in ("http", "https", "socks5", "socks5h"):
            raise SettingsError("proxy_scheme", variable=variable, scheme=scheme)
        if scheme.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise SettingsError("proxy_socks", variable=variable)
    if any(given.values()):
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        both = ",".join(dict.fromkeys(filter(None, (*direct.split(","), *LOOPBACK, host))))
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = both


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split()).rstrip(".")
        raise UsageError("usage", text=f"{text[:1].upper()}{text[1:]}", program=self.prog)


def add_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds a flag for each named field, with the field's text as help; not given means None.

    `compile` also gets --no-compile.
    """
    for name in names:
        field = _fields()[name]
        flag = "--" + name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(flag, nargs="?", const=True, type=parse_flag, help=field.metadata["help"])
        elif name == "models_dir":
            text = f"{field.metadata['help']}; repeatable"
            parser.add_argument(flag, action="append", metavar="DIR", help=text)
        else:
            kind = _KINDS.get(str(field.type), str)
            parser.add_argument(flag, type=kind, choices=field.metadata["choices"] or None, help=field.metadata["help"])
        if name == "compile":
            parser.add_argument("--no-compile", dest=name, action="store_const", const="off", help="--compile off")


class _NoFlag(argparse.ArgumentTypeError, ValueError):
    """Its words are the command line's own error."""


def parse_flag(text: str) -> bool:
    """A truth value as people write it; raises ValueError for anything else."""
    if text.strip().lower() in TRUE + FALSE:
        return text.strip().lower() in TRUE
    raise _NoFlag(f"{text!r} is not true or false")


_KINDS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "int | None": int,
    "float | None": float,
}  # by annotation; all others are text


def _fields() -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(Settings)}


def _unquoted(text: str) -> str:
    """A value without the quotes around it, as `docker --env-file` and Windows' `set` leave them."""
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] + text[-1] in QUOTES else text


def _warn_unknown(name: str, source: str, known: set[str]) -> None:
    meant = difflib.get_close_matches(name.upper(), known, 1, cutoff=0.7)
    key = "unknown_variable_meant" if meant else "unknown_variable"
    log.warning("%s", message(key, name=name, source=source, meant=meant[0] if meant else ""))


def _parse(field: dataclasses.Field[Any], text: str, source: str) -> Any:
    choices = field.metadata["choices"]
    try:
        value = parse_flag(text) if field.type == "bool" else _KINDS.get(str(field.type), str)(text)
    except ValueError:
        hint = {"bool": "setting_flag", "int": "setting_whole", "int | None": "setting_whole"}.get(
            str(field.type), "setting_number"
        )
        raise SettingsError("setting_value", hint=hint, source=source, text=text) from None
    if choices and value not in choices:
        raise SettingsError("setting_value", hint="choose_one_of", source=source, text=text, choices=", ".join(choices))
    return value


def keep_compiled(settings: Settings) -> None:
    """Lets PyTorch keep compiled code beside the fused cache; its own default does not survive a reboot."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.weights_folder.resolve() / "prepared" / "compiled"))


def keep_ray_on_loopback() -> None:
    """Lets Ray, imported afterwards, use this machine's loopback address for everything; by default only on Windows
    and macOS does it, and 127.0.0.1 in an address means the network's there.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def authenticate_ray(own: bool) -> None:
    """Lets Ray, imported afterwards, show the token that its cluster asks for, unless the environment says otherwise.

    A cluster of our own has one that only its processes know. `ray start` asks for the one in the home, if there is
    one; Ray itself would show it only to clusters that it finds by itself. A Ray that was imported before shows none,
    so a cluster of our own then asks for none.
    """
    if "ray" in sys.modules:
        if own:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        return
    if own and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if given or os.path.isfile(given_path("~/.ray/auth_token")):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def example_env() -> str:
    """The text of example.env: every variable with its meaning and default."""
    lines = ["# Copy this file to .env and change what you need. The environment wins over .env, flags win over both."]
    for field in _fields().values():
        default = "" if field.default is None else str(field.default).lower()
        choices = f" ({', '.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
        lines += ["", f"# {field.metadata['help']}{choices}", f"{field.metadata['env']}={default}"]
    return "\n".join(lines) + "\n"
