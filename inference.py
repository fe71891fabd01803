"""The command line: python inference.py --prompt P --image_paths CONTENT STYLE...

The first path is the content image ("" for none), all others are style images. Exit codes: 0 done, 2 something the
user can fix (two lines on stderr, `error: ...` and `hint: ...`), 1 a fault of ours, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uso_core import images
from uso_core.catalog.locate import choose_model, names_flux_dev, with_name
from uso_core.catalog.models import Model
from uso_core.errors import OutputError, RequestError, UsageError, UsoError, exit_code
from uso_core.events import Cancelled, Event, Failed, ImageReady, Loading, Step
from uso_core.request import GenerationRequest, Sampling, asks, settled
from uso_core.runtime.engine import Engine
from uso_core.settings import Parser, add_arguments, load_settings, parse_flag
from uso_core.storage.files import save_image

DEFAULTS = {"seed": 3407}  # the reference's default, which differs from a request's own
TYPES = {"whole": int, "number": float}
MAX_EVAL_BYTES = 50 * 2**20
SETTINGS = (
    "name",
    "device",
    "dtype",
    "offload",
    "vram_limit",
    "compile",
    "weights",
    "models_dir",
)  # those with a flag here


@dataclass(frozen=True)
class Task:
    """One prompt with its images' paths as given, and the stem of its output files in the save path."""

    prompt: str
    image_paths: tuple[str, ...]
    stem: str
    root: Path


def build_parser(kind: type[Any] = GenerationRequest) -> Parser:
    """The command line: a request class's fields with a flag, and some extra options."""
    parser = Parser(prog="inference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_request_arguments(parser, kind)
    add("--image_paths", nargs="*", default=[], metavar="PATH", help='content image ("" for none), then style images')
    add("--eval_json_path", type=Path, metavar="FILE", help="JSON list of {prompt, image_paths, save_dir?}")
    add("--save_path", type=Path, default=Path("output/inference"), metavar="FOLDER", help="default: %(default)s")
    text = "put the input images beside the result"
    add("--concat_refs", nargs="?", const=True, default=False, type=parse_flag, help=text)
    add("--model_type", dest="name", metavar="NAME", help="same as --name")
    add_arguments(parser, *SETTINGS)
    return parser


def add_request_arguments(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """Adds a flag per field that has one; not given means None: the model's own value, or the field's default."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)} | DEFAULTS
    sampling = asks(Sampling)
    for name, ask in sorted(asks(kind).items(), key=lambda each: each[0] in sampling):  # the prompt comes first
        if not ask.flag:
            continue
        shown = "the model's" if ask.model else defaults[name] if name not in ("prompt", "style_strengths") else None
        text = ask.help if shown is None or ask.kind == "flag" else f"{ask.help}; default: {shown}"
        options: dict[str, Any] = {"dest": name, "default": DEFAULTS.get(name), "help": text}
        if ask.kind == "flag":
            options |= {"nargs": "?", "const": True, "type": parse_flag}
        elif ask.kind == "list":
            options |= {"nargs": "*", "type": float, "metavar": "S"}
        elif ask.kind in TYPES:
            options["type"] = TYPES[ask.kind]
        parser.add_argument(ask.flag, choices=ask.choices or None, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return run(build_parser().parse_args(argv))
    except UsoError as error:
        return exit_code(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    settings = load_settings({name: getattr(args, name) for name in SETTINGS})
    if settings.name is None and names_flux_dev(settings):
        settings = with_name(settings, "flux-dev")
    model, reason = choose_model(settings)
    tasks = read_tasks(args)
    requests = [build_request(task, args, model) for task in tasks]
    engine = Engine(settings)
    for task, request in zip(tasks, requests, strict=True):
        engine.check(request)
        _writable(args.save_path, task.stem)
    notes = [f"{model.title} ({reason})"] if reason.key != "reason_as_asked" else []
    notes += [f"{model.name}: {model.note}"] if model.note else []
    with Bar(notes) as bar:
        for task, request in zip(tasks, requests, strict=True):
            _generate(engine, task, request, args, bar)
    return 0


def read_tasks(args: argparse.Namespace) -> list[Task]:
    """The prompts of an eval file, or the one on the command line."""
    if args.eval_json_path is None:
        if args.prompt is None:
            raise UsageError("no_prompt_given")
        return [Task(args.prompt, tuple(args.image_paths), "0", Path())]
    path = args.eval_json_path
    try:
        if path.stat().st_size > MAX_EVAL_BYTES:
            raise RequestError("eval_too_large", path=path, most=MAX_EVAL_BYTES)
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError("file_unreadable", path=path, reason=error.strerror) from None
    except (ValueError, RecursionError):
        raise RequestError("eval_no_json", hint="eval_format", path=path) from None
    if not isinstance(entries, list) or not entries:
        raise RequestError("eval_no_list", hint="eval_format", path=path)
    return [_task(entry, index, path) for index, entry in enumerate(entries)]


def build_request(task: Task, args: argparse.Namespace, model: Model) -> GenerationRequest:
    """The request of one task, its images read; the model's own values where a flag was not given."""
    content, *styles = [images.open_image(task.root / path) if path else None for path in (task.image_paths or ("",))]

    return GenerationRequest(
        **settled(GenerationRequest, vars(args) | {"prompt": task.prompt, "content": content}, model),
        styles=tuple(style for style in styles if style is not None),
        model=model.name,
    )


class Bar:
    """A tqdm bar with seconds per step on a terminal; elsewhere only the notes, once the first step has succeeded."""

    def __init__(self, notes: list[str]) -> None:
        from tqdm import tqdm

        self._notes = notes
        self._bar: Any = tqdm(disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, event: Event | None) -> None:
        if isinstance(event, Loading):
            self._at(event.fraction, 1.0, str(event.message), "{desc}: {bar} {percentage:3.0f}%")
        elif isinstance(event, Step):
            while self._notes:
                self.say(self._notes.pop(0))
            done = (event.image - 1) * event.steps + event.step
            text = f"step {event.step} of {event.steps}, {event.seconds_per_step:.2f} s/step"
            self._at(done, event.steps * event.images, text, "{desc} {bar} [{elapsed}<{remaining}]")

    def say(self, words: str) -> None:
        """A line on stderr, above the bar."""
        self._bar.write(words, file=sys.stderr)

    def _at(self, done: float, total: float, text: str, form: str) -> None:
        if self._bar.disable:
            return
        if self._bar.total != total:
            self._bar.reset(total)
        self._bar.bar_format, self._bar.n = form, done
        self._bar.set_description_str(text, refresh=True)


def _generate(engine: Engine, task: Task, request: GenerationRequest, args: argparse.Namespace, bar: Bar) -> None:
    job = engine.submit(request)
    try:
        for event in job.events(patience=0.5):
            bar.show(event)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Cancelled):
                raise KeyboardInterrupt
            if isinstance(event, ImageReady):
                if event.unread and event.index == 0:
                    bar.say(f"the prompt is too long for the model; not read: {' '.join(event.unread.split())}")
                path = _save(event, task, request, args)
                print(path, flush=True)
    finally:  # the worker must stop before the interpreter exits: it may be inside a kernel
        job.cancel()
        job.wait()


def _save(event: ImageReady, task: Task, request: GenerationRequest, args: argparse.Namespace) -> Path:
    image = event.image
    if args.concat_refs:
        image = images.beside_each_other([image, *(each.image for each in request.input_images if each.image)])
    made = event.result.request
    record = {  # the reference's names, then all of ours
        "prompt": task.prompt,
        "image_paths": list(task.image_paths),
        "width": made.width,
        "height": made.height,
        "num_steps": made.steps,
        "guidance": made.guidance,
        "seed": event.result.seed,
        "content_ref": made.content_size,
        "model_type": event.result.model,
        "uso": event.result.to_dict(),
    }
    return save_image(image, event.result, args.save_path / f"{task.stem}_{event.index}.png", record)


def _task(entry: object, index: int, path: Path) -> Task:
    hint = "eval_entry"
    if not isinstance(entry, dict):
        raise RequestError("entry_no_object", hint=hint, index=index, path=path)
    prompt, paths, stem = entry.get("prompt"), entry.get("image_paths", []), entry.get("save_dir", str(index))
    if not isinstance(prompt, str) or not isinstance(stem, str) or not stem:
        raise RequestError("entry_no_prompt", hint=hint, index=index, path=path)
    if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
        raise RequestError("entry_image_paths", hint=hint, index=index, path=path, paths=paths)
    if any("\ud800" <= character <= "\udfff" for character in "".join((stem, *paths))):
        raise RequestError("entry_half_character", hint=hint, index=index, path=path)
    if Path(stem).is_absolute() or ".." in Path(stem).parts or "\0" in stem:
        raise RequestError("entry_outside", hint=hint, index=index, path=path, stem=stem)
    return Task(prompt, tuple(paths), stem, path.parent)


def _writable(folder: Path, stem: str) -> None:
    """Raises `OutputError` before anything is computed if the task's files cannot be written."""
    hint = "other_save_path"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / f"{stem}_0.json").stat()  # a name that is too long fails here
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError("file_not_writable", hint=hint, path=folder / stem, reason=reason) from None
    if not os.access(folder, os.W_OK):
        raise OutputError("folder_not_writable", hint=hint, folder=folder)


if __name__ == "__main__":
    code = main()
    if code == 130:  # after a second interrupt the worker may still be inside PyTorch, which aborts when Python exits
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
