"""The command line: python inference.py --prompt P --image_paths CONTENT STYLE...

The first path is the content image ("" for none), all others are style images. Exit codes: 0 done, 2 something the
user can fix (two lines on stderr, `error: ...` and `hint: ...`), 1 a fault of ours, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uso_core import images
from uso_core.catalog.locate import choose_model, find_weights, holds_transformer, names_flux_dev, with_name
from uso_core.catalog.loras import named_lora, turbo_lora
from uso_core.catalog.models import Model, get_model
from uso_core.errors import OutputError, UsageError, UsoError, exit_code
from uso_core.eval_file import Task, read_tasks
from uso_core.events import Cancelled, Event, Failed, ImageReady, Loading, Step
from uso_core.messages import message
from uso_core.request import GenerationRequest, Sampling, asks, settled
from uso_core.runtime.engine import Engine
from uso_core.settings import Parser, Settings, add_arguments, load_settings, parse_flag
from uso_core.storage.files import save_image
from uso_core.storage.numbered import place

DEFAULTS = {"seed": 3407}  # the reference's default, which differs from a request's own
TYPES = {"whole": int, "number": float}
SETTINGS = (
    "name",
    "executor",
    "workers",
    "device",
    "dtype",
    "offload",
    "vram_limit",
    "compile",
    "weights",
    "models_dir",
    "background",
)  # those with a flag here


def build_parser(kind: type[Any] = GenerationRequest) -> Parser:
    """The command line: a request class's fields with a flag, and some extra options."""
    parser = Parser(prog="inference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_request_arguments(parser, kind)
    add("--image_paths", nargs="*", default=[], metavar="PATH", help='content image ("" for none), then style images')
    add(
        "--eval_json_path",
        type=Path,
        metavar="FILE",
        help="JSON list, or JSON Lines, of "
        "{prompt, image_paths, save_dir} and fields of a request: seed, width, steps, style_strengths, ...",
    )
    add("--save_path", type=Path, default=Path("output/inference"), metavar="FOLDER", help="default: %(default)s")
    text = "put the input images beside the result"
    add("--lora", action="append", default=[], metavar="FILE[:STRENGTH]",
        help="a LoRA beside USO's, by file or by its name in weights/loras; repeatable")  # fmt: skip
    add("--turbo", action="store_true", help="8 steps with a step-distilled LoRA (weights/downloader.py --only turbo)")
    add("--concat_refs", nargs="?", const=True, default=False, type=parse_flag, help=text)
    add("--overwrite", action="store_true", help="replace files of the same name; else each image gets a new number")
    add("--resume", action="store_true", help="skip images that lie in the save path already, made by the same request")
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
    if settings.name is None and model.folder is not None and holds_transformer(settings):
        find_weights(get_model("flux-dev"), settings).require()  # says what it lacks besides
    tasks = tasks_of(args)
    requests = [build_request(task, args, get_model(task.model) if task.model else model, settings) for task in tasks]
    engine = Engine(settings)
    for task, request in zip(tasks, requests, strict=True):
        engine.check(request)
        _writable(args.save_path, task.stem)
    notes = [f"{model.title} ({reason})"] if reason.key != "reason_as_asked" else []
    notes += [f"{model.name}: {model.note}"] if model.note else []
    notes += dict.fromkeys(str(note) for request in requests for image in request.input_images for note in image.notes)
    taken: set[Path] = set()
    with Bar(notes) as bar:
        for task, request in zip(tasks, requests, strict=True):
            _generate(engine, task, request, args, bar, taken)
    return 0


def tasks_of(args: argparse.Namespace) -> list[Task]:
    """The tasks of an eval file, or the one on the command line."""
    if args.eval_json_path is not None:
        return read_tasks(args.eval_json_path)
    if args.prompt is None:
        raise UsageError("no_prompt_given")
    return [Task(args.prompt, tuple(args.image_paths), "0", Path())]


def build_request(task: Task, args: argparse.Namespace, model: Model, settings: Settings) -> GenerationRequest:
    """The request of one task, its images read: its own values, else the flags', else the model's."""
    content, *styles = [
        images.open_image(task.root / path, background=settings.background) if path else None
        for path in (task.image_paths or ("",))
    ]
    values = vars(args) | task.values | {"prompt": task.prompt, "content": content}
    loras = [named_lora(each, settings, paths=True) for each in (args.lora if task.loras is None else task.loras)]
    if args.turbo if task.turbo is None else task.turbo:
        lora, turbo = turbo_lora(model, settings)
        loras = [lora, *(each for each in loras if each.sha256 != lora.sha256)]
        given = {name: value for name, value in values.items() if value is not None}
        values |= {"steps": turbo.steps, "guidance": turbo.guidance} | given
    return GenerationRequest(
        **settled(GenerationRequest, values, model),
        styles=tuple(style for style in styles if style is not None),
        model=model.name,
        loras=tuple(loras),
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


def _generate(
    engine: Engine, task: Task, request: GenerationRequest, args: argparse.Namespace, bar: Bar, taken: set[Path]
) -> None:
    """Makes and saves a task's images; `taken` are the paths of this run, to which it adds its own."""
    left = list(range(request.images))
    if args.resume:
        for number in range(request.images):
            _, there = place(args.save_path, task.stem, number, request, taken)
            if there is not None:
                taken.add(there)
                left.remove(number)
                bar.say(str(message("done_before", path=there)))
                print(there, flush=True)
    if len(left) < request.images and request.seed is not None:
        parts = [(number, dataclasses.replace(request, seed=request.seed + number, images=1)) for number in left]
    else:
        parts = [(0, request)]
    for first, part in parts:
        job = engine.submit(part)
        try:
            for event in job.events(patience=0.5):
                bar.show(event)
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Cancelled):
                    raise KeyboardInterrupt
                if isinstance(event, ImageReady):
                    for sentence in event.unread.told if event.index == 0 else ():
                        bar.say(str(sentence))
                    print(_save(event, task, request, first + event.index, args, bar, taken), flush=True)
        finally:  # the worker must stop before the interpreter exits: it may be inside a kernel
            job.cancel()
            job.wait()


def _save(
    event: ImageReady,
    task: Task,
    request: GenerationRequest,
    number: int,
    args: argparse.Namespace,
    bar: Bar,
    taken: set[Path],
) -> Path:
    image = event.image
    if args.concat_refs:
        image = images.beside_each_other([image, *(each.image for each in request.input_images if each.image)])
    path, _ = place(args.save_path, task.stem, number, request, taken, args.overwrite)
    first = args.save_path / f"{task.stem}_{number}.png"
    if path != first:
        bar.say(str(message("name_taken", name=first.name, path=path)))
    taken.add(path)
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
    return save_image(image, event.result, path, record)


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
