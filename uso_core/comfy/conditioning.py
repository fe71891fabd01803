"""The chain of conditioning: the prompt, the guidance, and the content image."""

from __future__ import annotations

import re

from uso_core.comfy.graph import OF_CHOICES, Found, Graph, Node
from uso_core.comfy.nodes import DRAWS, ENCODERS
from uso_core.comfy.prompt_text import has_weights, unescaped
from uso_core.comfy.sources import ImageSource, Sources
from uso_core.comfy.values import label
from uso_core.request import MAX_GUIDANCE, MAX_PROMPT_CHARACTERS, MAX_SIDE, SIZE_MULTIPLE

CHOICES = re.compile(r"\{[^{}|]*\|[^{}]*\}")


class Conditioning(Sources):
    """Reads the prompts and the content into `found` and `notes`."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.asked: list[Node] = []  # nodes whose values matter

    def read_positive(self, node: Node, name: str) -> None:
        references: list[Node] = []
        method: str | None = None
        guided = False
        for found in self.graph.chain(node, name, "CONDITIONING"):
            here = found.node
            if here.kind == "FluxGuidance":
                self.asked.append(here)
                guided = True
                self.keep("guidance", self._guidance(here))
            elif here.kind == "ReferenceLatent":
                references.insert(0, here)
            elif here.kind == "FluxKontextMultiReferenceLatentMethod":
                method = method or self.word(here, "reference_latents_method")
            elif here.kind == "ConditioningZeroOut":
                self.note("prompt_blanked")
            elif here.kind in ENCODERS or self.graph.onward(found, "CONDITIONING") is None:
                self._read_prompt(found)
            else:
                self.note("node_ignored", node=label(here))
        if "guidance" not in self.found and "prompt" in self.found and not guided:
            self.note("no_guidance", ("guidance",))  # the chain was followed to its end
        self._read_content(references)
        if "content" in self.found and not (method and ("uso" in method or "uxo" in method)):
            self.note("reference_method", method=method or "offset")

    def _guidance(self, node: Node) -> float | None:
        value = self.number(node, "guidance", "guidance", 0, MAX_GUIDANCE)
        return None if value is None else float(value)

    def _read_prompt(self, found: Found) -> None:
        """Takes the prompt from a text encoder; names any other node that a prompt may come from."""
        here = found.node
        name = ENCODERS.get(here.kind, {}).get(found.slot)
        if name is None:
            self.note("prompt_computed", ("prompt",), node=label(here))
            return
        self.asked.append(here)
        value = self.graph.value(here, name, prompt=True)
        if here.kind == "CLIPTextEncodeFlux":
            self.keep("guidance", self._guidance(here))
            value = self._of_both(value, self.graph.value(here, "clip_l", prompt=True))
        if isinstance(value, Found):
            key = "prompt_choices" if value.slot == OF_CHOICES else "prompt_computed"
            self.note(key, ("prompt",), node=label(value.node))
        elif isinstance(value, str):
            if value not in (self.graph.value(here, name), self.graph.value(here, "clip_l")):
                self.note("prompt_rewritten")
            self._keep_prompt(value)
            draws = self.node(here, name) or here
            if draws.kind in DRAWS:
                self.note("prompt_drawn", node=label(draws))

    def _of_both(self, value: object, clip: object) -> object:
        """The prompt of an encoder with a text for each of T5 and CLIP."""
        if value == "" and clip is not None:
            return clip
        if (isinstance(clip, Found) and clip != value) or (isinstance(clip, str) and clip.strip() and clip != value):
            self.note("clip_prompt")
        return value

    def _keep_prompt(self, text: str) -> None:
        if len(text) > MAX_PROMPT_CHARACTERS:
            self.note("prompt_cut", most=MAX_PROMPT_CHARACTERS)
        text = text[:MAX_PROMPT_CHARACTERS]
        if has_weights(text):
            self.note("prompt_weights")
        if CHOICES.search(text):
            self.note("prompt_braces")
        if "embedding:" in text:
            self.note("prompt_embedding")
        self.keep("prompt", _whole_characters(unescaped(text)))

    def read_negative(self, node: Node, name: str) -> None:
        for found in self.graph.chain(node, name, "CONDITIONING"):
            here = found.node
            if here.kind == "ConditioningZeroOut":
                return
            names = ("text", "t5xxl", "clip_l", "prompt", "negative", "populated_text")
            texts = (self.graph.value(here, text) for text in names)
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
                self.keep("content_sha256", image.sha256)
                self._read_content_size(image)

    def _read_content_size(self, image: ImageSource) -> None:
        size: float | None = None
        for scaler in image.scalers:
            method = self.word(scaler, "upscale_method")
            if method not in ("", "lanczos"):
                self.note("content_scaling", method=method)
            size = self.long_side(scaler, size)
            if fitted := self.fitted(scaler):
                key = "content_padded" if fitted[0] == "padded" else "content_shape"
                self.note(key, width=fitted[1], height=fitted[2])
        if size is None:
            self.note("no_content_size")
        elif SIZE_MULTIPLE <= size <= MAX_SIDE:
            self.keep("content_size", round(size))
        else:
            self.note("content_size_range", size=size, low=SIZE_MULTIPLE, high=MAX_SIDE)


def _whole_characters(text: str) -> str:
    """JSON may hold half a character (a lone surrogate), which text may not: replaces it by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
