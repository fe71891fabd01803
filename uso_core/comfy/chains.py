"""Reads the chains behind a sampler one after the other: sampling, conditioning, model, latent, images.

Whatever has no counterpart here becomes a note of one sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from uso_core.comfy.formats import file_name
from uso_core.comfy.graph import Found, Graph, Node
from uso_core.comfy.nodes import (
    ENCODERS,
    IMAGE_LOADERS,
    LONG_SIDE,
    LORAS,
    OTHER_SCALERS,
    USO_LORA_NAMES,
)
from uso_core.comfy.schedule import nearest_schedule
from uso_core.comfy.values import Values, as_number, label
from uso_core.messages import message
from uso_core.request import (
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MAX_STYLES,
    SIZE_MULTIPLE,
)

KEPT_LONG_SIDE = 1024  # of a result that keeps the content image's shape
PROMPT_WEIGHT = re.compile(r"\([^()]{1,200}:\d?\.?\d{1,4}\)")  # (word:1.2)
FILE_INPUTS = ("image", "filename", "file", "image_path", "path", "url")
Place = tuple[Node, str]  # an input of a node


@dataclass
class ImageSource:
    """An input image as the graph names it, and what scales it, nearest to the file first."""

    name: str | None = None
    scalers: list[Node] = field(default_factory=list)


class Reader(Values):
    """Reads the chains into `found` and `notes`; conditioning before the latent, whose size may depend on it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._sigmas_model: Place | None = None

    # --- sampling: seed, steps, and everything beyond Euler from pure noise

    def read_sampling(self, sampler: Node) -> tuple[Place, Place, Place]:
        """Returns the sources of the model, the positive and the negative conditioning."""
        guide = self.node(sampler, "guider") or sampler
        noise = self.node(sampler, "noise")
        for node in (sampler, noise):
            for name in ("seed", "noise_seed"):
                if node is not None and self.has(node, name):
                    self.keep_whole("seed", node, name, 0, MAX_SEED)
        if self.word(sampler, "add_noise") == "disable" or (noise is not None and noise.kind == "DisableNoise"):
            self.note("no_noise")
        self._read_steps(sampler)
        select = self.node(sampler, "sampler")
        name = self.word(select or sampler, "sampler_name") or (label(select) if select else "")
        if name not in ("", "euler"):
            self.note("sampler", name=name)
        for node in (guide, sampler):
            cfg = self.number(node, "cfg", "cfg", 0, 1000) if self.has(node, "cfg") else 1
            if cfg not in (None, 1):
                self.note("cfg", cfg=cfg)
        positive = "conditioning" if "conditioning" in guide.links else "positive"
        return (guide, "model"), (guide, positive), (guide, "negative")

    def _read_steps(self, sampler: Node) -> None:
        nodes = [found.node for found in self.graph.chain(sampler, "sigmas", "SIGMAS")]
        for node in [sampler, *nodes]:
            if self.has(node, "steps"):
                self.keep_whole("steps", node, "steps", 1, MAX_STEPS)
                self._note_steps(node)
                if node is not sampler and "model" in node.links:
                    self._sigmas_model = (node, "model")
                return
            if node is not sampler:
                self.note("all_steps", node=label(node))

    def _note_steps(self, node: Node) -> None:
        scheduler = self.word(node, "scheduler")
        if scheduler not in ("", "simple"):
            self.note("scheduler", scheduler=scheduler)
        denoise = self.number(node, "denoise", "denoise", 0, 1)
        if denoise is not None and denoise < 1:
            self.note("denoise", denoise=denoise)
        start, end = (self.number(node, name, "step", 0, 1e9) for name in ("start_at_step", "end_at_step"))
        if start or (end is not None and end < self.found.get("steps", 0)):
            self.note("some_steps")

    # --- conditioning: prompt, guidance, content

    def read_positive(self, node: Node, name: str) -> None:
        references: list[Node] = []
        method: str | None = None
        for found in self.graph.chain(node, name, "CONDITIONING"):
            here = found.node
            if here.kind == "FluxGuidance":
                self.keep("guidance", self._guidance(here))
            elif here.kind == "ReferenceLatent":
                references.insert(0, here)
            elif here.kind == "FluxKontextMultiReferenceLatentMethod":
                method = method or self.word(here, "reference_latents_method")
            elif here.kind == "ConditioningZeroOut":
                self.note("prompt_blanked")
            elif not self._read_prompt(here, self.graph.onward(found, "CONDITIONING") is None):
                self.note("node_ignored", node=label(here))
        if "guidance" not in self.found:
            self.note("no_guidance")
        self._read_content(references)
        if "content" in self.found and not (method and ("uso" in method or "uxo" in method)):
            self.note("reference_method", method=method or "offset")

    def _guidance(self, node: Node) -> float | None:
        value = self.number(node, "guidance", "guidance", 0, MAX_GUIDANCE)
        return None if value is None else float(value)

    def _read_prompt(self, node: Node, last: bool) -> bool:
        """Takes the prompt from a text encoder; False if the node is not one."""
        name = ENCODERS.get(node.kind)
        if name is None and last:
            name = next((name for name in ("text", "t5xxl", "prompt", "positive") if self.has(node, name)), None)
        if name is None:
            return False
        value = self.graph.value(node, name)
        if node.kind == "CLIPTextEncodeFlux":
            self.keep("guidance", self._guidance(node))
            clip = self.graph.value(node, "clip_l")
            if value == "" and isinstance(clip, str):
                value = clip
            elif isinstance(clip, str) and clip.strip() and clip != value:
                self.note("clip_prompt")
        if isinstance(value, Found):
            self.note("prompt_computed", node=label(value.node))
        elif isinstance(value, str):
            if len(value) > MAX_PROMPT_CHARACTERS:
                self.note("prompt_cut", most=MAX_PROMPT_CHARACTERS)
            if PROMPT_WEIGHT.search(value[:MAX_PROMPT_CHARACTERS]):
                self.note("prompt_weights")
            self.keep("prompt", _whole_characters(value[:MAX_PROMPT_CHARACTERS]))
        return True

    def read_negative(self, node: Node, name: str) -> None:
        for found in self.graph.chain(node, name, "CONDITIONING"):
            here = found.node
            if here.kind == "ConditioningZeroOut":
                return
            texts = (self.graph.value(here, text) for text in ("text", "t5xxl", "clip_l", "prompt"))
            if any(isinstance(text, Found) or (isinstance(text, str) and text.strip()) for text in texts):
                self.note("negative_prompt")
                return

    def _read_content(self, references: list[Node]) -> None:
        for reference in references:
            for found in self.graph.chain(reference, "latent", "LATENT"):
                if "pixels" not in found.node.links:
                    self.note("content_node_ignored", node=label(found.node))
                    continue
                image = self.image(found.node, "pixels", "content_image")
                if image is None or image.name is None:
                    break
                if "content" in self.found:
                    self.note("one_content", name=image.name)
                    break
                self.keep("content", image.name)
                self._read_content_size(image)

    def _read_content_size(self, image: ImageSource) -> None:
        size: float | None = None
        for scaler in image.scalers:
            method = self.word(scaler, "upscale_method")
            if method not in ("", "lanczos"):
                self.note("content_scaling", method=method)
            size = self._long_side(scaler, size)
        if size is None:
            self.note("no_content_size")
        elif SIZE_MULTIPLE <= size <= MAX_SIDE:
            self.keep("content_size", round(size))
        else:
            self.note("content_size_range", size=size, low=SIZE_MULTIPLE, high=MAX_SIDE)

    def _long_side(self, scaler: Node, before: float | None) -> float | None:
        """The long side after a scaler, in pixels; None if it depends on the image itself."""
        if scaler.kind in LONG_SIDE:
            sides = [self.number(scaler, name, "content_size", 0, 1e9) for name in LONG_SIDE[scaler.kind]]
            known = [side for side in sides if side]
            return max(known) if len(known) == len(sides) else None
        if scaler.kind == "ImageScaleBy" and before is not None:
            factor = self.number(scaler, "scale_by", "scale", 0, 100)
            return None if factor is None else before * factor
        return None

    # --- images

    def image(self, node: Node, name: str, what: str) -> ImageSource | None:
        """The image behind an input; None if nothing is connected. Its name is None if a node makes it."""
        image = ImageSource()
        for found in self.graph.chain(node, name, "IMAGE"):
            here = found.node
            if here.kind in LONG_SIDE or here.kind in OTHER_SCALERS:
                image.scalers.insert(0, here)
            elif here.kind not in IMAGE_LOADERS and self.graph.onward(found, "IMAGE") is not None:
                self.note("image_node_ignored", node=label(here), what=message(f"what_{what}"))
            else:
                values = (self.graph.value(here, file) for file in FILE_INPUTS)
                image.name = next((file_name(value) for value in values if isinstance(value, str)), None)
                if image.name is None:
                    self.note("image_unnamed", what=message(f"what_{what}"), node=label(here))
                return image
        return None

    # --- model: styles, other people's LoRAs, caches

    def read_model(self, node: Node, name: str) -> None:
        styles: list[str] = []
        uso_lora = False
        for found in self.graph.chain(node, name, "MODEL"):
            here = found.node
            if here.kind == "USOStyleReference":
                style = self._style(here)
                styles[:0] = [style] if style else []  # walked backwards: the style next to the loader is the first
            elif here.kind in LORAS:
                uso_lora |= self._is_uso_lora(here)
            elif here.kind != "ModelSamplingFlux" and self.graph.onward(found, "MODEL") is not None:
                self.note("node_ignored_here", node=label(here))
        if not uso_lora:
            self.note("no_uso_lora")
        if len(styles) > MAX_STYLES:
            self.note("too_many_styles", count=len(styles), most=MAX_STYLES)
        self.found["styles"] = tuple(styles[:MAX_STYLES])

    def _style(self, node: Node) -> str | None:
        for found in self.graph.chain(node, "clip_vision_output", "CLIP_VISION_OUTPUT"):
            if "image" in found.node.links:
                image = self.image(found.node, "image", "style_image")
                if image is not None and self.word(found.node, "crop") == "center":
                    self.note("style_crop")
                return image.name if image else None
        return None

    def _is_uso_lora(self, node: Node) -> bool:
        name = self.word(node, "lora_name")
        strength = self.number(node, "strength_model", "lora_strength", -100, 100)
        if not any(part in name.lower() for part in USO_LORA_NAMES):
            if strength != 0:
                self.note("lora_ignored", name=name) if name else self.note("lora_unnamed")
            return False
        if strength not in (None, 1):
            self.note("lora_strength", strength=strength)
        return True

    # --- latent: size and batch

    def read_latent(self, sampler: Node) -> None:
        name = "latent_image" if "latent_image" in sampler.links else "latent"
        for found in self.graph.chain(sampler, name, "LATENT"):
            here = found.node
            self._read_batch(here)
            if self.has(here, "width") and self.has(here, "height"):
                sized = self.node(here, "width")
                if sized is not None and "imagesize" in sized.kind.lower() and "image" in sized.links:
                    self._follow(self.image(sized, "image", "size_image"))
                else:
                    self._read_size(here)
                return
            if "pixels" in here.links:
                self._follow(self.image(here, "pixels", "size_image"))
                return
            if here.kind != "RepeatLatentBatch":
                self.note("node_ignored", node=label(here))

    def _read_batch(self, node: Node) -> None:
        name = "amount" if node.kind == "RepeatLatentBatch" else "batch_size"
        if self.has(node, name) and "images" not in self.found:
            self.keep_whole("images", node, name, 1, MAX_IMAGES)
            if self.found.get("images", 1) > 1:
                count = self.found["images"]
                self.note("batch", count=count)

    def _read_size(self, node: Node) -> None:
        for side in ("width", "height"):
            self.keep_whole(side, node, side, SIZE_MULTIPLE, MAX_SIDE)

    def _follow(self, image: ImageSource | None) -> None:
        """Makes the size follow an image: by number if it is scaled to one, else by shape if it is the content."""
        last = image.scalers[-1] if image is not None and image.scalers else None
        if last is not None and last.kind == "ImageScale" and self.graph.value(last, "width"):
            self._read_size(last)
            return
        name = image.name if image is not None else None
        if name is None or name != self.found.get("content"):
            self.note("size_of_image", name=name) if name else self.note("size_of_other")
            return
        self.found["keep_size"] = True
        size: float | None = None
        for scaler in image.scalers if image is not None else ():
            size = self._long_side(scaler, size)
        if size == KEPT_LONG_SIDE:
            self.note("size_of_content")
        else:
            self.note("size_of_content_here", side=KEPT_LONG_SIDE)

    # --- schedule

    def read_schedule(self, node: Node, name: str) -> None:
        """`uso` or `flux`, whichever is near a ModelSamplingFlux; ComfyUI's own fixed shift is neither."""
        node, name = self._sigmas_model or (node, name)
        patches = (found.node for found in self.graph.chain(node, name, "MODEL"))
        patch = next((patch for patch in patches if patch.kind == "ModelSamplingFlux"), None)
        if patch is None:
            self.note("own_schedule")
            return
        values = [as_number(self.graph.value(patch, name)) for name in ("max_shift", "base_shift", "width", "height")]
        target = (self.found.get("width"), self.found.get("height"))
        schedule = nearest_schedule(values, target)
        if schedule is None:
            self.note("shift")
        self.keep("schedule", schedule)


def _whole_characters(text: str) -> str:
    """JSON may hold half a character (a lone surrogate), which text may not: replaces it by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
