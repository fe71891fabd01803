"""Eval files: a JSON list, or JSON Lines, of {prompt, image_paths?, save_dir?, and any field of a request}."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uso_core.errors import RequestError, SettingsError
from uso_core.messages import message
from uso_core.request import GenerationRequest, asks
from uso_core.text_files import bounded, parsed_json_lines

log = logging.getLogger(__name__)

MAX_BYTES = 50 * 2**20
PLACES = ("prompt", "image_paths", "save_dir", "loras", "turbo")
MEANT = dict.fromkeys(("content", "content_image", "style", "styles", "style_images", "image"), "image_paths")
MODEL_NAMES = ("model", "model_type", "name")


@dataclass(frozen=True)
class Task:
    """One prompt with its images' paths as given, and the stem of its output files in the save path.

    `values` are the fields of the request that are its own, by name; `index` is its place in the eval file `file`.
    """

    prompt: str
    image_paths: tuple[str, ...]
    stem: str
    index: int
    file: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    loras: tuple[str, ...] | None = None  # as the flag --lora takes them; None: as for all
    turbo: bool | None = None

    @property
    def root(self) -> Path:
        """Where relative paths begin."""
        return self.file.parent if self.file else Path()

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is wrong with a request inside is told with the entry that asks for it."""
        if self.file is None:
            yield
        else:
            with _entry_named(self.index, self.file):
                yield


@contextmanager
def _entry_named(index: int, path: Path) -> Iterator[None]:
    try:
        yield
    except (RequestError, SettingsError) as error:
        if "index" in error.values:
            raise
        hint = "check_path" if error.hint_key == "check_start_path" else error.hint_key  # paths begin at the eval file
        values = error.values | {"index": index, "eval_file": path, "reason": error.problem}
        raise type(error)("entry_wrong", hint=hint, **values) from None


def read_tasks(path: Path) -> list[Task]:
    """The tasks of an eval file; raises `RequestError` naming the line that is no JSON, or the entry and its value.

    An entry may use the names of a request's fields or those of the command line's flags: `steps` or `num_steps`. A
    name that is close to one of these is refused; others, which data sets have, are logged.
    """
    try:
        data = bounded(path, MAX_BYTES)
    except OSError as error:
        raise RequestError("file_unreadable", path=path, reason=error.strerror) from None
    entries = parsed_json_lines(data, path)
    names = {*PLACES, *MODEL_NAMES, *asks(GenerationRequest)}
    wrapped = data.lstrip().startswith(b"{") and len(entries) == 1 and not names & {each.lower() for each in entries[0]}
    if not isinstance(entries, list) or wrapped:
        raise RequestError("eval_no_list", hint="eval_format", path=path)
    if not entries:
        raise RequestError("eval_empty", hint="eval_format", path=path)
    others: set[str] = set()
    tasks = []
    for index, entry in enumerate(entries):
        with _entry_named(index, path):
            tasks.append(_task(entry, index, path, others))
    if others:
        log.warning("%s", message("entries_unread", path=path, names=", ".join(sorted(others))))
    return tasks


def _task(entry: object, index: int, path: Path, others: set[str]) -> Task:
    hint = "eval_entry"
    if not isinstance(entry, dict):
        raise RequestError("entry_no_object", hint=hint, index=index, path=path)
    given = {name: value for name, value in entry.items() if value is not None}
    prompt, paths, stem = given.get("prompt"), given.get("image_paths", []), given.get("save_dir", str(index))
    if prompt is None and (other := next((name for name in given if name.lower() == "prompt"), None)):
        choices = ", ".join(PLACES)
        raise RequestError("entry_unknown", index=index, path=path, name=other, meant="prompt", choices=choices)
    if not isinstance(prompt, str) or not isinstance(stem, str) or not stem:
        raise RequestError("entry_no_prompt", hint=hint, index=index, path=path)
    if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
        raise RequestError("entry_image_paths", hint=hint, index=index, path=path, paths=paths)
    for each in (stem, *paths):
        if any("\ud800" <= character <= "\udfff" for character in each):
            raise RequestError("entry_half_character", hint=hint, index=index, path=path)
        if any(character < " " for character in each.replace("\0", "")):
            raise RequestError("entry_backslash", index=index, path=path, text=each)
    if Path(stem).is_absolute() or ".." in Path(stem).parts or "\0" in stem:
        raise RequestError("entry_outside", hint=hint, index=index, path=path, stem=stem)
    loras, turbo = given.get("loras"), given.get("turbo")
    if not (loras is None or isinstance(loras, list) and all(isinstance(each, str) for each in loras)):
        raise RequestError("no_list", hint=hint, name="loras", value=loras)
    if not (turbo is None or isinstance(turbo, bool)):
        raise RequestError("no_flag", name="turbo", value=turbo)
    values, model = _fields(given, index, path, others)
    own = None if loras is None else tuple(loras)
    return Task(prompt, tuple(paths), stem, index, path, values, model, own, turbo)


def _fields(given: dict[str, Any], index: int, path: Path, others: set[str]) -> tuple[dict[str, Any], str | None]:
    """The entry's own fields of a request, and its model; names that mean nothing here are added to `others`."""
    fields = {name: ask for name, ask in asks(GenerationRequest).items() if ask.flag and name != "prompt"}
    names = {name: name for name in fields} | {ask.flag.lstrip("-"): name for name, ask in fields.items()}
    values: dict[str, Any] = {}
    model: str | None = None
    for name, value in given.items():
        if name in PLACES:
            continue
        if name in MODEL_NAMES:
            if not isinstance(value, str):
                raise RequestError("model_no_name", value=value)
            if model is not None:
                raise RequestError("json_twice", name=path, key=name)
            model = value
        elif name == "concat_refs":
            raise RequestError("entry_flag", hint="entry_flag", index=index, path=path, name=name)
        elif name not in names:
            known = [*PLACES, *names, *MODEL_NAMES]
            if meant := [MEANT[name]] if name in MEANT else difflib.get_close_matches(name, known, 1):
                choices = ", ".join((*PLACES, *fields))
                raise RequestError(
                    "entry_unknown", index=index, path=path, name=name, meant=meant[0], choices=choices
                )  # fmt: skip
            others.add(name)
        elif names[name] in values:
            raise RequestError("json_twice", name=path, key=name)
        else:
            values[names[name]] = value
    strengths = values.get("style_strengths", [])
    if not isinstance(strengths, list):
        raise RequestError("no_list", hint="eval_entry", name="style_strengths", value=strengths)
    return values, model
