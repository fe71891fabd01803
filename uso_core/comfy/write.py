"""The current request as a ComfyUI workflow: in the frontend's format to drag into it, or in the API's to send.

Both come from one list of nodes, those of ComfyUI's own USO template.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from uso_core.comfy.image_names import IMAGE_NAME, IMAGE_SHA256, file_name
from uso_core.comfy.loras import BESIDE, is_uso
from uso_core.comfy.nodes import SIGNATURES
from uso_core.comfy.prompt_text import DYNAMIC, escaped
from uso_core.comfy.schedule import shifts
from uso_core.request import GenerationRequest, InputImage, LoRA, StoredStyle

MODEL_FILES = {  # role: ComfyUI's repackaged file
    "checkpoint": "flux1-dev-fp8.safetensors",
    "lora": "uso-flux1-dit-lora-v1.safetensors",
    "projector": "uso-flux1-projector-v1.safetensors",
    "siglip": "sigclip_vision_patch14_384.safetensors",
}
CHECKPOINTS = {"flux-schnell": {"checkpoint": "flux1-schnell-fp8.safetensors"}}  # other models in one checkpoint
TEMPLATE_MODELS = (None, "flux-dev", "flux-dev-fp8", *CHECKPOINTS)
_USO_FILES = "https://huggingface.co/Comfy-Org/USO_1.0_Repackaged/resolve/main/split_files"
DOWNLOADS = {  # file: folder under ComfyUI's models, and where the frontend offers to download it
    "flux1-dev-fp8.safetensors": ("checkpoints", "https://huggingface.co/Comfy-Org/flux1-dev/resolve/main"),
    "flux1-schnell-fp8.safetensors": ("checkpoints", "https://huggingface.co/Comfy-Org/flux1-schnell/resolve/main"),
    "uso-flux1-dit-lora-v1.safetensors": ("loras", f"{_USO_FILES}/loras"),
    "uso-flux1-projector-v1.safetensors": ("model_patches", f"{_USO_FILES}/model_patches"),
    "sigclip_vision_patch14_384.safetensors": (
        "clip_vision",
        "https://huggingface.co/Comfy-Org/sigclip_vision_384/resolve/main",
    ),
}
KEPT_LONG_SIDE = 1024
COUNTERPARTS = {"euler": "euler", "ab2": "lms"}  # of our samplers
T5_TOKENS = 512  # to which USO pads a prompt; ComfyUI pads FLUX's to 256
CACHE: dict[str, Any] = {
    "reuse_threshold": 0.2,
    "start_percent": 0.15,
    "end_percent": 0.95,
    "verbose": False,
}  # EasyCache's defaults
COLUMNS = ("Models", "Content image", "Style images", "Style", "Prompt", "Sampling", "Result")
NODE_WIDTH, COLUMN_WIDTH, TITLE_HEIGHT, ROW_HEIGHT, GAP = 320, 400, 30, 26, 30  # pixels on ComfyUI's canvas
TALL = {
    "LoadImage": 320,
    "CLIPTextEncode": 200,
    "PrimitiveStringMultiline": 200,
    "SaveImage": 400,
}  # nodes that show an image or a text field


class _Output(NamedTuple):
    """An output of a node on the sheet."""

    node: int
    slot: int


@dataclass(frozen=True)
class _Placed:
    """A node on the sheet: values and links by input name; `words` are about the image that it names."""

    kind: str
    column: int
    inputs: Mapping[str, Any]
    title: str | None = None
    words: Mapping[str, str] = field(default_factory=dict)


def export_workflow(request: GenerationRequest, model_files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A workflow in the frontend's format 0.4; a note on its canvas says what ComfyUI cannot do.

    `model_files` replaces file names of `MODEL_FILES` by role. Without a seed ComfyUI draws a new one each time.
    """
    sheet = _Sheet(request, model_files or {}).placed
    nodes, groups = _laid_out(sheet, "randomize" if request.seed is None else "fixed")
    links: list[list[Any]] = []
    for target, placed in enumerate(sheet, 1):
        for slot, one in enumerate(nodes[target - 1]["inputs"]):
            origin = placed.inputs[one["name"]]
            if isinstance(origin, _Output):
                output = nodes[origin.node - 1]["outputs"][origin.slot]
                one["link"] = len(links) + 1
                output["links"].append(one["link"])
                links.append([one["link"], origin.node, origin.slot, target, slot, output["type"]])
    nodes.append(_note(request, len(nodes) + 1))
    return {
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [80, 160]}},
        "version": 0.4,
    }


def export_api(request: GenerationRequest, model_files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The same in the API's format, to send to ComfyUI's /prompt under the key `prompt`."""
    prompt = {}
    for key, placed in enumerate(_Sheet(request, model_files or {}).placed, 1):
        inputs = {
            name: [str(value.node), value.slot] if isinstance(value, _Output) else value
            for name, value in placed.inputs.items()
        }
        meta = {"title": placed.title or placed.kind, **placed.words}
        prompt[str(key)] = {"class_type": placed.kind, "inputs": inputs, "_meta": meta}
    return prompt


class _Sheet:
    """The nodes, each after those that it needs; node n of the workflow is entry n - 1 of `placed`."""

    def __init__(self, request: GenerationRequest, model_files: Mapping[str, str]) -> None:
        self.placed: list[_Placed] = []
        self.request = request
        self.files = {**MODEL_FILES, **CHECKPOINTS.get(request.model or "", {}), **model_files}
        checkpoint = self.put("CheckpointLoaderSimple", 0, ckpt_name=self.files["checkpoint"])
        vae = checkpoint._replace(slot=2)
        lora = self.put("LoraLoaderModelOnly", 0, model=checkpoint, lora_name=self.files["lora"], strength_model=1.0)
        names = _lora_names(request)
        for each in request.loras:
            name = names[_key(each)]
            lora = self.put("LoraLoaderModelOnly", 0, model=lora, lora_name=name, strength_model=each.strength)
        model = self.put_styles(lora)
        if request.fast:
            model = self.put("EasyCache", 5, model=model, **CACHE)
        text = self.put_prompt(checkpoint._replace(slot=1))
        positive, size = self.put_content(text, vae)
        guided = self.put("FluxGuidance", 4, conditioning=positive, guidance=request.guidance)
        nothing = self.put("ConditioningZeroOut", 4, conditioning=text)
        latent = self.put("EmptySD3LatentImage", 5, **size, batch_size=request.images)
        high, low = shifts(request.schedule)
        timing = f'Schedule "{request.schedule}"'
        timed = self.put("ModelSamplingFlux", 5, timing, model=model, max_shift=high, base_shift=low, **size)
        sampling: dict[str, Any] = {"seed": request.seed or 0, "steps": request.steps, "cfg": 1.0, "denoise": 1.0}
        sampling |= {"sampler_name": COUNTERPARTS[request.sampler], "scheduler": "simple"}
        sampling |= {"negative": nothing, "latent_image": latent}
        sampled = self.put("KSampler", 5, model=timed, positive=guided, **sampling)
        decoded = self.put("VAEDecode", 6, samples=sampled, vae=vae)
        self.put("SaveImage", 6, images=decoded, filename_prefix="USO")

    def put(self, kind: str, column: int, title: str | None = None, **inputs: object) -> _Output:
        """Places a node; returns its first output. Its inputs come out in the class's own order."""
        named = {one.name: inputs[one.name] for one in SIGNATURES[kind].inputs if one.extra is None}
        self.placed.append(_Placed(kind, column, named, title))
        return _Output(len(self.placed), 0)

    def put_image(self, image: InputImage | StoredStyle, column: int, title: str) -> _Output:
        """A loader that names an image, with its hash, by which our import finds it again."""
        name = _image_names(self.request)[_key(image)]
        words = {IMAGE_NAME: name, IMAGE_SHA256: image.sha256} if isinstance(image, InputImage) else {}
        self.placed.append(_Placed("LoadImage", column, {"image": name}, title, words))
        return _Output(len(self.placed), 0)

    def put_prompt(self, clip: _Output) -> _Output:
        """The encoded prompt. ComfyUI's page rewrites some texts in an encoder's own field, not in a linked one."""
        text: object = escaped(self.request.prompt)
        if DYNAMIC.search(self.request.prompt):
            text = self.put("PrimitiveStringMultiline", 4, "Prompt text", value=text)
        padded = self.put("T5TokenizerOptions", 4, clip=clip, min_padding=0, min_length=T5_TOKENS)
        return self.put("CLIPTextEncode", 4, "Prompt", clip=padded, text=text)

    def put_styles(self, model: _Output) -> _Output:
        """The model with every style applied, the first next to the loader; without those of strength 0."""
        styles = [(number, style) for number, (style, strength) in enumerate(_strengths(self.request), 1) if strength]
        if not styles:
            return model
        patch = self.put("ModelPatchLoader", 0, name=self.files["projector"])
        vision = self.put("CLIPVisionLoader", 0, clip_name=self.files["siglip"])
        for number, style in styles:
            image = self.put_image(style, 2, f"Style image {number}")
            seen = self.put("CLIPVisionEncode", 3, clip_vision=vision, image=image, crop="none")
            model = self.put("USOStyleReference", 3, model=model, model_patch=patch, clip_vision_output=seen)
        return model

    def put_content(self, positive: _Output, vae: _Output) -> tuple[_Output, dict[str, Any]]:
        """The conditioning with the content image, and the result's width and height, as numbers or links."""
        request = self.request
        size: dict[str, Any] = {"width": request.width, "height": request.height}
        if request.content is None or not (request.content_strength or request.keep_size):
            return positive, size
        image = self.put_image(request.content, 1, "Content image")
        scale = "ImageScaleToMaxDimension"
        lanczos: dict[str, Any] = {"image": image, "upscale_method": "lanczos"}
        if request.content_strength:
            scaled = self.put(scale, 1, "Content size", **lanczos, largest_size=request.content_size)
            latent = self.put("VAEEncode", 1, pixels=scaled, vae=vae)
            positive = self.put("ReferenceLatent", 4, conditioning=positive, latent=latent)
            kind = "FluxKontextMultiReferenceLatentMethod"  # "uxo/uno": ComfyUI's name for the offsets of UNO and USO
            positive = self.put(kind, 4, conditioning=positive, reference_latents_method="uxo/uno")
        if request.keep_size:
            kept = self.put(scale, 1, "Size of the result", **lanczos, largest_size=KEPT_LONG_SIDE)
            measured = self.put("GetImageSize", 1, image=kept)
            size = {"width": measured, "height": measured._replace(slot=1)}
        return positive, size


def _strengths(request: GenerationRequest) -> list[tuple[InputImage | StoredStyle, float]]:
    """The styles with their strengths."""
    return list(zip(request.styles, request.style_strengths or (1.0,) * len(request.styles), strict=True))


Key = tuple[str, str]  # a file's name as the request has it, and its hash


def _key(file: InputImage | StoredStyle | LoRA) -> Key:
    return file.name, file.sha256


def _image_names(request: GenerationRequest) -> dict[Key, str]:
    """The images' file names."""
    given = [(_key(request.content), file_name(request.content.name) or "content.png")] if request.content else []
    given += [(_key(style), file_name(style.name) or f"style{n}.png") for n, style in enumerate(request.styles, 1)]
    return _distinct(given)


def _lora_names(request: GenerationRequest) -> dict[Key, str]:
    """The file names of the LoRAs beside USO's."""
    names = [(_key(each), f"{file_name(each.name) or 'lora'}.safetensors") for each in request.loras]
    return _distinct([(key, f"{BESIDE}/{name}" if is_uso(name) else name) for key, name in names])


def _distinct(given: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """A name for each file, another one if one before it is called the same: ComfyUI knows files by name alone."""
    names: dict[Key, str] = {}
    hashes: dict[str, str] = {}  # by name
    for key, name in given:
        stem, dot, ending = name.rpartition(".")
        numbered = (f"{stem}-{number}{dot}{ending}" if dot else f"{name}-{number}" for number in itertools.count(2))
        free = (each for each in itertools.chain([name], numbered) if hashes.get(each.lower(), key[1]) == key[1])
        names.setdefault(key, next(free))
        hashes[names[key].lower()] = key[1]
    return names


def _laid_out(sheet: list[_Placed], control: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The frontend's nodes, without links, in columns; and a titled group around each column."""
    nodes: list[dict[str, Any]] = []
    columns = sorted({placed.column for placed in sheet})
    bottoms = dict.fromkeys(columns, 0)
    for order, placed in enumerate(sheet):
        signature = SIGNATURES[placed.kind]
        inputs = [one for one in signature.inputs if one.extra is None]
        height = TALL.get(placed.kind, ROW_HEIGHT * max(len(inputs), len(signature.outputs)) + GAP)
        x, y = columns.index(placed.column) * COLUMN_WIDTH, bottoms[placed.column]
        bottoms[placed.column] = y + height + TITLE_HEIGHT + GAP
        values: list[object] = []
        for one in signature.inputs:
            if one.widget:
                value = one.extra or placed.inputs[one.name]
                values.append(KEPT_LONG_SIDE if isinstance(value, _Output) else value)
                values += [control] if one.control else []
        nodes.append(
            {
                "id": order + 1,
                "type": placed.kind,
                "pos": [x, y],
                "size": [NODE_WIDTH, height],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": [_slot(one.name, one.type, one.widget) for one in inputs],
                "outputs": [{"name": name, "type": kind, "links": []} for name, kind in signature.outputs],
                "properties": {
                    "cnr_id": "comfy-core",
                    "Node name for S&R": placed.kind,
                    **_downloads(values),
                    **placed.words,
                },
                "widgets_values": values,
                **({"title": placed.title} if placed.title else {}),
            }
        )
    groups = [
        {
            "id": place + 1,
            "title": COLUMNS[column],
            "bounding": [place * COLUMN_WIDTH - 20, -90, NODE_WIDTH + 40, bottoms[column] + 90],
            "color": "#3f789e",
            "font_size": 24,
            "flags": {},
        }
        for place, column in enumerate(columns)
    ]
    return nodes, groups


def _slot(name: str, kind: str, widget: bool) -> dict[str, Any]:
    return {"name": name, "type": kind, **({"widget": {"name": name}} if widget else {}), "link": None}


def _downloads(values: list[object]) -> dict[str, Any]:
    files = [value for value in values if isinstance(value, str) and value in DOWNLOADS]
    rows = ((file, *DOWNLOADS[file]) for file in files)
    models = [{"name": file, "url": f"{url}/{file}", "directory": folder} for file, folder, url in rows]
    return {"models": models} if models else {}


def _told(style: StoredStyle) -> str:
    """A stored style's name, and the strengths of its images where they are not all 1."""
    if all(strength == 1 for strength in style.strengths):
        return style.name
    return f"{style.name} (of strengths {', '.join(f'{strength:g}' for strength in style.strengths)})"


def _note(request: GenerationRequest, key: int) -> dict[str, Any]:
    """A note on the canvas: what to do first, and what ComfyUI does differently."""
    names, loras = _image_names(request), _lora_names(request)
    given: list[tuple[InputImage | StoredStyle, float]] = []
    given += [(request.content, request.content_strength)] if request.content else []
    named = [(names[_key(image)], strength) for image, strength in [*given, *_strengths(request)]]
    stored = {names[_key(style)] for style in request.styles if isinstance(style, StoredStyle)}
    images = [name for name, strength in named if strength and name not in stored]
    if request.content and request.keep_size and not request.content_strength:
        images.insert(0, named[0][0])
    lines = ["The same seed gives a different image here: ComfyUI draws its noise on the CPU in float32."]
    if images:
        lines.insert(0, f"Copy into ComfyUI's input folder, or choose in the nodes: {', '.join(images)}.")
    if loras:
        lines.append(f"Copy into ComfyUI's models/loras, or choose in the nodes: {', '.join(loras.values())}.")
    renamed = [
        f"{names[_key(image)]} (yours is {file_name(image.name)})"
        for image in request.input_images
        if names[_key(image)] != (file_name(image.name) or names[_key(image)])
    ]
    renamed += [
        f"{loras[_key(each)]} (yours is {each.name})"
        for each in request.loras
        if loras[_key(each)] != f"{file_name(each.name) or 'lora'}.safetensors"
    ]
    if renamed:
        lines.append(f"Called otherwise here, since another file has that name: {', '.join(renamed)}.")
    if absent := [name for name, strength in named if not strength]:
        lines.append(f"Left out as references, for their strength was 0: {', '.join(absent)}.")
    if other := [f"{name} {strength:g}" for name, strength in named if strength not in (0, 1)]:
        lines.append(f"Strengths have no counterpart in ComfyUI; here all are 1. They were: {', '.join(other)}.")
    if "embedding:" in request.prompt:
        lines.append('ComfyUI takes the word after "embedding:" in a prompt as the name of a file.')
    if request.fast:
        lines.append('"Fast" has become EasyCache, which skips other steps than USO does; bypass it to compute all.')
    if request.sampler == "ab2":
        lines.append('"lms" is the same method as the sampler "ab2", of up to the fourth order instead of the second.')
    if request.model not in TEMPLATE_MODELS:
        lines.append(f"The model was {request.model}; the loader names {MODEL_FILES['checkpoint']} in its place.")
    if request.content is not None and request.content_strength:
        lines.append("The content image was cropped to multiples of 16 pixels; ComfyUI crops to multiples of 8.")
    saved = [_told(style) for style, strength in _strengths(request) if strength and isinstance(style, StoredStyle)]
    if saved:
        lines.append(
            f"Saved styles have no counterpart in ComfyUI; put their images in their place: {', '.join(saved)}."
        )
    if request.keep_size:
        lines.append(f"The size follows the content image, its long side {KEPT_LONG_SIDE}; it was cropped to 16 there.")
    if request.images > 1:
        lines.append(f"The {request.images} images had running seeds; a batch in ComfyUI draws all from the one seed.")
    if request.schedule == "uso":
        lines.append("ModelSamplingFlux sets the schedule that USO's authors used; bypass it for ComfyUI's own.")
    return {
        "id": key,
        "type": "MarkdownNote",
        "pos": [-COLUMN_WIDTH, 0],
        "size": [NODE_WIDTH, 300],
        "flags": {},
        "order": key - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "About this workflow",
        "properties": {},
        "widgets_values": ["\n\n".join(lines)],
        "color": "#432",
        "bgcolor": "#653",
    }
