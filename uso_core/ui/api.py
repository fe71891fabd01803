"""What programs may call: /generate, /settings_from_image and /models, over HTTP, gradio_client and MCP."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from PIL import Image

from uso_core.catalog.locate import find_weights
from uso_core.catalog.loras import find_loras, named_lora, turbo_lora
from uso_core.catalog.models import MODELS, Model, get_model
from uso_core.errors import RequestError, UsoError
from uso_core.request import GenerationRequest, Result, asks
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.png import read_request
from uso_core.ui.form import STYLES, Status, request_of
from uso_core.ui.inputs import ImageInput, NumberInput, refusal
from uso_core.ui.language import in_english
from uso_core.ui.run import follow
from uso_core.ui.services import Services
from uso_core.ui.temporary_files import PREVIEW_SECONDS

PRIVATE_SECONDS = 4.0  # during which a private image can be fetched after the run
MEANING = """Makes images from a prompt, an optional content image and up to four style images.

A content image gives the subject; with an empty prompt also the layout. Style images set the look of the result. Pass
images as files, as http(s) addresses, or as base64."""

Reply = tuple[list[str], dict[str, Any] | None, Status, Any]  # images, settings, status, preview


class Page(gr.Blocks):
    """Fills up a short call of /generate by position, since null stands for every default.

    Other short calls are refused in a sentence; Gradio would send everything back that came.
    """

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        wanted = len(block_fn.inputs)
        if block_fn.api_name == "generate" and inputs:
            inputs.extend([None] * (wanted - len(inputs)))
        if len(inputs) < wanted:
            raise RequestError("call_unfit", reason=f"{len(inputs)} values by position, of {wanted}")


def build(services: Services) -> None:
    """Adds the endpoints to the page under construction, invisibly."""
    known = parameters(GenerationRequest)
    _endpoint(
        _generate(services, known), "generate", [each.component() for each in known],
        [
            gr.File(label="images: PNG files, each with its request inside", file_count="multiple", visible=False),
            gr.JSON(label="settings: all of them, with model, device, dtype, seconds and seeds", visible=False),
            gr.JSON(label="status: text and percent, while running and at the end", visible=False),
            gr.Image(label="preview: a small image while running", format="png", type="pil", visible=False),
        ],
    )  # fmt: skip
    image = ImageInput(label="A PNG made by this program.", type="filepath", image_mode=None, visible=False)
    _endpoint(settings_from_image, "settings_from_image", [image], [gr.JSON(label="settings", visible=False)])
    _endpoint(_models(services), "models", [], [gr.JSON(label="models", visible=False)])


def _endpoint(function: Callable[..., Any], name: str, inputs: list[Any], outputs: list[Any]) -> None:
    # Without a queue nothing would be streamed; the engine, which also queues, sets the limit.
    gr.on([], function, inputs, outputs, api_name=name, concurrency_limit=None, show_progress="hidden")


@dataclass(frozen=True)
class ApiParameter:
    """One parameter of /generate. A caller may pass null for any of them to get the default."""

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
        return gr.Textbox(**options)


# Callers may pass parameters by position: add new ones after these.
ORDER = (
    "prompt", "content", "style_1", "style_2", "style_3", "style_4", "width", "height", "seed", "images", "steps",
    "guidance", "content_size", "schedule", "keep_size", "content_strength", "style_1_strength", "style_2_strength",
    "style_3_strength", "style_4_strength", "fast", "model", "private", "loras", "turbo",
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


def _generate(services: Services, known: list[ApiParameter]) -> Callable[..., Iterator[Reply]]:
    """The function of /generate; Gradio reads parameters from its signature, their meaning from its docstring."""

    def generate(*given: Any) -> Iterator[Reply]:
        *values, request = given
        named = dict(zip((each.name for each in known), values, strict=True))
        keep_nothing, session = bool(named.pop("private")), request.session_hash or ""
        owner = uuid4().hex  # a caller may have several calls at once
        try:
            row = switchable(services.engine, services.settings, named.pop("model"))
            history, visitor = services.stores(request).history, services.visitor(request)
            # Named nowhere: its decoded images would stay as long as it waits.
            asked = request_of(
                _with_loras({**named, "model": row.name}, row, services.settings), None, services.settings.background
            )
            job = services.engine.submit(asked, not keep_nothing, visitor)
            keep = partial(services.passing.add, owner) if keep_nothing else history.add
            show = partial(services.passing.preview, owner)
            yield from _replies(in_english(follow(job, services.sessions, session, keep)), show)
        except UsoError as error:
            raise refusal(error) from None
        finally:
            services.passing.forget(owner, after_seconds=PRIVATE_SECONDS if keep_nothing else PREVIEW_SECONDS)

    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [inspect.Parameter(each.name, plain, default=each.default) for each in known]
    request = inspect.Parameter("request", plain, default=None, annotation=gr.Request)  # Gradio fills it in
    generate.__signature__ = inspect.Signature([*signature, request])  # type: ignore[attr-defined]
    generate.__annotations__ = {"request": gr.Request}
    lines = "\n".join(f"    {each.name}: {each.meaning}" for each in known)
    generate.__doc__ = f"{MEANING}\n\nParameters:\n{lines}\n"
    return generate


def _with_loras(values: dict[str, Any], model: Model, settings: Settings) -> dict[str, Any]:
    """The values with their LoRAs looked up by name, and what Turbo sets; raises `RequestError` for an unknown one."""
    texts = [each for each in str(values.pop("loras") or "").split(",") if each.strip()]
    loras = [named_lora(each, settings) for each in texts]
    if values.pop("turbo"):
        lora, turbo = turbo_lora(model, settings)
        loras = [lora, *(each for each in loras if each.sha256 != lora.sha256)]
        given = {name: value for name, value in values.items() if value is not None}
        values = values | {"steps": turbo.steps, "guidance": turbo.guidance} | given
    return {**values, "loras": tuple(loras)}


def _replies(updates: Iterator[Any], show: Callable[[Image.Image], str]) -> Iterator[Reply]:
    """The API's replies to a run, with a file for each preview.

    At least two come per second, so that a disconnected caller is noticed.
    """
    made: list[str] = []
    results: list[Result] = []
    status: Status = {"text": "", "percent": 0}
    for update in updates:
        preview = None
        if update is not None:
            status = update.status
            preview = show(update.preview) if update.preview is not None else None
            if update.path is not None:
                made.append(str(update.path))
                results.append(update.result)
        yield list(made), _record(results), status, preview
    yield list(made), _record(results), status, None


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
