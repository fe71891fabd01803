"""FLUX.1's transformer with style tokens before its text, and with everything hoisted that no step changes.

Letters: B batch, S target tokens, R reference tokens, T text tokens, K style tokens, D width, N steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, ModelMixin  # noqa: F401  (from_pretrained looks for ModelMixin here)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from uso_core.errors import RequestError
from uso_core.model.step_cache import StepCache


class Modulation(nn.Linear):
    """An adaLN layer in two halves: it computes its shifts, scales and gates ahead, and later looks them up.

    They depend only on timestep, guidance and pooled text, so one table serves all steps and images of a request, and
    these matrices (3.25 of FLUX.1's 11.9 billion parameters) need not stay on the device. The layers of one block
    share a row; `offset` is where this layer's part begins.
    """

    def __init__(self, linear: nn.Linear, offset: int) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.offset = offset

    def forward(self, row: torch.Tensor, ahead: bool = False) -> torch.Tensor:
        """The block's row (B, sum of its layers' outputs) -> (B, out).

        With `ahead`, (N, D) on any device -> (N, out) there, the weights being brought to that device only for this
        call. Both are here since hooks, which bring weights or cast them, act around `forward`.
        """
        if not ahead:
            return row[:, self.offset : self.offset + self.out_features]
        weight, bias = (each.to(row.device, non_blocking=True) for each in (self.weight, self.bias))
        return F.linear(row, weight, bias)


@dataclass(frozen=True)
class Fixed:
    """Everything that is the same in every step of a request; made by `fix`."""

    text: torch.Tensor  # (B, K + T, D), style tokens and embedded text
    references: torch.Tensor | None  # (B, R, D), embedded
    rotary: tuple[torch.Tensor, torch.Tensor]  # cosines and sines (K + T + S + R, head size)
    attention: dict[str, torch.Tensor]  # keyword arguments for attention in the blocks


class Kernels(Protocol):
    """Computes in the transformer's place on a CPU (`cpu/transformer.py`)."""

    def __call__(
        self, latents: torch.Tensor, fixed: Fixed, rows: tuple[torch.Tensor, ...], cache: StepCache | None
    ) -> torch.Tensor:
        """`USOTransformer2DModel.step`, for one sample."""

    def tables(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layers' part of `USOTransformer2DModel.modulation`, from (N, D)."""


class USOTransformer2DModel(FluxTransformer2DModel):
    """`FluxTransformer2DModel` with style tokens; `forward` without them equals the base class bit for bit.

    Weights keep the base class's names. `forward` is one complete prediction; a pipeline calls `fix` and `modulation`
    once and `step` for each step.
    """

    # diffusers reads the configuration's names from the signature
    @functools.wraps(FluxTransformer2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.transformer_blocks:
            block.norm1.linear = Modulation(block.norm1.linear, 0)
            block.norm1_context.linear = Modulation(block.norm1_context.linear, block.norm1.linear.out_features)
        for block in self.single_transformer_blocks:
            block.norm.linear = Modulation(block.norm.linear, 0)
        self.norm_out.linear = Modulation(self.norm_out.linear, 0)
        for module in self.modules():
            if isinstance(getattr(module, "linear", None), Modulation):
                module.silu = nn.Identity()  # applied once, in `modulation`
        self.blocks: Iterable[Callable[..., Any]] = (*self.transformer_blocks, *self.single_transformer_blocks)
        self.kernels: Kernels | None = None
        self.changes = 0  # how often its adapters changed: what was prepared before is prepared with other weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
        style_tokens: torch.Tensor | None = None,
        attention_bias: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """One prediction of the velocity for all image tokens: (B, S + R, 4C).

        Args:
            hidden_states: packed latents of target and references (B, S + R, 4C).
            encoder_hidden_states: T5's last hidden state (B, T, T5 width).
            pooled_projections: CLIP's pooled output (B, CLIP width).
            timestep: sigma in [0, 1] (B,).
            img_ids, txt_ids: positions (S + R, 3) and (K + T, 3).
            guidance: the embedded guidance (B,); None if and only if the model has no guidance embedding.
            style_tokens: output of `StyleProjector` (B, K, D), placed before the embedded text.
            attention_bias: added to every attention's logits, per key (1, 1, 1, K + T + S + R).
        """
        fixed = self.fix(encoder_hidden_states, style_tokens, None, img_ids, txt_ids, attention_bias)
        rows = self.modulation(timestep, guidance, pooled_projections, hidden_states.dtype)
        sample = self.step(hidden_states, fixed, rows)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def fix(
        self,
        text: torch.Tensor,
        style_tokens: torch.Tensor | None,
        references: torch.Tensor | None,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        attention_bias: torch.Tensor | None = None,
    ) -> Fixed:
        """Embeds what `step` needs besides the latents.

        `references` are packed latents (B, R, 4C) or None; the other arguments are as in `forward`.
        """
        stream = self.context_embedder(text)  # (B, T, D)
        if style_tokens is not None:
            stream = torch.cat([style_tokens.to(stream.dtype), stream], dim=1)  # (B, K + T, D)
        embedded = self.x_embedder(references) if references is not None else None  # (B, R, D)
        rotary = self.pos_embed(torch.cat([txt_ids, img_ids]))
        attention = {} if attention_bias is None else {"attention_mask": attention_bias.to(stream.dtype)}
        return Fixed(stream, embedded, rotary, attention)

    def modulation(
        self, timesteps: torch.Tensor, guidance: torch.Tensor | None, pooled: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """The adaLN table: one row per timestep for each block, then for the output (N, its layers' outputs together).

        `timesteps` are sigmas (N,), `guidance` (N,) or (1,) or None as in `forward`, `pooled` (N or 1, CLIP width).
        """
        values = [value.to(dtype) * 1000 for value in (timesteps, guidance) if value is not None]
        condition = F.silu(self.time_text_embed(*values, pooled))  # (N, D)
        if self.kernels is not None:
            return self.kernels.tables(condition)
        return tuple(
            torch.cat([layer(condition, ahead=True) for layer in layers], dim=1) for layers in modulations(self)
        )

    def step(
        self,
        latents: torch.Tensor,
        fixed: Fixed,
        rows: tuple[torch.Tensor, ...],
        cache: StepCache | None = None,
    ) -> torch.Tensor:
        """The velocity (B, S, 4C) of the given tokens, from their packed latents (B, S, 4C).

        `rows` are this step's rows of the table, each (B, ...); a `cache` may replace all blocks but the first.
        """
        if self.kernels is not None and len(latents) == 1:
            return self.kernels(latents, fixed, rows, cache)
        image = self.x_embedder(latents)  # (B, S, D)
        target = image.shape[1]
        if fixed.references is not None:
            image = torch.cat([image, fixed.references], dim=1)  # (B, S + R, D)
        text, before = fixed.text, None if cache is None else image[:, :target]
        for block, row in zip(self.blocks, rows[:-1], strict=True):
            streams = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=row,
                image_rotary_emb=fixed.rotary,
                joint_attention_kwargs=fixed.attention,
            )
            text, image = map(_regular, streams)
            if cache is not None and before is not None:
                hit, before = cache.hit(image[:, :target], before), None  # only after the first block
                if hit:
                    image = cache.reuse()
                    break
        image = image[:, :target]
        if cache is not None:
            cache.keep(image)
        return self.proj_out(self.norm_out(image, rows[-1]))  # (B, S, 4C)


def _regular(stream: torch.Tensor) -> torch.Tensor:
    """The same tensor (B, N, D) with the strides of an independent tensor.

    A single block returns two parts of one tensor. With a batch of one they are contiguous anyway, but the first
    stride of the whole would make a compiler recompile the next block.
    """
    return stream.flatten(0, 1)[None] if len(stream) == 1 else stream


def modulations(transformer: USOTransformer2DModel) -> list[tuple[Modulation, ...]]:
    """The adaLN layers that share a row: those of each block, then those of the output.

    Raises `RequestError` if one of them has a LoRA of PEFT's that is not fused: it would act on the row.
    """
    doubles = [(block.norm1.linear, block.norm1_context.linear) for block in transformer.transformer_blocks]
    singles = [(block.norm.linear,) for block in transformer.single_transformer_blocks]
    found = [*doubles, *singles, (transformer.norm_out.linear,)]
    if any(getattr(layer, "merged", True) is False for layers in found for layer in layers):  # PEFT's, around ours
        raise RequestError("lora_unfused")
    return found


def _changing(change: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which leaves no copies of the weights behind that it changes."""

    @functools.wraps(change)
    def method(transformer: USOTransformer2DModel, *args: Any, **kwargs: Any) -> Any:
        transformer.kernels = None
        transformer.changes += 1
        return change(transformer, *args, **kwargs)

    return method


for _name in (
    "add_adapter", "delete_adapters", "disable_adapters", "disable_lora", "enable_adapters", "enable_lora", "fuse_lora",
    "load_lora_adapter", "set_adapter", "set_adapters", "unfuse_lora", "unload_lora",
):  # fmt: skip
    setattr(USOTransformer2DModel, _name, _changing(getattr(FluxTransformer2DModel, _name)))
