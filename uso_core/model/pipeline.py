"""The USO pipeline: a prompt, an optional content image, any number of style images -> images.

Letters: B batch (always 1), S target tokens, R reference tokens, T text tokens, K style tokens, D width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend
from transformers import CLIPTextModel, PreTrainedTokenizerBase, SiglipVisionModel, T5EncoderModel
from transformers.image_processing_utils import BaseImageProcessor

from uso_core.errors import RequestError, WeightsError
from uso_core.events import Unread
from uso_core.images import prepare_content
from uso_core.model import latents as tokens
from uso_core.model import preview
from uso_core.model.arguments import check_embeds, check_latents, embeds_of, images_of, prompts_of, strengths_of
from uso_core.model.attention import sdpa_backends
from uso_core.model.denoising import Conditioning, Denoised, Pace, Prepared, attention_bias
from uso_core.model.encoding_cache import Encodings, image_key
from uso_core.model.hooks import enter, execution_device, is_hooked
from uso_core.model.step_cache import StepCache
from uso_core.model.style_projector import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel
from uso_core.model.unread import unread
from uso_core.request import MAX_IMAGES, MAX_SEED, MAX_SIDE, Sampling, check_strengths, whole


class ComponentOffloader(Protocol):
    """Brings components to the device when they are used (`memory/offload.py`)."""

    @property
    def device(self) -> torch.device:
        """Where the components compute."""

    def use(self, name: str) -> torch.nn.Module:
        """The component of that name, on the device."""

    def leave(self) -> None:
        """Moves off the device what is there only while used."""


StepCallback = Callable[["USOPipeline", int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_encoder",
              "image_processor", "style_projector", "scheduler")  # fmt: skip
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class USOPipelineOutput(BaseOutput):
    """`images`: PIL images, or values in [0, 1], as an array (B, height, width, 3) for "np" or a tensor
    (B, 3, height, width) for "pt", or packed latents (B, S, 4C) for "latent".
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor


class USOPipeline(DiffusionPipeline, FluxLoraLoaderMixin):
    """Unified style- and subject-driven generation (arXiv 2508.18966) from diffusers and transformers components.

    `text_tokens` is the length to which T5's input is padded, without a mask; for `preview_factors` see `preview.py`,
    for `reference_columns` see `latents.image_ids`. LoRAs beside USO's are loaded as into any FLUX pipeline of
    diffusers, which needs PEFT.
    """

    # What each request needs comes last: accelerate sends a model away when the next in line is used.
    model_cpu_offload_seq = "image_encoder->style_projector->text_encoder->text_encoder_2->transformer->vae"
    _callback_tensor_inputs = ("latents", "denoised")
    offloader: ComponentOffloader | None = None  # brings components to the device; without one they are used in place
    sdpa_backends: Sequence[SDPBackend] | None = None  # for the steps, in order of preference; None: PyTorch chooses
    untiled_pixels: int | None = None  # larger images are decoded in tiles; None: as the VAE is set

    def __init__(
        self,
        transformer: USOTransformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: PreTrainedTokenizerBase,
        image_encoder: SiglipVisionModel,
        image_processor: BaseImageProcessor,
        style_projector: StyleProjector,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_tokens: int = 512,
        preview_factors: Sequence[Sequence[float]] = preview.FLUX_FACTORS,
        reference_columns: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            image_encoder=image_encoder,
            image_processor=image_processor,
            style_projector=style_projector,
            scheduler=scheduler,
        )
        self.register_to_config(
            text_tokens=text_tokens, preview_factors=preview_factors, reference_columns=reference_columns
        )
        for part in image_encoder.modules() if image_encoder is not None else ():
            if hasattr(part, "use_head"):  # style tokens need no pooling, whose attention no offloading hook can serve
                part.use_head = False
        self.encodings = Encodings()
        self._prepared: tuple[Any, Conditioning, Prepared] | None = None  # with what it depends on beside the request
        self._interrupt = False
        self._guidance_scale, self._num_timesteps = 0.0, 0

    def __setattr__(self, name: str, value: Any) -> None:
        """A component that is replaced takes what was made with it along."""
        super().__setattr__(name, value)
        if name in COMPONENTS and "encodings" in self.__dict__:
            self.forget()

    def forget(self) -> None:
        """Forgets all encodings and what is prepared: they were made by weights that are others now."""
        self.encodings.clear()
        self._prepared = None

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = "",
        content_image: Image.Image | None = None,
        style_images: Image.Image | Sequence[Image.Image] | None = (),
        width: int = 1024,
        height: int = 1024,
        num_inference_steps: int = 25,
        guidance_scale: float = 4.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | None = None,
        content_size: int = 512,
        schedule: str = "uso",
        sampler: str = "euler",
        content_strength: float = 1.0,
        style_strengths: Iterable[float] | None = (),
        fast: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Collection[str] = _callback_tensor_inputs,
        num_images_per_prompt: int = 1,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
    ) -> USOPipelineOutput | tuple[list[Image.Image] | np.ndarray | torch.Tensor]:
        """Generates the images of one or several prompts, each encoded once, one image after another.

        Args:
            prompt: may be empty; with content and style images this keeps the content's layout.
            content_image: the subject, any size; resized to `content_size` pixels on its long side.
            style_images: any number, or one alone; the model ignores their order.
            width, height: pixels, floored to multiples of 16.
            generator, seed: give one or neither; noise is drawn on the generator's device. Image j of a prompt uses
                seed + j. Several generators: one for each image, or for each image of every prompt.
            schedule: "uso" (the reference's) or "flux"; see `schedule_tokens`.
            sampler: "euler" (the reference's) or "ab2"; see `second_order`.
            content_strength, style_strengths: from 0 (as if absent) through 1 (as trained) to 2; one number per style
                image, or none.
            fast: skips steps in which little changes (`step_cache.py`); images change slightly.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called after each step with (pipeline, step, sigma * 1000, {"latents": packed,
                "denoised": packed}, those in `callback_on_step_end_tensor_inputs`); may return {"latents": other}, or
                set `pipeline._interrupt` to stop; an exception from it ends the call.
            latents: packed noise (1 or B, S, 4C) to begin with instead of drawing it.
            prompt_embeds, pooled_prompt_embeds: both results of `encode_prompt`, (1 or B, T, T5 width) and
                (1 or B, CLIP width), instead of a prompt.

        Raises:
            RequestError: a value is out of range; the message quotes it.
            WeightsError: the image came out as NaN.
        """
        # 1. Check
        prompts = prompts_of(prompt)
        content_image, styles = images_of(content_image, style_images)
        if content_image is None and content_strength not in (None, 1):
            raise RequestError(
                "strength_without", name="content_strength", value=content_strength, image="content_image"
            )
        content_size = whole("content_size", content_size, tokens.PIXELS_PER_TOKEN, MAX_SIDE)
        sampling = Sampling(
            width=width, height=height, steps=num_inference_steps, guidance=guidance_scale, schedule=schedule,
            sampler=sampler, content_strength=content_strength,
            style_strengths=check_strengths(strengths_of(style_strengths), len(styles)), fast=fast,
        )  # fmt: skip
        if output_type not in OUTPUT_TYPES:
            raise RequestError("output_type", output_type=output_type, choices=", ".join(OUTPUT_TYPES))
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise RequestError("callback_inputs", value=min(unknown), choices=", ".join(self._callback_tensor_inputs))
        embeds = embeds_of(prompt, prompt_embeds, pooled_prompt_embeds)
        if embeds:
            config = self.transformer.config
            check_embeds(embeds, config.joint_attention_dim, config.pooled_projection_dim)
        count = len(embeds or prompts)
        generators = self._generators(generator, seed, count, whole("images", num_images_per_prompt, 1, MAX_IMAGES))
        if latents is not None:
            area = (sampling.width // tokens.PIXELS_PER_TOKEN) * (sampling.height // tokens.PIXELS_PER_TOKEN)
            check_latents(latents, len(generators), area, self.transformer.config.in_channels)
        self._interrupt, self._guidance_scale = False, sampling.guidance
        self._num_timesteps = sampling.steps
        results, share = [], len(generators) // count
        with self.progress_bar(total=sampling.steps * len(generators)) as bar:
            for number, source in enumerate(generators):
                if number % share == 0:
                    # 2. Encode prompt, style images and content image; 3. prepare what no step changes
                    place = number // share
                    given = embeds[place] if embeds else None
                    condition = self.encode("" if given else prompts[place], content_image, styles, content_size, given)
                    prepared = self.prepare(condition, sampling)
                # 4. Denoise from noise, 5. decode
                start = None if latents is None else latents[number % len(latents)][None]
                packed = self.denoise_all(
                    prepared, source, callback_on_step_end, callback_on_step_end_tensor_inputs, start, bar.update
                )
                pixels = output_type != "latent"
                results.append(self.decode(packed, sampling.width, sampling.height) if pixels else packed)
                if self._interrupt:
                    break
        self.maybe_free_model_hooks()
        images = self._output(torch.cat(results), output_type)
        return USOPipelineOutput(images=images) if return_dict else (images,)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop: set `_interrupt`."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        """The guidance of the running call, or the last one."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """The steps of the running call, or the last one."""
        return self._num_timesteps

    @torch.inference_mode()
    def encode(
        self,
        prompt: str,
        content_image: Image.Image | None = None,
        styles: Sequence[Image.Image | torch.Tensor] = (),
        content_size: int = 512,
        embeds: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Conditioning:
        """Everything that is the same for every step and seed; a tensor among the styles is style tokens (1, K, D).

        `embeds` are the results of `encode_prompt`, if they are known.
        """
        references: tuple[torch.Tensor, ...] = ()
        if content_image is not None:
            content = prepare_content(content_image, content_size)
            key = ("content", image_key(content))
            references = self.encodings.get(key, lambda: (self.encode_content(content),))
        encoded = tuple(map(self.style_tokens, styles))
        text, pooled = embeds or self.encodings.get(("text", prompt), lambda: self.encode_prompt(prompt))
        return Conditioning(text, pooled, encoded, references)

    def style_tokens(self, style: Image.Image | torch.Tensor) -> torch.Tensor:
        """The style tokens (1, K, D) of an image, or the given tokens."""
        if isinstance(style, torch.Tensor):
            return style
        return self.encodings.get(("style", image_key(style)), lambda: (self.encode_style(style),))[0]

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """T5's last hidden state (1, T, T5 width), padding attended, and CLIP's pooled output (1, CLIP width)."""

        def ids(tokenizer: PreTrainedTokenizerBase, length: int) -> torch.Tensor:
            encoded = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            return encoded.input_ids.to(self.compute_device)

        clip, dtype = self.use("text_encoder"), dtype_of(self.transformer or self.text_encoder_2)
        pooled = clip(ids(self.tokenizer, clip.config.max_position_embeddings)).pooler_output
        text = self.use("text_encoder_2")(ids(self.tokenizer_2, self.config.text_tokens)).last_hidden_state
        return text.to(dtype), pooled.to(dtype)

    def unread(self, prompt: str) -> Unread:
        """What of a prompt T5 does not read: usually nothing. CLIP reads less of a long one, but only sums it up."""
        return unread(self.tokenizer_2, self.config.text_tokens, prompt)

    def encode_style(self, image: Image.Image) -> torch.Tensor:
        """Style tokens of one image, squashed to the vision tower's square: (1, K, D)."""
        pixels = self.image_processor(image.convert("RGB"), return_tensors="pt").pixel_values  # (1, 3, side, side)
        tower = self.use("image_encoder")
        states = tower(pixels.to(self.compute_device, dtype_of(tower)), output_hidden_states=True).hidden_states
        projector = self.use("style_projector")
        return projector([state.to(dtype_of(projector)) for state in states])

    def encode_content(self, image: Image.Image) -> torch.Tensor:
        """The mean of the VAE's posterior, normalised: (1, C, H, W). The reference samples it, without a fixed seed."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 * 2 - 1  # (1, 3, h, w)
        vae = self.use("vae")
        if self.untiled_pixels is not None:
            vae.disable_tiling()
        latents = vae.encode(pixels.to(self.compute_device, dtype_of(vae))).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.inference_mode()
    def prepare(self, condition: Conditioning, sampling: Sampling) -> Prepared:
        """What all images of a request share: positions, embedded text and references, the schedule.

        The last result is kept for a next request that differs only in its seed.
        """
        state = getattr(self.transformer, "changes", 0), dict(getattr(self.scheduler, "config", {}))
        if self._prepared is not None:
            made_in, before, prepared = self._prepared
            if made_in == state and prepared.sampling == sampling and before.is_same(condition):
                return prepared
        transformer, width, height = self.use("transformer"), sampling.width, sampling.height
        device, dtype = self.compute_device, dtype_of(transformer)
        references = [tokens.pack(reference).to(device, dtype) for reference in condition.references]
        sizes = [(reference.shape[-2] // 2, reference.shape[-1] // 2) for reference in condition.references]
        target = (height // tokens.PIXELS_PER_TOKEN, width // tokens.PIXELS_PER_TOKEN)
        style = torch.cat(condition.styles, dim=1).to(device) if condition.styles else None  # (1, K, D)
        text_stream = condition.text.shape[1] + (style.shape[1] if style is not None else 0)
        fixed = transformer.fix(
            condition.text.to(device, dtype),
            style,
            torch.cat(references, dim=1) if references else None,  # (1, R, 4C)
            tokens.image_ids(target, sizes, self.config.reference_columns).to(device),  # (S + R, 3)
            torch.zeros(text_stream, 3, device=device),  # (K + T, 3)
            attention_bias(condition, sampling, target[0] * target[1], device),
        )
        self._set_timesteps(sampling)
        prepared = Prepared(sampling, fixed, condition.pooled.to(device, dtype), self.scheduler.sigmas.to(device))
        self._prepared = state, condition, prepared
        return prepared

    @torch.inference_mode()
    def denoise(
        self, prepared: Prepared, generator: torch.Generator, start: torch.Tensor | None = None
    ) -> Generator[Denoised, torch.Tensor | None, torch.Tensor]:
        """Denoises step by step along the scheduler and returns packed latents (1, S, 4C).

        Begins at `start` (1, S, 4C) if given, else at noise from the generator. A value sent after a step replaces its
        latents. Closing the iterator leaves nothing behind.
        """
        transformer, sampling = self.use("transformer"), prepared.sampling
        device, dtype, channels = self.compute_device, dtype_of(transformer), transformer.config.in_channels // 4
        self._set_timesteps(sampling)  # another image may have advanced the scheduler
        if start is None:
            start = tokens.pack(tokens.noise(sampling.width, sampling.height, channels, generator))
        latents = start.to(device, dtype)  # (1, S, 4C)
        last: torch.Tensor | None = None  # the velocity of the step before
        cache = StepCache(sampling.steps) if sampling.fast else None
        pace = Pace(device)
        attention: Callable[[], Any] = nullcontext
        if self.sdpa_backends is not None:
            attention = partial(sdpa_backends, self.sdpa_backends, biased=bool(prepared.fixed.attention))
        for step, timestep in enumerate(self.scheduler.timesteps):
            rows = prepared.rows(transformer, step)
            with attention():
                velocity = transformer.step(latents, prepared.fixed, rows, cache)
            before, slope = latents, velocity
            if sampling.sampler == "ab2" and last is not None:
                slope = tokens.second_order(velocity, last, prepared.sigmas, step)
            last = velocity
            latents = self.scheduler.step(slope, timestep, before, generator=generator, return_dict=False)[0]
            if step == 0 and latents.isnan().any():  # checked once: a GPU is waited for
                raise _no_numbers("transformer", dtype)
            pace.keep()
            given = yield Denoised(latents, timestep, before, velocity)
            if given is not None:
                latents = given
        return latents

    def denoise_all(
        self,
        prepared: Prepared,
        generator: torch.Generator,
        callback: StepCallback | None = None,
        seen: Collection[str] = _callback_tensor_inputs,
        start: torch.Tensor | None = None,
        advance: Callable[[], Any] | None = None,
    ) -> torch.Tensor:
        """`denoise` to the end, or until it is interrupted, with a callback after each step."""
        steps, given = self.denoise(prepared, generator, start), None
        for number in itertools.count():
            try:
                step = steps.send(given)
            except StopIteration as end:
                return end.value
            if advance is not None:
                advance()
            if callback is not None:
                tensors = {name: getattr(step, name) for name in seen}
                given = (callback(self, number, step.timestep, tensors) or {}).get("latents")
                if self._interrupt:
                    steps.close()
                    return step.latents if given is None else given
        raise AssertionError("denoising never ends")

    def _set_timesteps(self, sampling: Sampling) -> None:
        """Resets the scheduler to the start of the schedule; raises `RequestError` if it is of another kind."""
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            raise RequestError("scheduler", name=type(self.scheduler).__name__)
        mu = tokens.schedule_mu(tokens.schedule_tokens(sampling.width, sampling.height, sampling.schedule))
        sigmas = torch.linspace(1, 0, sampling.steps + 1)[:-1].tolist()
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self.compute_device)
        self.scheduler.set_begin_index(0)

    @torch.inference_mode()
    def decode(self, packed: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Packed latents to pixels: (1, S, 4C) -> (1, 3, height, width) in [-1, 1]."""
        vae = self.use("vae")
        if self.untiled_pixels is not None:
            (vae.enable_tiling if width * height > self.untiled_pixels else vae.disable_tiling)()
        latents = tokens.unpack(packed.to(dtype_of(vae)), height, width)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(latents, return_dict=False)[0].clamp(-1, 1)
        if pixels.isnan().any():  # which would be drawn as black
            raise _no_numbers("VAE" if latents.isfinite().all() else "transformer", dtype_of(vae))
        return pixels

    @torch.inference_mode()
    def warm_up(self, width: int, height: int, content_size: int) -> None:
        """Runs one step on empty input in two shapes, so that compiled blocks are ready for these and, dynamically,
        others.

        The larger shape is a square content image with one style image, the smaller one text alone.
        """
        config, device, dtype = self.transformer.config, self.compute_device, dtype_of(self.transformer)

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, device=device, dtype=dtype)

        text = zeros(1, self.config.text_tokens, config.joint_attention_dim)
        pooled = zeros(1, config.pooled_projection_dim)
        projector, side = self.style_projector.config, content_size // tokens.PIXELS_PER_LATENT
        style, reference = (
            zeros(1, 3 * projector.tokens_out, projector.width),
            zeros(1, config.in_channels // 4, side, side),
        )
        for condition in (Conditioning(text, pooled, (style,), (reference,)), Conditioning(text, pooled, (), ())):
            prepared = self.prepare(condition, Sampling(width=width, height=height, steps=1, guidance=1.0))
            self.denoise_all(prepared, self.generator(0), None)
        self._prepared = None

    @property
    def constants(self) -> dict[str, Any]:
        """The initializer's arguments that are not components, for building another pipeline."""
        names = ("text_tokens", "preview_factors", "reference_columns")
        return {name: self.config[name] for name in names}

    @property
    def compute_device(self) -> torch.device:
        """Where inputs go and noise is drawn, also where hooks of accelerate or diffusers move the weights.

        diffusers' own `device` walks through all modules, which takes half a millisecond on a CPU.
        """
        if self.offloader is not None:
            return self.offloader.device
        module = self.transformer or next(each for each in self.components.values() if isinstance(each, nn.Module))
        if is_hooked(module):
            return execution_device(module) or self._execution_device
        return next(module.parameters()).device

    def use(self, name: str) -> Any:
        """The component of this name, on the compute device."""
        if self.offloader is not None:
            return self.offloader.use(name)
        module = getattr(self, name)
        enter(module)
        return module

    def generator(self, seed: int | None = None) -> torch.Generator:
        """A random generator on the device where noise is drawn; freshly seeded if no seed is given."""
        source = torch.Generator(self.compute_device)
        return source.manual_seed(source.seed() if seed is None else seed)

    @staticmethod
    def to_images(pixels: torch.Tensor) -> list[Image.Image]:
        """(B, 3, h, w) in [-1, 1] to RGB images; levels are truncated, not rounded, as in the reference."""
        levels = (127.5 * (pixels.float() + 1)).permute(0, 2, 3, 1).to(torch.uint8)  # (B, h, w, 3)
        return [Image.fromarray(image) for image in levels.cpu().numpy()]

    def preview(self, packed: torch.Tensor, width: int, height: int) -> Image.Image | None:
        """A thumbnail of packed latents, an eighth of the width and height, made without the decoder."""
        return preview.draw(tokens.unpack(packed, height, width), self.config.preview_factors)

    def _output(self, values: torch.Tensor, kind: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Pixels (B, 3, height, width) in [-1, 1], or latents, as a caller wants them."""
        if kind == "latent":
            return values
        if kind == "pil":
            return self.to_images(values)
        values = values / 2 + 0.5
        return values if kind == "pt" else values.permute(0, 2, 3, 1).float().cpu().numpy()

    def _generators(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        seed: int | None,
        prompts: int,
        images: int,
    ) -> list[torch.Generator]:
        """A generator for each image of each prompt."""
        if generator is not None and seed is not None:
            raise RequestError("generator_and_seed")
        if isinstance(generator, torch.Generator):
            return [generator] * (prompts * images)
        if generator is None:
            first = None if seed is None else whole("seed", seed, 0, MAX_SEED - images + 1)
            return [
                self.generator(None if first is None else first + number)
                for _ in range(prompts)
                for number in range(images)
            ]
        if not isinstance(generator, Sequence) or not all(isinstance(each, torch.Generator) for each in generator):
            raise RequestError("generator_kind", value=type(generator).__name__)
        if not generator:
            raise RequestError("no_generators")
        if len(generator) == prompts * images:
            return list(generator)
        if prompts == images == 1:
            return list(generator)
        raise RequestError("generators_count", generators=len(generator), images=prompts * images)


def _forgetting(change: Callable[..., Any]) -> Callable[..., Any]:
    """The method, after which nothing prepared with the weights before is used again."""

    @functools.wraps(change)
    def method(pipeline: USOPipeline, *args: Any, **kwargs: Any) -> Any:
        pipeline.forget()
        return change(pipeline, *args, **kwargs)

    return method


for _name in ("load_lora_weights", "unload_lora_weights", "fuse_lora", "unfuse_lora", "set_adapters", "disable_lora",
              "enable_lora", "delete_adapters"):  # fmt: skip
    setattr(USOPipeline, _name, _forgetting(getattr(FluxLoraLoaderMixin, _name)))
USOPipeline.to = _forgetting(DiffusionPipeline.to)


def _no_numbers(part: str, dtype: torch.dtype) -> WeightsError:
    return WeightsError("not_a_number", part=part, dtype=str(dtype).removeprefix("torch."))


def dtype_of(module: torch.nn.Module) -> torch.dtype:
    """The dtype a module computes in, which its fp8 weights, if any, do not show.

    diffusers' own property walks through all modules, which takes half a millisecond on a CPU.
    """
    return next(weight.dtype for weight in module.parameters() if weight.dtype.itemsize > 1)
