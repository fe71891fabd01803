"""Finds which of a model's weights are on this disk, and so which model is the default. Reads headers at most."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from uso_core.catalog.models import (
    DEV,
    EMBEDDED,
    EMBEDDED_FILES,
    MODELS,
    TOKENIZER_ROLES,
    TOKENIZERS,
    Model,
    WeightFile,
    get_model,
)
from uso_core.catalog.scan import OTHER_LORA, TOKENIZER_FILES, Found, best, describe, described_as, model_files, scan
from uso_core.errors import WeightsError
from uso_core.messages import Message, message
from uso_core.settings import ROOT, Settings, env_name, given_path

ONE_FILE = ("lora", "projector")  # never a folder
FLUX_FOLDERS = {"vae": "vae", "t5": "text_encoder_2", "clip": "text_encoder"}  # inside a diffusers folder of FLUX.1


@dataclass(frozen=True)
class WeightsReport:
    """Where each role of a model was found, and a message for each that was not."""

    model: Model
    paths: dict[str, Path]
    missing: dict[str, Message]
    sides: Mapping[str, int] = field(default_factory=dict)  # what further parts from the model folders must fit

    @property
    def complete(self) -> bool:
        return not self.missing

    def require(self) -> dict[str, Path]:
        """The paths by role; raises `WeightsError` listing what is missing and how to get it."""
        if self.complete:
            return self.paths
        unusable = {role: problem_in(path, role) for role, path in self.paths.items()}  # that they would learn later
        files = [*self.missing.values()] + [
            message("missing_unusable", role=role, path=self.paths[role], problem=problem)
            for role, problem in unusable.items()
            if problem is not None
        ]
        known = len(self.missing) + len(self.paths)
        raise WeightsError(
            "lacks_weights", hint="get_weights", model=self.model.name, missing=len(files), all=known, files=files
        )


def find_weights(model: Model, settings: Settings) -> WeightsReport:
    """Looks for each file of a model: where its variable points, in the model folders, in the weights folder, in the
    Hugging Face cache. Parts of other widths in the model folders are passed over.
    """
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
    elsewhere = look(settings)
    sides: dict[str, int] = {}
    for file in model.files:
        found = _find(file, model, settings, paths.get("transformer"), elsewhere, sides)
        if isinstance(found, Path):
            paths[file.role] = found
            if elsewhere:
                sides |= next((each.sides for each in describe(found) if each.role == file.role), {})
        else:
            missing[file.role] = found
    for row in needed_tokenizers(paths):
        place = _find_tokenizer(row, settings, elsewhere, sides)
        if place is not None:
            paths[row.role] = place
        else:
            missing[row.role] = message("missing_tokenizer", role=row.role, repo=row.repo)
    return WeightsReport(model, paths, missing, sides)


def problem_in(path: Path, role: str) -> Message | None:
    """Why a part's file cannot be used, by its header alone; None if it can, or is a tokenizer's."""
    found = described_as(path, role)
    return found.problem if found is not None else None


def look(settings: Settings) -> tuple[Found, ...]:
    """Everything of interest in the model folders that the user named."""
    return scan(settings.models_folders, headers_memory(settings))


def headers_memory(settings: Settings) -> Path:
    """Where it is remembered what headers said."""
    return settings.weights_folder / "prepared" / "headers.json"


def cached_file(file: WeightFile) -> Path | None:
    """A row's single file in the local Hugging Face cache."""
    return _cached(file.repo, file.patterns[0])


def offers(report: WeightsReport, settings: Settings) -> list[tuple[Found, Message]]:
    """What the model folders hold for this model or one like it, and whether it is used, or why not."""
    variables = {row.role: env_name(row.setting) for row in (*report.model.files, *TOKENIZERS)}
    return [
        (found, _standing(found, report, variables[found.role])) for found in look(settings) if found.role in variables
    ]


def _standing(found: Found, report: WeightsReport, variable: str) -> Message:
    if found.problem is not None:
        return found.problem
    if report.paths.get(found.role) == found.path:
        return message("offer_used")
    if found.kind == OTHER_LORA:
        return message("offer_other_lora")
    if not found.fits(report.sides):
        return message("offer_unfit")
    if found.role == "transformer" and (found.variant == "schnell") == report.model.guided:
        return message("offer_other_model", name=_OTHER[report.model.guided])
    return message("offer_spare") if found.role in TOKENIZER_ROLES else message("offer_variable", variable=variable)


def needed_tokenizers(paths: dict[str, Path]) -> Iterator[WeightFile]:
    """The tokenizers that encoders need besides their own files: those that are single files, with none beside."""
    for row in TOKENIZERS:
        encoder = paths.get(row.role.removesuffix("_tokenizer"))
        if encoder is not None and encoder.is_file() and not _has_tokenizer(encoder.parent):
            yield row


def choose_model(settings: Settings) -> tuple[Model, Message]:
    """The model to start with and the reason: the one named, else flux-dev if complete, else the embedded one.

    If a variable points to a transformer of the other sort, with guidance instead of without or the reverse, the model
    is the one that the file really is.
    """
    if settings.name:
        return _as_it_is(get_model(settings.name), settings) or (get_model(settings.name), message("reason_as_asked"))
    if really := _as_it_is(MODELS["flux-dev"], settings):
        return really
    report = find_weights(MODELS["flux-dev"], settings)
    if report.complete:
        return report.model, message("reason_files_found")
    if settings.models_dir and "transformer" in report.missing:  # the folders may hold another FLUX.1
        for name in ("flux-krea-dev", "flux-schnell"):
            if find_weights(MODELS[name], settings).complete:
                return MODELS[name], message("reason_files_found")
    if not report.paths and settings.weights != "weights" and not os.path.isdir(settings.weights_folder):
        return MODELS[EMBEDDED], message("reason_no_folder", folder=settings.weights_folder)
    if not report.paths:
        return MODELS[EMBEDDED], message("reason_no_files")
    return MODELS[EMBEDDED], message("reason_lacks", files=", ".join(report.missing))


def _as_it_is(model: Model, settings: Settings) -> tuple[Model, Message] | None:
    """The other model whose transformer this model's variable points to, and the reason to use that."""
    file = next((file for file in model.files if file.role == "transformer"), None)
    value = getattr(settings, file.setting) if file is not None else None
    place = _pointed(value) if value else None
    if file is None or place is None:
        return None
    path = _part(place, file, model.variant)
    if path is None or not _is_other_sort(path, model):
        return None
    other = MODELS["flux-dev" if model.variant == "schnell" else "flux-schnell"]
    return other, message("reason_really", variable=env_name(file.setting), path=path.name, name=other.name)


def _is_other_sort(path: Path, model: Model) -> bool:
    """Whether a transformer has no guidance though the model has it, or the reverse; not if it cannot be read."""
    found = next((each for each in describe(path) if each.role == "transformer"), None)
    return found is not None and found.problem is None and (found.variant != "schnell") != model.guided


def names_flux_dev(settings: Settings) -> bool:
    """Whether the user pointed at any part of FLUX.1-dev, so that silently using the embedded model would be wrong."""
    return any(getattr(settings, file.setting) for file in MODELS["flux-dev"].files)


def holds_transformer(settings: Settings) -> bool:
    """Whether the model folders hold a FLUX.1 that can be used, so that the embedded model would be a surprise."""
    return any(found.role == "transformer" and found.problem is None for found in look(settings))


def _find(
    file: WeightFile,
    model: Model,
    settings: Settings,
    transformer: Path | None,
    elsewhere: tuple[Found, ...],
    sides: dict[str, int],
) -> Path | Message:
    variable, value = env_name(file.setting), getattr(settings, file.setting)
    if value:
        place = _pointed(value)
        if place is None:
            return message("missing_variable", role=file.role, variable=variable, value=value)
        path = _part(place, file, model.variant if file.role == "transformer" else "", sides)
        if path is None:
            return message("missing_in_variable", role=file.role, variable=variable, value=value)
        if file.role == "transformer" and _is_other_sort(path, model):
            return message("missing_really", role=file.role, variable=variable, path=path, name=_OTHER[model.guided])
        return path
    if file.role == "transformer" and (mislaid := _under_other_variables(model, settings)):
        return mislaid
    if transformer is not None and transformer.is_dir() and file.role in FLUX_FOLDERS:
        sibling = transformer.parent / FLUX_FOLDERS[file.role]
        if sibling.is_dir():
            return sibling
    if chosen := best(elsewhere, file.role, sides, model.variant if file.role == "transformer" else ""):
        return chosen.path
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


_OTHER = {True: "flux-schnell", False: "flux-dev"}  # the model without guidance for one with it, and the reverse


def _under_other_variables(model: Model, settings: Settings) -> Path | None:
    """The transformer of this model's sort that a variable of the other sort points to."""
    for other in MODELS.values():
        value = getattr(settings, other.files[0].setting) if other.files and other.guided != model.guided else None
        place = _pointed(value) if value else None
        path = _part(place, other.files[0], other.variant) if place else None
        if path is not None and _is_other_sort(path, other):
            return path
    return None


def _find_tokenizer(
    row: WeightFile, settings: Settings, elsewhere: tuple[Found, ...], sides: dict[str, int]
) -> Path | None:
    """A tokenizer in the model folders, in the weights folder, or in the Hugging Face cache, with the encoder or
    alone.
    """
    if chosen := best(elsewhere, row.role, sides):
        return chosen.path
    name = {"clip_tokenizer": "tokenizer", "t5_tokenizer": "tokenizer_2"}[row.role]
    whole = _cached(DEV, None)
    places = [settings.weights_folder / row.local, settings.weights_folder / "FLUX.1-dev" / name]
    places += [whole / name] if whole else []
    places += [cached] if (cached := _cached(row.repo, None)) else []
    return next((place for place in places if _has_tokenizer(place)), None)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _pointed(value: str) -> Path | None:
    """Where a variable points: a path that exists, or the snapshot of a repository in the Hugging Face cache."""
    path = given_path(value)
    if os.path.exists(path):  # not for a name that no disk takes either
        return path
    return _cached(value, None) if re.fullmatch(r"[\w.-]+/[\w.-]+", value) else None


def _part(place: Path, file: WeightFile, variant: str, sides: Mapping[str, int] = MappingProxyType({})) -> Path | None:
    """A part in the place that its variable points to, which may be a folder of several; None if it is not there.

    A transformer of the variant comes before others. Of what cannot be used whoever reads it says why.
    """
    if not place.is_dir():
        return place
    folder = _inside(place, file.role)
    whole = file.role not in ONE_FILE and (model_files(folder) or _holds(folder))
    if whole and {each.role for each in describe(folder)} & {file.role, ""}:
        return folder
    published = file.patterns[0]
    for path in (place / published, place / Path(published).name):
        if len(file.patterns) == 1 and path.is_file():
            return path
    there = scan((place,))
    found = (variant and best(there, file.role, sides, variant)) or best(there, file.role, sides)
    if found:
        return found.path
    if file.role not in ONE_FILE and (folder != place or (folder / "config.json").is_file()):
        return folder
    return there[0].path if len(there) == 1 and not there[0].role else None


def _inside(path: Path, role: str) -> Path:
    """The folder of `role` inside a whole diffusers folder, or the path itself."""
    name = {"transformer": "transformer", **FLUX_FOLDERS}.get(role)
    return path / name if name and path.is_dir() and (path / name).is_dir() else path


def _holds(folder: Path) -> bool:
    """Whether a folder has its configuration, all parts of its weights, and no unfinished download."""
    files = {path.name for path in folder.glob("*") if path.is_file()}  # a link may lead nowhere
    needed: set[str] = set()
    for index in folder.glob("*.index.json"):
        # Whoever reads a damaged one says what is wrong.
        with contextlib.suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            named = json.loads(index.read_bytes())["weight_map"].values()
            needed |= {name for name in named if isinstance(name, str)}
    return (
        "config.json" in files
        and any(name.endswith((".safetensors", ".bin")) for name in files)
        and not any(name.endswith(".part") for name in files)
        and needed <= files
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
