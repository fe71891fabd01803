"""Finds which of a model's weights are on this disk, and so which model is the default. Reads names, not files."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from uso_core.catalog.models import EMBEDDED, EMBEDDED_FILES, MODELS, Model, WeightFile, get_model
from uso_core.errors import WeightsError
from uso_core.messages import Message, message
from uso_core.settings import ROOT, Settings, env_name

ONE_FILE = ("lora", "projector")  # never a folder
FLUX_FOLDERS = {"vae": "vae", "t5": "text_encoder_2", "clip": "text_encoder"}  # inside a diffusers folder of FLUX.1


@dataclass(frozen=True)
class WeightsReport:
    """Where each role of a model was found, and a message for each that was not."""

    model: Model
    paths: dict[str, Path]
    missing: dict[str, Message]

    @property
    def complete(self) -> bool:
        return not self.missing

    def require(self) -> dict[str, Path]:
        """The paths by role; raises `WeightsError` listing what is missing and how to get it."""
        if self.complete:
            return self.paths
        count, known = len(self.missing), len(self.missing) + len(self.paths)
        files = tuple(self.missing.values())
        raise WeightsError(
            "lacks_weights", hint="get_weights", model=self.model.name, missing=count, all=known, files=files
        )


def find_weights(model: Model, settings: Settings) -> WeightsReport:
    """Looks for each file of a model: where its variable points, in the weights folder, in the Hugging Face cache."""
    paths: dict[str, Path] = {}
    missing: dict[str, Message] = {}
    if model.folder is not None:
        folder = ROOT / "weights" / model.folder
        for role, name in EMBEDDED_FILES.items():
            if (folder / name).exists():
                paths[role] = folder / name
            else:
                missing[role] = message("missing_embedded", role=role, path=folder / name)
        return WeightsReport(model, paths, missing)
    for file in model.files:
        found = _find(file, settings, paths.get("transformer"))
        if isinstance(found, Path):
            paths[file.role] = found
        else:
            missing[file.role] = found
    return WeightsReport(model, paths, missing)


def choose_model(settings: Settings) -> tuple[Model, Message]:
    """The model to start with and the reason: the one named, else flux-dev if complete, else the embedded one."""
    if settings.name:
        return get_model(settings.name), message("reason_as_asked")
    report = find_weights(MODELS["flux-dev"], settings)
    if report.complete:
        return report.model, message("reason_files_found")
    if not report.paths:
        return MODELS[EMBEDDED], message("reason_no_files")
    return MODELS[EMBEDDED], message("reason_lacks", files=", ".join(report.missing))


def names_flux_dev(settings: Settings) -> bool:
    """Whether the user pointed at any part of FLUX.1-dev, so that silently using the embedded model would be wrong."""
    return any(getattr(settings, file.setting) for file in MODELS["flux-dev"].files)


def _find(file: WeightFile, settings: Settings, transformer: Path | None) -> Path | Message:
    variable, value = env_name(file.setting), getattr(settings, file.setting)
    if value:
        path = _existing(value)
        if path is not None:
            return _inside(path, file.role)
        cached = _cached(value, None) if re.fullmatch(r"[\w.-]+/[\w.-]+", value) else None
        if cached:
            return _inside(cached, file.role)
        return message("missing_variable", role=file.role, variable=variable, value=value)
    if transformer is not None and transformer.is_dir() and file.role in FLUX_FOLDERS:
        sibling = transformer.parent / FLUX_FOLDERS[file.role]
        if sibling.is_dir():
            return sibling
    single = len(file.patterns) == 1
    local = settings.weights_folder / file.local
    if local.is_file() if single else _holds(local):
        return local
    cached = _cached(file.repo, file.patterns[0]) if single else None
    if cached:
        return cached
    snapshot = _cached(file.repo, None)
    if snapshot and file.role not in ONE_FILE and _holds(_inside(snapshot, file.role)):
        return _inside(snapshot, file.role)
    return message("missing_source", role=file.role, variable=variable, repo=file.repo)


def _existing(value: str) -> Path | None:
    try:
        path = Path(value).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name that no disk accepts, an unknown user's home
        return None


def _inside(path: Path, role: str) -> Path:
    """The folder of `role` inside a whole diffusers folder, or the path itself."""
    name = {"transformer": "transformer", **FLUX_FOLDERS}.get(role)
    return path / name if name and path.is_dir() and (path / name).is_dir() else path


def _holds(folder: Path) -> bool:
    """Whether a folder has its configuration and weights, and no unfinished download."""
    files = {path.name for path in folder.glob("*")}
    return (
        "config.json" in files
        and any(name.endswith((".safetensors", ".bin")) for name in files)
        and not any(name.endswith(".part") for name in files)
    )


def _cached(repo: str, name: str | None) -> Path | None:
    """The file `name` of `repo`, or its whole snapshot, from the local Hugging Face cache; never the network."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        if name is not None:
            found = try_to_load_from_cache(repo, name)
            return Path(found) if isinstance(found, str) else None
        return Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def with_name(settings: Settings, name: str) -> Settings:
    """The same settings for another model."""
    return dataclasses.replace(settings, name=get_model(name).name)
