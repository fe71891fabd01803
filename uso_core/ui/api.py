"""What programs may call: /generate, /settings_from_image and /models, over HTTP, gradio_client and MCP alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_function_description

from uso_core.catalog.locate import find_weights
from uso_core.catalog.models import MODELS, Model, get_model
from uso_core.errors import RequestError, UsoError
from uso_core.request import SCHEDULES, Result
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.history import History
from uso_core.storage.png import read_request
from uso_core.ui.form import STYLES, Status, request_of
from uso_core.ui.inputs import ImageInput, NumberInput, refusal
from uso_core.ui.language import in_english
from uso_core.ui.run import Sessions, follow
from uso_core.ui.temporary_files import PrivateImages

Reply = tuple[list[str], dict[str, Any] | None, Status, Any]  # images, settings, status, preview


def build(
    engine: Engine, history: History, settings: Settings, private_images: PrivateImages, sessions: Sessions
) -> None:  # fmt: skip
    """Adds the endpoints to the page under construction; nothing of them is seen on it."""
    generate = _generate(engine, history, settings, private_images, sessions)
    _endpoint(
        generate, "generate", _generate_inputs(get_function_description(generate)[1]),
        [
            gr.File(label="images: PNG files with their request inside", file_count="multiple", visible=False),
            gr.JSON(label="settings: all of them, with model, device, dtype, seconds and seeds", visible=False),
            gr.JSON(label="status: text and percent, while it runs and at its end", visible=False),
            gr.Image(label="preview: a small one while it runs", format="png", type="pil", visible=False),
        ],
    )  # fmt: skip
    image = ImageInput(label="A PNG made by this program.", type="filepath", image_mode=None, visible=False)
    _endpoint(settings_from_image, "settings_from_image", [image], [gr.JSON(label="settings", visible=False)])
    _endpoint(_models(engine, settings), "models", [], [gr.JSON(label="models", visible=False)])


def _endpoint(function: Callable[..., Any], name: str, inputs: list[Any], outputs: list[Any]) -> None:
    # Without a queue nothing would be streamed; the limit is the engine's, which queues too.
    gr.on([], function, inputs, outputs, api_name=name, concurrency_limit=None, show_progress="hidden")


def _generate(
    engine: Engine, history: History, settings: Settings, private_images: PrivateImages, sessions: Sessions
) -> Callable[..., Iterator[Reply]]:  # fmt: skip
    def generate(
        prompt: str = "", content: str | None = None, style_1: str | None = None, style_2: str | None = None,
        style_3: str | None = None, style_4: str | None = None, width: float | None = None,
        height: float | None = None, seed: float | None = None, images: float = 1, steps: float | None = None,
        guidance: float | None = None, content_size: float | None = None, schedule: str = SCHEDULES[0],
        keep_size: bool = False, content_strength: float = 1, style_1_strength: float = 1,
        style_2_strength: float = 1, style_3_strength: float = 1, style_4_strength: float = 1,
        fast: bool = False, model: str | None = None, private: bool = False,
        request: gr.Request = None,  # Gradio fills it in
    ) -> Iterator[Reply]:  # fmt: skip
        """Makes images from a prompt, a content image or none, and up to four style images.

        With a content image its subject is kept; with an empty prompt too its layout. Style images decide how the
        result looks. Give images as files, as http(s) addresses, or as base64.

        Parameters:
            prompt: What is to be seen, as a natural sentence; may be empty.
            content: The image whose subject is kept.
            style_1: An image that decides how the result looks.
            style_2: A second style, blended with the first.
            style_3: A third style.
            style_4: A fourth style.
            width: Pixels, floored to a multiple of 16; null for the model's own.
            height: Pixels, floored to a multiple of 16; null for the model's own.
            seed: Image j uses seed + j; null or -1 draws one.
            images: How many images to make, with seeds running on.
            steps: Denoising steps; null for the model's own.
            guidance: How strongly the prompt is followed; null for the model's own.
            content_size: Long side in pixels to which the content image is resized; null for the model's own.
            schedule: uso as published, or flux as in ComfyUI.
            keep_size: Whether the result takes the content image's shape instead of width and height.
            content_strength: 0 as if the content image were not there, 1 as trained, up to 2.
            style_1_strength: 0 as if style 1 were not there, 1 as trained, up to 2.
            style_2_strength: 0 as if style 2 were not there, 1 as trained, up to 2.
            style_3_strength: 0 as if style 3 were not there, 1 as trained, up to 2.
            style_4_strength: 0 as if style 4 were not there, 1 as trained, up to 2.
            fast: Whether steps in which little changes are left out: sooner done, and a slightly other image.
            model: A name from /models; null for the one at work.
            private: Whether nothing is kept: not in the history, and the files only until the caller has gone.
        """
        values = {name: value for name, value in locals().items() if name in parameters}
        try:
            row = switchable(engine, settings, model)
            own = {"width": row.size, "height": row.size, "steps": row.steps, "guidance": row.guidance,
                   "content_size": row.content_size}  # fmt: skip
            values |= {name: default for name, default in own.items() if values[name] is None}
            job = engine.submit(request_of({**values, "model": row.name}), previews=True)
            session = request.session_hash or ""
            keep = partial(private_images.add, session) if private else history.add
            yield from _replies(in_english(follow(job, sessions, session, keep)))
        except UsoError as error:
            raise refusal(error) from None

    parameters = set(get_function_description(generate)[1]) - {"request"}
    return generate


def _replies(updates: Iterator[Any]) -> Iterator[Reply]:
    """The API's replies to a run; one at least twice a second, so that a caller who has gone is noticed."""
    made: list[str] = []
    results: list[Result] = []
    status: Status = {"text": "", "percent": 0}
    for update in updates:
        preview = None
        if update is not None:
            status, preview = update.status, update.preview
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


def settings_from_image(image: str | None) -> dict[str, Any]:
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


def _models(engine: Engine, settings: Settings) -> Callable[[], list[dict[str, Any]]]:
    def models() -> list[dict[str, Any]]:
        """Lists the models: what each needs, offers and permits, and which one is at work."""
        return [describe(model, engine, settings) for model in MODELS.values()]

    return models


def describe(model: Model, engine: Engine, settings: Settings) -> dict[str, Any]:
    """A model of the catalog for programs: its sizes in pixels, what is missing of its files, whether it is loaded."""
    report = find_weights(model, settings)
    loaded = engine.loaded
    here = loaded if loaded is not None and loaded.model.name == model.name else None
    return {
        "name": model.name,
        "title": model.title,
        "at_work": engine.model.name == model.name,
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
        "note": model.note,
    }


def licences(model: Model) -> list[str]:
    """The licences of a model's parts, the transformer's first."""
    return list(dict.fromkeys(row.licence for row in model.files)) or ["Apache 2.0"]


def switchable(engine: Engine, settings: Settings, name: str | None) -> Model:
    """The model asked for; raises `RequestError` where visitors may not switch, `SettingsError` for an unknown one."""
    if name in (None, "", engine.model.name):
        return engine.model
    model = get_model(str(name))
    if not settings.may_switch:
        raise RequestError("may_not_switch", current=engine.model.name, model=model.name)
    find_weights(model, settings).require()
    return model


def _generate_inputs(words: dict[str, str]) -> list[Any]:
    """A component for each parameter of /generate, out of sight; what is None there has the model's own default."""
    numbers = {"images": 1, "content_strength": 1, **{f"style_{number}_strength": 1 for number in range(1, STYLES + 1)}}
    inputs: list[Any] = []
    for name, meaning in words.items():
        options: dict[str, Any] = {"label": meaning, "visible": False}
        if name == "request":
            continue
        if name == "prompt":
            inputs.append(gr.Textbox(value="", **options))
        elif name == "model":
            inputs.append(gr.Textbox(value=None, **options))
        elif name == "schedule":
            inputs.append(gr.Textbox(value=SCHEDULES[0], **options))
        elif name in ("keep_size", "fast", "private"):
            inputs.append(gr.Checkbox(value=False, **options))
        elif name == "content" or name.removeprefix("style_").isdigit():
            inputs.append(ImageInput(type="filepath", image_mode=None, **options))
        else:
            inputs.append(NumberInput(value=numbers.get(name), **options))
    return inputs
