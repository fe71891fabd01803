"""The command line: python inference.py --prompt P --image_paths CONTENT STYLE...

The first path is the content image ("" for none), all others are style images. Exit codes: 0 done, 2 something the
user can fix (two lines on stderr, `error: ...` and `hint: ...`), 1 a fault of ours, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from uso_core import images
from uso_core.catalog.locate import choose_model, find_weights, holds_transformer, names_flux_dev, with_name
from uso_core.catalog.loras import named_lora, turbo_lora
from uso_core.catalog.models import Model, get_model
from uso_core.errors import OutputError, RequestError, UsageError, UsoError, exit_code
from uso_core.eval_file import Task, read_tasks
from uso_core.events import Cancelled, Event, Failed, ImageReady, Loading, Step
from uso_core.grid import AXES, Axis, cells, parse_axis, sheet
from uso_core.messages import Message, message
from uso_core.prompts_file import read_prompts
from uso_core.request import GenerationRequest, InputImage, Result, Sampling, asks, settled
from uso_core.runtime.engine import Engine
from uso_core.settings import Parser, Settings, add_arguments, given_path, load_settings, parse_flag
from uso_core.storage.files import save_image
from uso_core.storage.numbered import claimed, place
from uso_core.storage.png import FACTS, read_request
from uso_core.wildcards import expand

DEFAULTS = {"seed": 3407}  # the reference's default, which differs from a request's own
TYPES = {"whole": int, "number": float}
MOST_AXES = 2  # of a grid
TOGETHER = (  # flags of which one would have no effect beside the other
    ("--prompts_file", "--eval_json_path"),
    ("--prompts_file", "--prompt"),
    ("--eval_json_path", "--prompt"),
    ("--eval_json_path", "--image_paths"),
    ("--grid", "--eval_json_path"),
    ("--grid", "--concat_refs"),
    ("--grid", "--num_images_per_prompt"),
)
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
    add("--image_paths", nargs="*", action="extend", default=[], metavar="PATH",
        help='content image ("" for none), then style images')  # fmt: skip
    add(
        "--eval_json_path",
        type=given_path,
        metavar="FILE",
        help="JSON list, or JSON Lines, of "
        "{prompt, image_paths, save_dir} and fields of a request: seed, width, steps, style_strengths, ...",
    )
    add("--prompts_file", type=given_path, metavar="FILE",
        help="text with a prompt a line; blank lines and those beginning with # are left out")  # fmt: skip
    add("--grid", action="append", default=[], metavar="NAME=VALUES",
        help="vary a value across, a second one down, and make a contact sheet: style_strength=0..2/0.5, guidance=2,4 "
        f"or style (each style image alone); names: {', '.join(AXES)}")  # fmt: skip
    add("--save_path", type=_folder, default=Path("output/inference"), metavar="FOLDER", help="default: %(default)s")
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


def _folder(text: str) -> Path:
    if not text.strip():  # of a shell's variable that is not set
        raise argparse.ArgumentTypeError("it is empty: name a folder, or leave it out")
    return given_path(text)


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
            options |= {"nargs": "*", "action": "extend", "type": float, "metavar": "S"}
        elif ask.kind in TYPES:
            options["type"] = TYPES[ask.kind]
        parser.add_argument(ask.flag, choices=ask.choices or None, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the run
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")
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
    pieces = pieces_of(args, model, settings)
    engine = Engine(settings)
    for piece in pieces:
        with piece.task.named():
            engine.check(*piece.requests)
        _writable(args.save_path, f"{piece.task.stem}_grid" if piece.across else piece.task.stem)
    notes = [f"{model.title} ({reason})"] if reason.key != "reason_as_asked" else []
    notes += [f"{model.name}: {model.note}"] if model.note else []
    notes += dict.fromkeys(str(note) for piece in pieces for note in piece.notes(model))
    with Bar(notes) as bar:
        maker = Maker(engine, args, bar)
        for piece in pieces:
            maker.make(piece)
    return 0


@dataclass(frozen=True)
class Piece:
    """What a task makes: one request; or a grid's, cell by cell, with its axes."""

    task: Task
    requests: tuple[GenerationRequest, ...]
    across: Axis | None = None
    down: Axis | None = None

    def notes(self, model: Model) -> Iterator[Message]:
        """What of its images is not taken, and sizes that its model was not made for."""
        for request in self.requests:
            for image in request.input_images:
                yield from image.notes
            own, (width, height) = get_model(request.model or model.name), (request.width, request.height)
            low, high = own.sides
            if not low <= min(width, height) <= max(width, height) <= high:
                yield message("size_beyond", title=own.title, low=low, high=high, width=width, height=height)


def pieces_of(args: argparse.Namespace, model: Model, settings: Settings) -> list[Piece]:
    """What a command line asks for; raises `UsageError` for flags that exclude each other."""
    _refuse_together(args)
    if args.eval_json_path is not None:
        pieces = []
        for task in read_tasks(args.eval_json_path):
            with task.named():
                own = get_model(task.model) if task.model else model
                pieces.append(Piece(task, (build_request(task, args, own, settings),)))
        return pieces
    if args.prompts_file is not None:
        prompts = read_prompts(args.prompts_file)
    elif args.prompt is not None:
        prompts = expand(args.prompt)
    else:
        raise UsageError("no_prompt_given")
    tasks = [Task(prompt, tuple(args.image_paths), str(index), index) for index, prompt in enumerate(prompts)]
    first = build_request(tasks[0], args, model, settings)
    if len(tasks) > 1:  # all have one seed
        first = first.with_seed()
    return [_piece(task, dataclasses.replace(first, prompt=task.prompt), args.grid) for task in tasks]


def _piece(task: Task, request: GenerationRequest, grid: Sequence[str]) -> Piece:
    if not grid:
        return Piece(task, (request,))
    across, *rest = [parse_axis(each, request.styles) for each in grid]
    down = rest[0] if rest else None
    return Piece(task, tuple(chain.from_iterable(cells(request, across, down))), across, down)


def _refuse_together(args: argparse.Namespace) -> None:
    if len(args.grid) > MOST_AXES:
        raise UsageError("grid_axes", count=len(args.grid), most=MOST_AXES)
    given = {
        "--eval_json_path": args.eval_json_path is not None,
        "--prompts_file": args.prompts_file is not None,
        "--prompt": args.prompt is not None,
        "--image_paths": bool(args.image_paths),
        "--grid": bool(args.grid),
        "--concat_refs": args.concat_refs,
        "--num_images_per_prompt": (args.images or 1) > 1,
    }
    for one, other in TOGETHER:
        if given[one] and given[other]:
            raise UsageError("flags_together", one=one, other=other)


def build_request(task: Task, args: argparse.Namespace, model: Model, settings: Settings) -> GenerationRequest:
    """The request of one task, its images read: its own values, else the flags', else the model's."""
    content, *styles = [_opened(path, task, settings) if path else None for path in (task.image_paths or ("",))]
    values = vars(args) | task.values | {"prompt": task.prompt, "content": content}
    strength = values.get("content_strength")
    if content is None and strength not in (None, 1):
        raise RequestError("strength_without", name="content_strength", value=strength, image="content")
    loras = [named_lora(each, settings, paths=True) for each in (args.lora if task.loras is None else task.loras)]
    if args.turbo if task.turbo is None else task.turbo:
        lora, turbo = turbo_lora(model, settings)
        loras = [lora, *(each for each in loras if each.sha256 != lora.sha256)]
        given = {name: value for name, value in values.items() if value is not None}
        values |= turbo.values | given
    return GenerationRequest(
        **settled(GenerationRequest, values, model),
        styles=tuple(style for style in styles if style is not None),
        model=model.name,
        loras=tuple(loras),
    )


def _opened(path: str, task: Task, settings: Settings) -> InputImage:
    """An image of a task; a large one is not kept decoded while others are read, made or wait."""
    if re.match(r"\w+://", path):
        raise RequestError("image_address", address=path)
    return images.open_image(task.root / given_path(path), background=settings.background, aside=True)


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


class Maker:
    """Makes and saves images, under names that no other image of the run has."""

    def __init__(self, engine: Engine, args: argparse.Namespace, bar: Bar) -> None:
        self._engine, self._args, self._bar = engine, args, bar
        self._taken: set[Path] = set()

    def make(self, piece: Piece) -> None:
        """A piece's images, then its contact sheet, if it has one."""
        task = piece.task
        if piece.across is None:
            (request,) = piece.requests
            seeds = [None if request.seed is None else request.seed + number for number in range(request.images)]
            wanted = [dataclasses.replace(request, seed=seed, images=1) for seed in seeds]
            left = self._missing(task, wanted)
            if len(left) < request.images and request.seed is not None:
                for number in left:
                    self._run(task, wanted[number], number)
            else:
                self._run(task, request, 0)
            return
        made: dict[int, tuple[Path, Result]] = {}
        left = self._missing(task, piece.requests, made)
        for number in left:
            made |= self._run(task, piece.requests[number], number)
        self._save_sheet(piece, [made[number] for number in range(len(piece.requests))])

    def _missing(
        self, task: Task, wanted: Sequence[GenerationRequest], found: dict[int, tuple[Path, Result]] | None = None
    ) -> list[int]:
        """The numbers of the images that must be made; with `--resume` not those that are there."""
        left = list(range(len(wanted)))
        if not self._args.resume:
            return left
        for number, request in enumerate(wanted):
            there = place(self._args.save_path, task.stem, number, request, self._taken, beside=self._beside()).there
            if there is not None:
                self._taken.add(there)
                left.remove(number)
                self._bar.say(str(message("done_before", path=there)))
                _print(there)
                if found is not None:
                    found[number] = there, _result_of(there)
        return left

    def _run(self, task: Task, request: GenerationRequest, first: int) -> dict[int, tuple[Path, Result]]:
        """Makes a request's images, numbered from `first`."""
        made = {}
        job = self._engine.submit(request)
        try:
            for event in job.events(patience=0.5):
                self._bar.show(event)
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Cancelled):
                    raise KeyboardInterrupt
                if isinstance(event, ImageReady):
                    for sentence in event.unread.told if event.index == 0 and first == 0 else ():
                        self._bar.say(str(sentence))
                    path = self._save(event, task, request, first + event.index)
                    made[first + event.index] = path, event.result
                    _print(path)
        finally:  # the worker must stop before the interpreter exits: it may be inside a kernel
            job.cancel()
            job.wait()
        return made

    def _save(self, event: ImageReady, task: Task, request: GenerationRequest, number: int) -> Path:
        image = event.image
        if self._args.concat_refs:
            given = images.brought_back(request).input_images
            image = images.beside_each_other([image, *(each.image for each in given if each.image)])
        seed = None if request.seed is None else request.seed + event.index
        own = dataclasses.replace(request, seed=seed, images=1)
        with self._claimed(task.stem, number, own, self._beside()) as path:
            return save_image(image, event.result, path, _record(task, event.result) | self._beside())

    def _beside(self) -> dict[str, Any]:
        """What an image's record tells of its file beside the request."""
        return {"concat_refs": True} if self._args.concat_refs else {}

    def _save_sheet(self, piece: Piece, made: Sequence[tuple[Path, Result]]) -> None:
        """The contact sheet of saved images, with the first one's request inside."""
        across, down, wide = piece.across, piece.down, len(piece.across.values) if piece.across else 1
        assert across is not None
        shown = {}
        for number, (path, result) in enumerate(made):
            with Image.open(path) as image:  # of an earlier run, it may have its references beside it
                shown[divmod(number, wide)] = image.crop((0, 0, result.request.width, result.request.height))
        columns, rows = piece.requests[:wide], piece.requests[::wide]
        varied = {"grid": {"across": across.to_dict(columns), "down": down.to_dict(rows) if down else None}}
        result = made[0][1]
        with self._claimed(f"{piece.task.stem}_grid", 0, piece.requests[0], varied) as path:
            _print(save_image(sheet(shown, across, down), result, path, _record(piece.task, result) | varied))

    @contextlib.contextmanager
    def _claimed(self, stem: str, number: int, request: GenerationRequest, beside: dict[str, Any]) -> Iterator[Path]:
        """The path to write an image to; says so if it is not the first choice."""
        folder = self._args.save_path
        with claimed(partial(place, folder, stem, number, request, self._taken, self._args.overwrite, beside)) as path:
            first = folder / f"{stem}_{number}.png"
            if path != first:
                self._bar.say(str(message("name_taken", name=first.name, path=path)))
            self._taken.add(path)
            yield path


def _record(task: Task, result: Result) -> dict[str, Any]:
    """What stands beside an image: the reference's names, then all of ours."""
    made = result.request
    return {
        "prompt": task.prompt,
        "image_paths": list(task.image_paths),
        "width": made.width,
        "height": made.height,
        "num_steps": made.steps,
        "guidance": made.guidance,
        "seed": result.seed,
        "content_ref": made.content_size,
        "model_type": result.model,
        "uso": result.to_dict(),
    }


def _result_of(path: Path) -> Result:
    """The result of an image that an earlier run saved, from its PNG and the record beside it."""
    request, facts = read_request(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["uso"]
    device, dtype, seconds = (facts.get(name) for name in FACTS)
    return Result(request, request.seed or 0, request.model or "", str(device), str(dtype), seconds or 0.0)


def _print(path: Path) -> None:
    """Names an image on stdout, as long as anybody reads it."""
    try:
        print(path, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _writable(folder: Path, stem: str) -> None:
    """Raises `OutputError` before anything is computed if the task's files cannot be written."""
    hint, longest = "other_save_path", folder / f"{stem}_9999.json"  # a folder may hold many of one stem
    try:
        longest.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            longest.stat()  # a name that is too long fails here
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError("file_not_writable", hint=hint, path=folder / stem, reason=reason) from None
    if not os.access(longest.parent, os.W_OK):
        raise OutputError("folder_not_writable", hint=hint, folder=longest.parent)


if __name__ == "__main__":
    code = main()
    if code == 130:  # after a second interrupt the worker may still be inside PyTorch, which aborts when Python exits
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
