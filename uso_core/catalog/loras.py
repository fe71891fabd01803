"""LoRAs beside USO's on this disk: by name, with their hashes, and the step-distilled ones of the catalog. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from uso_core.catalog.files import PEFT_CONFIG, PEFT_FILE, expect, inspect
from uso_core.catalog.locate import cached_file, find_weights, headers_memory
from uso_core.catalog.models import MODELS, Model, Turbo
from uso_core.catalog.scan import OTHER_LORA, USO_LORA, Found, scan
from uso_core.errors import RequestError
from uso_core.request import GenerationRequest, LoRA
from uso_core.settings import Settings, given_path

FOLDER = "loras"  # in the weights folder
_STRENGTH = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+))")
_HASH_CHUNK = 1 << 20


def find_loras(settings: Settings) -> dict[str, Path]:
    """The LoRAs by name: those in `loras` in the weights folder, those of the model folders, and the turbo ones."""
    found: dict[str, Path] = {}
    for each in _scanned(settings):
        ours = _own_folder(settings) in each.path.parents
        if each.role == "lora" and each.problem is None and (each.kind == OTHER_LORA or ours):
            found.setdefault(_name(each, found), each.path)
    for model in MODELS.values():
        for turbo in model.turbos:
            path = _turbo_path(turbo, settings, found)
            if path is not None and path not in found.values():
                found.setdefault(turbo.name, path)
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def named_lora(text: str, settings: Settings, paths: bool = False) -> LoRA:
    """The LoRA that `NAME` or `NAME:STRENGTH` names; with `paths` also one in any file.

    Raises `RequestError` if there is none, `WeightsError` if the file of that name is none that can be used.
    """
    asked, strength = parsed(text)
    if not asked:
        raise RequestError("lora_no_name")
    known = find_loras(settings)
    given = given_path(asked)
    if paths and asked not in known and os.path.isfile(given):
        return LoRA(given.stem, digest(given), strength, given)
    if name := _listed(asked, known):
        return LoRA(name, digest(known[name]), strength, known[name])
    if paths and os.path.isdir(given):
        raise RequestError("lora_is_folder", path=given)
    for each in _scanned(settings):
        if each.path.stem == asked.removesuffix(each.path.suffix):
            expect(inspect(each.path), OTHER_LORA, USO_LORA)  # says why it cannot be used
    close = difflib.get_close_matches(asked, known, 1)
    raise RequestError(
        "no_such_lora", hint="no_such_lora_meant" if close else "no_such_lora", name=asked, meant="".join(close),
        folder=settings.weights_folder / FOLDER,
    )  # fmt: skip


def parsed(text: str) -> tuple[str, float]:
    """A name and a strength out of `NAME:STRENGTH`; the strength is 1 if there is none."""
    found = _STRENGTH.fullmatch(text.strip())
    return (found[1].strip(), float(found[2])) if found else (text.strip(), 1.0)


def located(request: GenerationRequest, settings: Settings) -> GenerationRequest:
    """The request with the path of each LoRA; raises `RequestError` naming one that is not here, or is another file."""
    if not request.loras:
        return request
    known: dict[str, Path] | None = None
    loras = []
    for lora in request.loras:
        if lora.path is None:
            known = find_loras(settings) if known is None else known
            path = known.get(_listed(lora.name, known) or "")
            here = path is not None and path.is_file()  # a look through the folders serves for some seconds
            if path is None or not here or digest(path) != lora.sha256:
                key = "lora_changed" if here else "lora_missing"
                raise RequestError(key, name=lora.name, folder=settings.weights_folder / FOLDER)
            lora = dataclasses.replace(lora, path=path)
        loras.append(lora)
    return dataclasses.replace(request, loras=tuple(loras))


def refuse_own(request: GenerationRequest, model: Model, settings: Settings) -> None:
    """Raises `RequestError` if one of a `located` request's LoRAs is the model's own, which is always applied.

    By content: others have its name and its shapes.
    """
    own = find_weights(model, settings).paths.get("lora") if request.loras else None
    if own is None or not own.is_file():
        return
    size = own.stat().st_size
    for lora in request.loras:
        if lora.path is not None and lora.path.stat().st_size == size and digest(own) == lora.sha256:
            raise RequestError("lora_is_own", name=lora.name)


def turbo_lora(model: Model, settings: Settings) -> tuple[LoRA, Turbo]:
    """The step-distilled LoRA for a model that is on this disk; raises `RequestError` with how to get one."""
    if not model.turbos:
        raise RequestError("no_turbo", model=model.name)
    known = find_loras(settings)
    for turbo in model.turbos:
        path = _turbo_path(turbo, settings, known)
        if path is not None:
            name = next((name for name, each in known.items() if each == path), turbo.name)
            return LoRA(name, digest(path), turbo.strength, path), turbo
    raise RequestError("turbo_missing", model=model.name)


def found_turbos(model: Model, settings: Settings) -> dict[str, Path]:
    """Where the step-distilled LoRAs of a model are, by role."""
    known = find_loras(settings)
    paths = {turbo.file.role: _turbo_path(turbo, settings, known) for turbo in model.turbos}
    return {role: path for role, path in paths.items() if path is not None}


def digest(path: Path) -> str:
    """The sha256 of a file's content, and of PEFT's configuration beside it, which holds the LoRA's scale.

    Raises `RequestError` if it cannot be read.
    """
    config = path.with_name(PEFT_CONFIG)
    parts = [path, config] if path.name == PEFT_FILE and config.is_file() else [path]
    try:
        found = [part.stat() for part in parts]
        return _digest(tuple(parts), *((each.st_size, each.st_mtime_ns) for each in found))
    except OSError as error:
        raise RequestError("file_unreadable", path=path, reason=error.strerror) from None


def unchanged(request: GenerationRequest, settings: Settings) -> None:
    """Raises `RequestError` naming a LoRA whose file was written over since the request named it."""
    for lora in request.loras:
        if lora.path is not None and digest(lora.path) != lora.sha256:
            raise RequestError("lora_changed", name=lora.name, folder=settings.weights_folder / FOLDER)


@lru_cache(maxsize=256)
def _digest(parts: tuple[Path, ...], *sizes_and_times: tuple[int, int]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _own_folder(settings: Settings) -> Path:
    return settings.weights_folder.absolute() / FOLDER


def _scanned(settings: Settings) -> Iterator[Found]:
    """What lies in our folder for LoRAs and in the model folders."""
    for folder in (_own_folder(settings), *settings.models_folders):
        if folder.is_dir():
            yield from scan((folder,), headers_memory(settings))


def _name(found: Found, taken: dict[str, Path]) -> str:
    """A file's name without its ending; with as many of its folders' as no other has already."""
    parts = found.path.with_suffix("").parts
    names = ("/".join(parts[-count:]) for count in range(1, len(parts)))
    return next((name for name in names if taken.get(name, found.path) == found.path), str(found.path))


def _listed(name: str, known: dict[str, Path]) -> str | None:
    """The name in `known` that is this one, or this file's, however accents are stored: macOS takes letters apart."""
    if name in known:
        return name
    composed = unicodedata.normalize("NFC", name.removesuffix(".safetensors"))
    return next((each for each in known if unicodedata.normalize("NFC", each) == composed), None)


def _turbo_path(turbo: Turbo, settings: Settings, known: dict[str, Path]) -> Path | None:
    if settings.turbo_lora:
        given = given_path(settings.turbo_lora)
        role = "hyper" if "hyper" in given.stem.lower() else "turbo"
        return given if os.path.isfile(given) and turbo.file.role == role else None
    local = settings.weights_folder / turbo.file.local
    names = {turbo.name.lower(), Path(turbo.file.local).stem.lower()} - {"diffusion_pytorch_model"}
    listed = next((path for name, path in known.items() if Path(name).name.lower() in names), None)
    return local if local.is_file() else listed or cached_file(turbo.file)
