"""The reference configuration: the same computation, done in the way that this project aims to beat.

What is wasteful here is so on purpose, and nothing else is: the LoRA stays separate (two small products beside each
adapted one), SigLIP and the projector run in float32 in every step, modulation, embedders and position table are
computed in every step, RoPE and QK-norm are chains in float32, nothing is compiled and nothing is kept between
requests.
fp8 weights are cast on each use; offloading moves whole modules both ways through pageable memory. Everything else
(encoders, decoder, schedule and noise) is the pipeline's own, so that the images are the same.

Letters: B batch, S target tokens, R reference tokens, T text tokens, K style tokens, D width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from uso_core.model import latents as tokens
from uso_core.model.denoising import Conditioning, Denoised
from uso_core.model.pipeline import USOPipeline
from uso_core.request import Sampling

# What is on the device together when whole modules move.
STAGES = (("text_encoder", "text_encoder_2"), ("vae",), ("transformer", "image_encoder", "style_projector"))


class WholeModuleMoves:
    """Offloads whole modules: a stage's modules come to the device and are copied back after it, through pageable
    memory.

    `moved_bytes` counts both ways.
    """

    def __init__(self, device: torch.device, modules: dict[str, nn.Module]) -> None:
        self.device, self.modules, self.moved_bytes = device, modules, 0
        self._there: tuple[str, ...] = ()
        for name in modules:
            self._move(name, torch.device("cpu"))
        self.moved_bytes = 0

    def use(self, name: str) -> nn.Module:
        """The module of this name, on the device."""
        stage = next(stage for stage in STAGES if name in stage)
        if stage != self._there:
            for other in self._there:
                self._move(other, torch.device("cpu"))
            for each in stage:
                self._move(each, self.device)
            self._there = stage
        return self.modules[name]

    def _move(self, name: str, device: torch.device) -> None:
        module = self.modules[name]
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.to(device, copy=True)
            self.moved_bytes += tensor.nbytes


@dataclass(frozen=True)
class Unprepared:
    """An unprocessed request: each step does everything with it."""

    condition: Conditioning
    sampling: Sampling
    ids: torch.Tensor  # (K + T + S + R, 3)
    sigmas: torch.Tensor  # (steps + 1,)


class ReferencePipeline(USOPipeline):
    """`USOPipeline` with a `ReferenceTransformer`. Does not support strengths or `fast`.

    Its `Conditioning` represents the style by the pixels of each style image (1, 3, side, side).
    """

    @torch.inference_mode()
    def encode(
        self,
        prompt: str,
        content_image: Image.Image | None = None,
        styles: Sequence[Image.Image | torch.Tensor] = (),
        content_size: int = 512,
        embeds: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Conditioning:
        self.encodings.clear()
        return super().encode(prompt, content_image, styles, content_size, embeds)

    def style_tokens(self, style: Image.Image | torch.Tensor) -> torch.Tensor:
        assert isinstance(style, Image.Image)
        return self.image_processor(style.convert("RGB"), return_tensors="pt").pixel_values

    def prepare(self, condition: Conditioning, sampling: Sampling) -> Unprepared:  # type: ignore[override]
        if sampling.fast or {sampling.content_strength, *sampling.style_strengths} - {1.0}:
            raise ValueError("the reference configuration has neither strengths nor a step cache")
        device, projector = self.compute_device, self.style_projector
        target = (sampling.height // tokens.PIXELS_PER_TOKEN, sampling.width // tokens.PIXELS_PER_TOKEN)
        sizes = [(each.shape[-2] // 2, each.shape[-1] // 2) for each in condition.references]
        style = len(condition.styles) * projector.config.tokens_out * len(projector.config.depths)
        text_ids = torch.zeros(style + condition.text.shape[1], 3)
        ids = torch.cat([text_ids, tokens.image_ids(target, sizes, self.config.reference_columns)])
        mu = tokens.schedule_mu(tokens.schedule_tokens(sampling.width, sampling.height, sampling.schedule))
        steps = torch.linspace(1, 0, sampling.steps + 1)[:-1].tolist()
        self.scheduler.set_timesteps(sigmas=steps, mu=mu, device=device)
        return Unprepared(condition, sampling, ids.to(device), self.scheduler.sigmas.to(device))

    @torch.inference_mode()
    def denoise(  # type: ignore[override]
        self, prepared: Unprepared, generator: torch.Generator, start: torch.Tensor | None = None
    ) -> Generator[Denoised, torch.Tensor | None, torch.Tensor]:
        if start is not None:
            raise ValueError("the reference configuration draws its own noise")
        transformer, condition, sampling = self.use("transformer"), prepared.condition, prepared.sampling
        device, dtype, sigmas = self.compute_device, transformer.dtype, prepared.sigmas
        noise = tokens.noise(sampling.width, sampling.height, transformer.in_channels // 4, generator)
        latents = tokens.pack(noise).to(device, dtype)  # (1, S, 4C)
        references = [tokens.pack(each).to(device, dtype) for each in condition.references]
        guidance = torch.tensor([sampling.guidance], device=device)
        for step in range(sampling.steps):
            styles = [self.tokens_of(pixels) for pixels in condition.styles]  # each (1, K, D)
            velocity = transformer(
                torch.cat([latents, *references], dim=1), latents.shape[1], condition.text.to(device),
                torch.cat(styles, dim=1) if styles else None, condition.pooled.to(device),
                sigmas[step : step + 1], guidance, prepared.ids,
            )  # fmt: skip
            before, latents = latents, (latents.float() + (sigmas[step + 1] - sigmas[step]) * velocity).to(dtype)
            yield Denoised(latents, sigmas[step] * 1000, before, velocity)
        return latents

    def tokens_of(self, pixels: torch.Tensor) -> torch.Tensor:
        """Style tokens (1, K, D) of one image's pixels."""
        tower, projector = self.use("image_encoder"), self.use("style_projector")
        states = tower(pixels.to(self.compute_device, tower.dtype), output_hidden_states=True).hidden_states
        return projector([state.to(projector.dtype) for state in states])
