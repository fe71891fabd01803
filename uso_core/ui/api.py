"""What programs may call: /generate, /grid, /settings_from_image and /models, over HTTP, gradio_client and MCP."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from PIL import Image

from uso_core.catalog.locate import find_weights
from uso_core.catalog.loras import find_loras, named_lora, turbo_lora
from uso_core.catalog.models import MODELS, Model, get_model
from uso_core.errors import RequestError, UsoError
from uso_core.grid import AXES, Axis, cells, parse_axis, sheet
from uso_core.messages import message
from uso_core.request import GenerationRequest, Result, asks
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.files import save_image
from uso_core.storage.png import read_request
from uso_core.ui.form import STYLES, Status, request_of
from uso_core.ui.inputs import ImageInput, NumberInput, TextInput, refusal
from uso_core.ui.language import in_english
from uso_core.ui.run import Update, follow
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import passing_path

ANSWER_SECONDS = 300.0  # during which the files of an answer can be fetched after the run
PRIVATE_SECONDS = 4.0  # during which a private image can be fetched after the run
MEANING = """Makes images from a prompt, an optional content image and up to four style images.

A content image gives the subject; with an empty prompt also the layout. Style images set the look of the result. Pass
images as files, as http(s) addresses, or as base64."""

GRID_MEANING = """Makes a comparison grid: one image for each pair of values, and a labelled contact sheet of them.

All else is as in generate; all images have one seed, unless seeds are varied. The sheet is kept for five minutes."""

Reply = tuple[list[str], dict[str, Any] | None, Status, Any]  # images, settings, status, preview
GridReply = tuple[str | None, list[str], list[dict[str, Any]], Status, Any]  # the sheet, then the same


class Page(gr.Blocks):
    """Fills up a short call of /generate by position, since null stands for every default.

    Other short calls are refused in a sentence; Gradio would send everything back that came.
    """

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        wanted = len(block_fn.inputs)
        named = block_fn.api_name in ("generate", "grid", "settings_from_image", "models")
        if named and len(inputs) > wanted:
            raise RequestError("call_unfit", reason=f"{len(inputs)} values by position, of {wanted}")
        if block_fn.api_name in ("generate", "grid") and inputs:
            inputs.extend([None] * (wanted - len(inputs)))
        if len(inputs) < wanted:
            raise RequestError("call_unfit", reason=f"{len(inputs)} values by position, of {wanted}")


def build(services: Services) -> None:
    """Adds the endpoints to the page under construction, invisibly."""
    known = parameters(GenerationRequest)
    settings = gr.JSON(label="settings: all of them, with model, device, dtype, seconds and seeds", visible=False)
    images, status, preview = _shown()
    outputs = [images, settings, status, preview]
    _endpoint(_generate(services, known), "generate", [each.component() for each in known], outputs)
    axes = grid_parameters(GenerationRequest)
    sheet = gr.File(label="sheet: a PNG with the first cell's request inside, growing", visible=False)
    settings = gr.JSON(label="settings: of each image, with its row and column from 0", visible=False)
    images, status, preview = _shown()
    outputs = [sheet, images, settings, status, preview]
    _endpoint(_grid(services, axes), "grid", [each.component() for each in axes], outputs)
    image = ImageInput(label="A PNG made by this program.", type="filepath", image_mode=None, visible=False)
    _endpoint(settings_from_image, "settings_from_image", [image], [gr.JSON(label="settings", visible=False)])
    _endpoint(_models(services), "models", [], [gr.JSON(label="models", visible=False)])


def _shown() -> tuple[Any, Any, Any]:
    """What a run shows: images, status and preview."""
    return (
        gr.File(label="images: PNG files, each with its request inside", file_count="multiple", visible=False),
        gr.JSON(label="status: text and percent, while running and at the end", visible=False),
        gr.Image(label="preview: a small image while running", format="png", type="pil", visible=False),
    )


def _endpoint(function: Callable[..., Any], name: str, inputs: list[Any], outputs: list[Any]) -> None:
    # Without a queue nothing would be streamed; the engine, which also queues, sets the limit.
    gr.on([], function, inputs, outputs, api_name=name, concurrency_limit=None, show_progress="hidden")


@dataclass(frozen=True)
class ApiParameter:
    """One parameter of /generate or /grid. A caller may pass null for any of them to get the default."""

    name: str
    kind: str  # as in `request.Ask`
    meaning: str
    default: Any = None

    def component(self) -> Any:
        """The hidden component that receives it."""
        options: dict[str, Any] = {"label": self.meaning, "value": self.default, "visible": False}
        if self.kind == "image":
            return ImageInput(type="filepath", image_mode=None, label=self.meaning, visible=False)
        if self.kind == "flag":
            return gr.Checkbox(**options)
        if self.kind in ("whole", "number"):
            return NumberInput(**options)
        return TextInput(**options)


# Callers may pass parameters by position: add new ones after these.
ORDER = (
    "prompt", "content", "style_1", "style_2", "style_3", "style_4", "width", "height", "seed", "images", "steps",
    "guidance", "content_size", "schedule", "keep_size", "content_strength", "style_1_strength", "style_2_strength",
    "style_3_strength", "style_4_strength", "fast", "model", "private", "loras", "turbo",
    "sampler",
)  # fmt: skip


def parameters(kind: type[Any]) -> list[ApiParameter]:
    """The parameters of /generate: a request class's fields, with one per style, then the model and privacy."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    known: dict[str, ApiParameter] = {}
    for name, ask in asks(kind).items():
        if ask.kind == "list":
            continue
        default = None if ask.model else defaults[name]
        own = "; null for the model's own" if ask.model else ""
        known[name] = ApiParameter(name, ask.kind, f"{ask.help[:1].upper()}{ask.help[1:]}{own}.", default)
    strength = asks(kind)["content_strength"]
    for number in range(1, STYLES + 1):
        which = "An image that sets the look of the result" if number == 1 else f"Style {number}, blended in"
        known[f"style_{number}"] = ApiParameter(f"style_{number}", "image", f"{which}.")
        meaning = strength.help.replace("the content image", f"style {number}")
        name = f"style_{number}_strength"
        known[name] = ApiParameter(name, "number", f"{meaning}.", defaults["content_strength"])
    known["model"] = ApiParameter("model", "text", "A name from /models; null for the current one.")
    private = "Whether to keep nothing: no history, no previews, and files only for a few seconds after the end."
    known["private"] = ApiParameter("private", "flag", private, False)
    loras = "LoRAs beside USO's, as NAME:STRENGTH separated by commas; a strength of 1 may be left out."
    known["loras"] = ApiParameter("loras", "text", loras, "")
    turbo = "Whether to use a step-distilled LoRA: 8 steps, where steps is null."
    known["turbo"] = ApiParameter("turbo", "flag", turbo, False)
    return [known[name] for name in (*ORDER, *(name for name in known if name not in ORDER)) if name in known]


def grid_parameters(kind: type[Any]) -> list[ApiParameter]:
    """The parameters of /grid: both axes, and those of /generate except `images`, since each cell has one."""
    names = ", ".join(AXES)
    text = "as style_strength=0, 1 or guidance=1..4 or style (each style image alone). Names: "
    across = ApiParameter("across", "text", f"What to vary from left to right, {text}{names}.", "")
    down = ApiParameter("down", "text", "The same from top to bottom; empty for nothing.", "")
    return [across, down, *(each for each in parameters(kind) if each.name != "images")]


@dataclass(frozen=True)
class _Call:
    """One call that makes images: who asks, for what, and what becomes of the images."""

    services: Services
    request: gr.Request
    private: bool
    owner: str = field(default_factory=lambda: uuid4().hex)  # a caller may have several calls at once

    def asked(self, named: dict[str, Any]) -> GenerationRequest:
        """The request described by named values."""
        services = self.services
        row = switchable(services.engine, services.settings, named.pop("model"))
        # Named nowhere: its decoded images would stay as long as it waits.
        return request_of(
            _with_loras({**named, "model": row.name}, row, services.settings), None, services.settings.background
        )

    def followed(self, asked: GenerationRequest) -> Iterator[Update | None]:
        """The updates of a job for a request; raises what `submit` and `follow` raise."""
        services = self.services
        job = services.engine.submit(asked, not self.private, services.visitor(self.request, program=True))
        yield from in_english(follow(job, services.sessions, self.request.session_hash or "", self.keep))

    def keep(self, image: Image.Image, result: Result) -> Path:
        if self.private:
            return self.services.passing.add(self.owner, image, result)
        path = self.services.stores(self.request, program=True).history.add(image, result)
        return self.services.passing.copy(self.owner, path)

    def show(self, preview: Image.Image | None) -> str | None:
        return None if preview is None else self.services.passing.preview(self.owner, preview)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Errors as replies; afterwards what is not kept goes."""
        try:
            yield
        except UsoError as error:
            raise refusal(error) from None
        finally:
            self.services.passing.forget(self.owner, after_seconds=PRIVATE_SECONDS if self.private else ANSWER_SECONDS)


def _generate(services: Services, known: list[ApiParameter]) -> Callable[..., Iterator[Reply]]:
    """The function of /generate."""

    def generate(*given: Any) -> Iterator[Reply]:
        named, call = _called(services, known, given)
        with call.refusing():
            asked = call.asked(named)
            yield from _replies(call.followed(asked), call.show, _notes(asked))

    return _described(generate, known, MEANING)


def _grid(services: Services, known: list[ApiParameter]) -> Callable[..., Iterator[GridReply]]:
    """The function of /grid."""

    def grid(*given: Any) -> Iterator[GridReply]:
        named, call = _called(services, known, given)
        with call.refusing():
            axes = [(named.pop(name) or "") for name in ("across", "down")]
            asked = call.asked({**named, "images": 1})
            across = parse_axis(axes[0], asked.styles)
            down = parse_axis(axes[1], asked.styles) if axes[1].strip() else None
            rows = cells(asked, across, down)
            services.engine.check(*chain.from_iterable(rows))
            yield from _grid_replies(rows, across, down, call, _notes(asked))

    return _described(grid, known, GRID_MEANING)


def _grid_replies(
    rows: list[list[GenerationRequest]], across: Axis, down: Axis | None, call: _Call, notes: str
) -> Iterator[GridReply]:
    """The replies to a grid, cell by cell; ends early where a cell is stopped."""
    paper, made, settings = None, [], []
    done: dict[tuple[int, int], Image.Image] = {}
    first: Result | None = None
    wide, count = len(across.values), len(rows) * len(across.values)
    status: Status = {"text": "", "percent": 0}
    for place, cell in enumerate(chain.from_iterable(rows)):
        row, column = divmod(place, wide)
        for update in call.followed(cell):
            preview = None
            if update is not None:
                percent = round((100 * place + update.status["percent"]) / count)
                words = message("grid_cell", cell=place + 1, cells=count, words=str(update.status["text"]))
                status = {"text": str(words), "percent": percent}
                preview = call.show(update.preview)
                if update.path is not None and update.result is not None:
                    made.append(str(update.path))
                    settings.append({"row": row, "column": column, **update.result.to_dict()})
                    with Image.open(update.path) as image:
                        done[row, column] = image.copy()
                    first = first or update.result
                    paper = _saved(sheet(done, across, down), first, call)
            yield paper, list(made), list(settings), status, preview
        if (row, column) not in done:
            return
    yield paper, list(made), list(settings), {**status, "text": f"{status['text']}{notes}"}, None


def _saved(contact: Image.Image, first: Result, call: _Call) -> str:
    path = save_image(contact, first, passing_path("grid.png"), beside=False)
    call.services.passing.own(call.owner, path)
    return str(path)


def _called(services: Services, known: list[ApiParameter], given: tuple[Any, ...]) -> tuple[dict[str, Any], _Call]:
    """A call's values by name, except whether it is private, and the call."""
    *values, request = given
    named = dict(zip((each.name for each in known), values, strict=True))
    try:
        _check(known, named)
        return named, _Call(services, request, _flag("private", named.pop("private")))
    except UsoError as error:
        raise refusal(error) from None


def _check(known: list[ApiParameter], named: dict[str, Any]) -> None:
    """Raises `RequestError` for a text that is none, and for the strength of an image that is not there."""
    for each in known:
        value = named[each.name]
        if each.kind not in ("image", "flag", "whole", "number") and not isinstance(value, str | None):
            raise RequestError("no_text", name=each.name, value=value)
        image = each.name.removesuffix("_strength")
        if image != each.name and image in named and named[image] is None and value not in (None, 1):
            raise RequestError("strength_without", name=each.name, value=value, image=image)


def _flag(name: str, value: object) -> bool:
    """Null is false; raises `RequestError` for a text, which Python would take for true."""
    if value is not None and not isinstance(value, bool):
        raise RequestError("no_flag", name=name, value=value)
    return bool(value)


def _described(function: Callable[..., Any], known: list[ApiParameter], meaning: str) -> Callable[..., Any]:
    """The function with its parameters, which Gradio reads from its signature, and their meaning from its docstring."""
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [inspect.Parameter(each.name, plain, default=each.default) for each in known]
    request = inspect.Parameter("request", plain, default=None, annotation=gr.Request)  # Gradio fills it in
    function.__signature__ = inspect.Signature([*signature, request])  # type: ignore[attr-defined]
    function.__annotations__ = {"request": gr.Request}
    lines = "\n".join(f"    {each.name}: {each.meaning}" for each in known)
    function.__doc__ = f"{meaning}\n\nParameters:\n{lines}\n"
    return function


def _with_loras(values: dict[str, Any], model: Model, settings: Settings) -> dict[str, Any]:
    """The values with their LoRAs looked up by name, and what Turbo sets; raises `RequestError` for an unknown one."""
    texts = [each for each in (values.pop("loras") or "").split(",") if each.strip()]
    loras = [named_lora(each, settings) for each in texts]
    if _flag("turbo", values.pop("turbo")):
        lora, turbo = turbo_lora(model, settings)
        loras = [lora, *(each for each in loras if each.sha256 != lora.sha256)]
        given = {name: value for name, value in values.items() if value is not None}
        values = values | turbo.values | given
    return {**values, "loras": tuple(loras)}


def _notes(asked: GenerationRequest) -> str:
    """What of the images' files was not taken, after a space; empty for nothing."""
    return "".join(f" {note}" for note in dict.fromkeys(str(n) for each in asked.input_images for n in each.notes))


def _replies(updates: Iterator[Any], show: Callable[[Image.Image | None], str | None], notes: str) -> Iterator[Reply]:
    """The API's replies to a run, with a file for each preview; the last one has the notes too.

    At least two come per second, so that a disconnected caller is noticed.
    """
    made: list[str] = []
    results: list[Result] = []
    status: Status = {"text": "", "percent": 0}
    for update in updates:
        preview = None
        if update is not None:
            status = update.status
            preview = show(update.preview)
            if update.path is not None:
                made.append(str(update.path))
                results.append(update.result)
        yield list(made), _record(results), status, preview
    yield list(made), _record(results), {**status, "text": f"{status['text']}{notes}"}, None


def _record(results: list[Result]) -> dict[str, Any] | None:
    """The settings of a run as JSON values; None before its first image."""
    if not results:
        return None
    first = results[0]
    return {
        **first.to_dict(),
        "images": len(results),
        "seeds": [result.seed for result in results],
        "seconds": round(sum(result.seconds for result in results), 3),
    }


def settings_from_image(image: str | None = None) -> dict[str, Any]:
    """Reads back the settings of a PNG that this program made.

    Parameters:
        image: The PNG as a file, as an http(s) address, or as base64.
    """
    try:
        if image is None:
            raise RequestError("no_image_given")
        return read_request(Path(image)).to_dict()
    except UsoError as error:
        raise refusal(error) from None


def _models(services: Services) -> Callable[[], list[dict[str, Any]]]:
    def models() -> list[dict[str, Any]]:
        """Lists the models: what each needs, offers and permits, and which one is current."""
        return [describe(model, services.engine, services.settings) for model in MODELS.values()]

    return models


def describe(model: Model, engine: Engine, settings: Settings) -> dict[str, Any]:
    """A model of the catalog for programs: its sizes in pixels, its missing files, whether it is loaded."""
    report, status = find_weights(model, settings), engine.status()
    here = next((each for each in status.workers if each is not None and each.model is model), None)
    return {
        "name": model.name,
        "title": model.title,
        "at_work": status.model is model,
        "loaded": here is not None,
        "device": here.device if here else None,
        "dtype": here.dtype if here else None,
        "complete": report.complete,
        "missing": list(report.missing),
        "download": f"python weights/downloader.py --variant {model.name}" if report.missing and model.files else None,
        "bytes": sum(row.bytes for row in model.files) or None,
        "licences": licences(model),
        "size": model.size,
        "smallest_side": model.sides[0],
        "largest_side": model.sides[1],
        "steps": model.steps,
        "sampler": model.sampler,
        "guidance": model.guidance,
        "content_size": model.content_size,
        "loras": list(find_loras(settings)),
        "note": str(model.note) if model.note else "",
    }


def licences(model: Model) -> list[str]:
    """The licences of a model's parts, the transformer's first."""
    return list(dict.fromkeys(row.licence for row in model.files)) or ["Apache 2.0"]


def switchable(engine: Engine, settings: Settings, name: str | None) -> Model:
    """The requested model; raises `RequestError` if visitors may not switch, `SettingsError` for an unknown one."""
    at_work = engine.status().model
    if name in (None, "", at_work.name):
        return at_work
    model = get_model(str(name))
    if not settings.may_switch:
        raise RequestError("may_not_switch", current=at_work.name, model=model.name)
    find_weights(model, settings).require()
    return model
