"""Reads the chains behind a sampler one after the other: sampling, conditioning, model, latent.

Whatever has no counterpart here becomes a note of one sentence.
"""

from __future__ import annotations

import math
import re

from uso_core.comfy.conditioning import Conditioning
from uso_core.comfy.graph import Found, Graph, Node
from uso_core.comfy.image_names import file_name
from uso_core.comfy.loras import LoRA, folder_of, holds_lora, is_strength, is_uso, loras_of
from uso_core.comfy.nodes import (
    CACHES,
    EXTRAS,
    HIGHER_ORDER,
    LATENTS,
    LISTING,
    PLAIN_LATENT,
    SIZED,
    SIZES,
)
from uso_core.comfy.schedule import nearest_schedule
from uso_core.comfy.sources import ImageSource
from uso_core.comfy.values import as_number, label, shortened
from uso_core.messages import message
from uso_core.request import (
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MAX_STYLES,
    SIZE_MULTIPLE,
)

KEPT_LONG_SIDE = 1024  # of a result that keeps the content image's shape
MODEL_NAMES = ("ckpt_name", "unet_name", "model_name", "gguf_name", "model_path")  # of loaders
LORA_STACKS = ("lora_stack", "optional_lora_stack")
Place = tuple[Node, str]  # an input of a node


class Reader(Conditioning):
    """Reads the chains into `found` and `notes`; conditioning before the latent, whose size may depend on it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._sigmas_model: Place | None = None

    # --- sampling: seed, steps, and everything beyond our samplers from pure noise

    def read_sampling(self, sampler: Node) -> tuple[Place, Place, Place]:
        """Returns the sources of the model, the positive and the negative conditioning."""
        if sampler.kind in LISTING:
            self._take_first(sampler)
        guide = self.node(sampler, "guider") or sampler
        noise = self.node(sampler, "noise")
        for node in filter(None, (sampler, noise)):
            self.asked.append(node)
            for name in ("seed", "noise_seed"):
                if self.has(node, name):
                    self.keep_whole("seed", node, name, 0, MAX_SEED)
        silent = noise is not None and noise.kind == "DisableNoise"
        if silent or self.graph.value(sampler, "add_noise") in ("disable", False):
            self.note("no_noise")
        self._read_steps(sampler)
        select = self.node(sampler, "sampler")
        name = self.word(select or sampler, "sampler_name") or self.word(sampler, "sampler")
        if name:
            self.keep("sampler", "ab2" if name in HIGHER_ORDER else "euler")
        if name not in ("", "euler"):
            self.note("sampler", name=name)
        for name, neutral in EXTRAS.items():
            value = self.graph.value(sampler, name)
            if isinstance(value, int | float | str) and value != neutral:
                self.note("sampler_value", node=label(sampler), name=name, value=shortened(str(value)))
        for node in (guide, sampler):
            cfg = self.number(node, "cfg", "cfg", 0, 1000) if self.has(node, "cfg") else 1
            if cfg not in (None, 1):
                self.note("cfg", cfg=cfg)
        positive = "conditioning" if "conditioning" in guide.links else "positive"
        return (guide, "model"), (guide, positive), (guide, "negative")

    def _take_first(self, sampler: Node) -> None:
        """Leaves what comes first of each list that a sampler goes through; an empty one means its default."""
        for name, default in LISTING[sampler.kind].items():
            text = sampler.values.get(name)
            if not isinstance(text, str):
                continue
            first, *more = re.split(r"[,\n]", text[:10_000])
            start, *ranged = first.split("...")
            if more or ranged:
                self.note("several_images")
            sampler.values[name] = start.strip() or default
        if sampler.values.get("seed") == "?":
            self.note("seed_drawn", ("seed",), node=label(sampler))
        if (listed := self.node(sampler, "loras")) is not None:
            self.note("lora_unnamed", ("lora",), node=label(listed))
        self.keep("guidance", self._guidance(sampler))  # it sets the conditioning's own aside

    def _read_steps(self, sampler: Node) -> None:
        nodes = [found.node for found in self.graph.chain(sampler, "sigmas", "SIGMAS")]
        for node in [sampler, *nodes]:
            self.asked.append(node)
            if self.has(node, "steps"):
                self.keep_whole("steps", node, "steps", 1, MAX_STEPS)
                self._note_steps(node)
                if node is not sampler and not node.unread and not self.has(node, "scheduler"):
                    self.note("scheduler", scheduler=label(node))  # has sigmas of its own
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
        part = self.number(node, "steps_to_run", "step", -1, 1e9)
        start, end = (self.number(node, name, "step", 0, 1e9) for name in ("start_at_step", "end_at_step"))
        if start or part not in (None, -1) or (end is not None and end < self.found.get("steps", 0)):
            self.note("some_steps")

    # --- model: styles, other people's LoRAs, caches

    def read_model(self, node: Node, name: str) -> None:
        styles: list[ImageSource] = []
        loras: list[LoRA] = []
        for found in self.graph.chain(node, name, "MODEL"):
            here = found.node
            given = [*reversed(self._loras(here)), *self._stacked(here)]
            loras += given
            if here.kind == "USOStyleReference":
                style = self._style(here)
                styles[:0] = [style] if style else []  # walked backwards: the style next to the loader is the first
            elif here.kind in CACHES:
                self.keep("fast", True)
                self.note("fast", node=label(here), fast=message("fast"))
            elif not given and here.kind != "ModelSamplingFlux":
                self._ignore(here, self.graph.onward(found, "MODEL"))
            if self.graph.onward(found, "MODEL") is None:
                names = (self.word(here, name) for name in MODEL_NAMES)
                self.keep("model_file", next((file_name(name) for name in names if name), None))
        followed = loras or not ({"lora", "model"} & self.told or self.graph.broadcasts)
        self._keep_loras(loras, bool(followed))
        if len(styles) > MAX_STYLES:
            self.note("too_many_styles", count=len(styles), most=MAX_STYLES)
        self.found["styles"] = tuple(style.name for style in styles[:MAX_STYLES])
        self.found["styles_sha256"] = tuple(style.sha256 for style in styles[:MAX_STYLES])

    def _ignore(self, node: Node, onward: str | None) -> None:
        if holds_lora(node.values):  # which is switched off
            return
        if "lora" in node.kind.lower():
            self.note("lora_unnamed", ("lora",), node=label(node))
        elif onward:
            self.note("node_ignored_here", node=label(node))
        elif any(not name.endswith(("name", "dtype")) and self.node(node, name) for name in node.links):  # no loader
            self.note("chain_ends", ("model",), node=label(node))

    def _style(self, node: Node) -> ImageSource | None:
        for found in self.graph.chain(node, "clip_vision_output", "CLIP_VISION_OUTPUT"):
            if "image" in found.node.links:
                image = self.image(found.node, "image", "style_image")
                ways = [self.fitted(scaler) for scaler in image.scalers] if image is not None else []
                if "cropped" in [way[0] for way in ways if way] or self.word(found.node, "crop") == "center":
                    self.note("style_crop")
                return image if image is not None and image.name is not None else None
            if self.graph.onward(found, "CLIP_VISION_OUTPUT") is None:
                self.note("image_unnamed", what=message("what_style_image"), node=label(found.node))
        return None

    def _loras(self, node: Node) -> list[LoRA]:
        """The LoRAs in a node's own inputs; those whose name or strength is computed are told."""
        values = {name: self.graph.value(node, name) for name in [*node.values, *(set(node.links) - set(node.values))]}
        for name, value in values.items():
            if isinstance(value, Found) and "lora" in name.lower() and name not in LORA_STACKS:
                self.note("computed", ("lora",), what=message("what_lora"), node=label(value.node))
        loras = list(loras_of(values))
        for name, value in values.items():
            if loras and isinstance(value, Found) and is_strength(name):
                self.note("computed", what=message("what_lora_strength"), node=label(value.node))
        return loras

    def _stacked(self, node: Node) -> list[LoRA]:
        """The LoRAs of stacks that lead into a node, the last one first."""
        name = next((name for name in LORA_STACKS if name in node.links), None)
        found = self.graph.chain(node, name, "LORA_STACK") if name else ()
        return [lora for each in found for lora in reversed(self._loras(each.node))]

    def _keep_loras(self, loras: list[LoRA], followed: bool) -> None:
        own = [lora for lora in loras if is_uso(lora.name)]
        others = [lora for lora in reversed(loras) if not is_uso(lora.name)]  # walked backwards
        self.found["loras"] = tuple(each._replace(name=file_name(each.name) or each.name[:80]) for each in others)
        self.found["lora_folders"] = tuple(map(folder_of, others))
        if not own and followed:
            self.note("no_uso_lora")
        strengths = [lora.strength for lora in own if lora.strength is not None]
        if strengths and len(strengths) == len(own) and sum(strengths) != 1:
            self.note("lora_strength", strength=sum(strengths))
        for lora in self.found["loras"]:
            if lora.strength is None:
                self.note("lora_ignored_unknown", name=lora.name)
            else:
                self.note("lora_ignored", name=lora.name, strength=lora.strength)

    # --- latent: size and batch

    def read_latent(self, sampler: Node) -> None:
        name = next((name for name in LATENTS if name in sampler.links), LATENTS[0])
        sized, batches = False, []
        for found in self.graph.chain(sampler, name, "LATENT"):
            here = found.node
            batches += self._batches(here)
            if sized:  # what comes before the last size says only how many there are
                continue
            if here.kind in SIZED:
                self.asked.append(here)
            names = next((names for names in SIZES if self._is_sized(here, names)), None)
            if names is not None:
                sized, image = True, self._measured(here, *names)
                self._follow(image) if image is not None else self._read_size(here, *names)
            elif "pixels" in here.links:
                sized = True
                self._follow(self.image(here, "pixels", "size_image"))
            elif self.graph.onward(found, "LATENT") is None:
                self.note("size_computed", ("size",), node=label(here))
            elif here.kind != "RepeatLatentBatch":
                self.note("node_ignored", node=label(here))
        count = math.prod(batches)
        if count > MAX_IMAGES:
            self.note("range", what=message("what_images"), value=str(count), low="1", high=str(MAX_IMAGES))
        elif batches:
            self.keep("images", count)
        if 1 < count <= MAX_IMAGES:
            self.note("batch", count=count)

    def _is_sized(self, node: Node, names: tuple[str, str]) -> bool:
        known = node.kind in SIZED or {*node.values, *node.links} <= PLAIN_LATENT
        return known and all(self.has(node, name) for name in names)

    def _measured(self, node: Node, width: str, height: str) -> ImageSource | None:
        """The image whose size a latent takes, if a node measures both its sides for it."""
        sides = [self.graph.feed(node, side) for side in (width, height)]
        if None in sides or sides[0].node is not sides[1].node or sides[0].slot >= sides[1].slot:  # type: ignore[union-attr]
            return None
        measures = sides[0].node  # type: ignore[union-attr]
        if "imagesize" not in measures.kind.lower() or "image" not in measures.links:
            return None
        return self.image(measures, "image", "size_image") or ImageSource()

    def _batches(self, node: Node) -> list[int]:
        """By how much a node makes the batch larger, if it says so."""
        name = "amount" if node.kind == "RepeatLatentBatch" else "batch_size"
        count = self.number(node, name, "images", 1, MAX_IMAGES) if self.has(node, name) else None
        return [] if count is None else [int(count)]

    def _read_size(self, node: Node, width: str, height: str) -> None:
        self.keep_whole("width", node, width, SIZE_MULTIPLE, MAX_SIDE)
        self.keep_whole("height", node, height, SIZE_MULTIPLE, MAX_SIDE)

    def _follow(self, image: ImageSource | None) -> None:
        """Makes the size follow an image: by number if it is scaled to one, else by shape if it is the content."""
        last = image.scalers[-1] if image is not None and image.scalers else None
        if last is not None and last.kind == "ImageScale" and self.graph.value(last, "width"):
            self._read_size(last, "width", "height")
            return
        name = image.name if image is not None else None
        if name is None or name != self.found.get("content"):
            self.note("size_of_image", ("size",), name=name) if name else self.note("size_of_other", ("size",))
            return
        self.found["keep_size"] = True
        size: float | None = None
        for scaler in image.scalers if image is not None else ():
            size = self.long_side(scaler, size)
        if size == KEPT_LONG_SIDE:
            self.note("size_of_content")
        else:
            self.note("size_of_content_here", side=KEPT_LONG_SIDE)

    # --- schedule

    def read_schedule(self, node: Node, name: str) -> None:
        """`uso` or `flux`, whichever is near a ModelSamplingFlux; ComfyUI's own fixed shift is neither."""
        node, name = self._sigmas_model or (node, name)
        patches = (found.node for found in self.graph.chain(node, name, "MODEL"))
        found = next((patch for patch in patches if patch.kind == "ModelSamplingFlux"), None)
        patch = node if node.kind in LISTING else found
        if patch is None:
            self.note("own_schedule")
            return
        values = [as_number(self.graph.value(patch, name)) for name in ("max_shift", "base_shift", "width", "height")]
        target = (self.found.get("width"), self.found.get("height"))
        schedule = nearest_schedule(values, target)
        if schedule is None:
            self.note("shift")
        self.keep("schedule", schedule)

    # --- what is missing

    def note_gaps(self) -> None:
        """Names what the form needs and the workflow did not give, and the nodes that could not be read."""
        for node in (*self.asked, *self.graph.missed.values()):
            if node.unread:
                self.note("values_unread", node=label(node))
        for node in self.graph.ends.values():
            self.note("node_off", node=label(node))
        for node in self.graph.broadcasts:
            self.note("broadcast", node=label(node))
        if self.found.get("keep_size") or "size" in self.told:
            self.told |= {"width", "height"}
        for name in ("prompt", "seed", "steps", "guidance", "width", "height"):
            if name not in self.found and name not in self.told:
                self.note("missing", (name,), what=message(f"what_{name}"))
