"""The parts of uso-tiny, all from the classes that the application runs, and the velocity they predict together.

Letters: B batch, S target tokens, R reference tokens, T text tokens, K style tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.func import functional_call
from transformers import SiglipVisionConfig, SiglipVisionModel

from uso_core.model.latents import image_ids, pack
from uso_core.model.style_projector import StyleProjector
from uso_core.model.transformer import USOTransformer2DModel

from .lora import Lora, fused
from .text import TEXT_WIDTH, Words, build_clip, build_t5, tokenizers

VISION_SIZE, VISION_PATCH, VISION_WIDTH, VISION_LAYERS = 128, 16, 128, 4
STYLE_TOKENS_PER_DEPTH = 8
REFERENCE_COLUMNS = 8  # a reference begins at most so far to the right: as in a square picture, in wide ones too
STYLE_DEPTHS = (-2, -3, -4)  # high, mid, low: the tower has 4 layers where so400m has 27


@dataclass(frozen=True)
class Shape:
    """Sizes of the transformer and its LoRA."""

    heads: int = 4
    head_size: int = 64
    doubles: int = 2
    singles: int = 6
    rank: int = 96

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_size

    @property
    def axes(self) -> tuple[int, int, int]:
        """RoPE axes: head size x (1/8, 7/16, 7/16), the proportions of FLUX.1."""
        return (self.head_size // 8, self.head_size * 7 // 16, self.head_size * 7 // 16)


PUBLISHED = Shape()  # of weights/uso-tiny


@dataclass(frozen=True)
class Conditions:
    """What a batch is conditioned on, encoded."""

    text: torch.Tensor  # (B, T, text width)
    pooled: torch.Tensor  # (B, text width)
    style: torch.Tensor | None  # (B, K, D)
    reference: torch.Tensor | None  # (B, 16, h, w) normalised latents
    adapted: bool  # whether the LoRA is on


def build_transformer(shape: Shape) -> USOTransformer2DModel:
    """The transformer, its modulations and its last layer starting at zero as DiT's do."""
    transformer = USOTransformer2DModel(
        in_channels=64,
        num_layers=shape.doubles,
        num_single_layers=shape.singles,
        attention_head_dim=shape.head_size,
        num_attention_heads=shape.heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=shape.axes,
    )
    for module in transformer.modules():
        if type(module).__name__ in ("AdaLayerNormZero", "AdaLayerNormZeroSingle", "AdaLayerNormContinuous"):
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.linear.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


class TinyUso(nn.Module):
    """All trained parts but the VAE. Sub-modules are what export writes, one file or folder each."""

    def __init__(self, shape: Shape = PUBLISHED) -> None:
        super().__init__()
        self.shape = shape
        self.t5_tokenizer, self.clip_tokenizer = tokenizers()
        self.t5 = build_t5(len(self.t5_tokenizer))
        self.clip = build_clip(self.clip_tokenizer)
        self.siglip = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=VISION_WIDTH,
                intermediate_size=3 * VISION_WIDTH,
                num_hidden_layers=VISION_LAYERS,
                num_attention_heads=4,
                image_size=VISION_SIZE,
                patch_size=VISION_PATCH,
            )  # fmt: skip
        )
        self.projector = StyleProjector(
            tokens_in=(VISION_SIZE // VISION_PATCH) ** 2, tokens_out=STYLE_TOKENS_PER_DEPTH,
            vision_width=VISION_WIDTH, width=shape.width, depths=STYLE_DEPTHS,
        )  # fmt: skip
        self.transformer = build_transformer(shape)
        self.lora = Lora(shape.width, 4 * shape.width, shape.doubles, shape.singles, shape.rank)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.transformer.proj_out.weight.device

    def encode_text(self, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
        """T5 states (B, T, width) and CLIP's pooled output (B, width)."""
        states = self.t5(input_ids=words.t5.to(self.device)).last_hidden_state
        return states, self.clip(input_ids=words.clip.to(self.device)).pooler_output

    def encode_style(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 (B, N, 128, 128, 3), N style images each -> style tokens (B, N * K, D)."""
        b, n = pictures.shape[:2]
        pixels = pictures.to(self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1  # mean .5, std .5
        states = self.siglip(pixel_values=pixels, output_hidden_states=True).hidden_states
        tokens = self.projector(states)  # (B * N, K, D)
        return tokens.reshape(b, n * tokens.shape[1], -1)

    def adapted_weights(self) -> dict[str, torch.Tensor]:
        """The transformer's weights with the LoRA added, for `velocity`."""
        return fused(self.transformer, self.lora)

    def velocity(
        self,
        noisy: torch.Tensor,
        time: torch.Tensor,
        guidance: torch.Tensor,
        conditions: Conditions,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Noise minus data, as FLUX predicts it, packed.

        noisy: latents (B, 16, h, w); time, guidance: (B,). weights: `adapted_weights`, where they are at hand.
        Returns (B, S, 64).
        """
        target = (noisy.shape[2] // 2, noisy.shape[3] // 2)
        image = pack(noisy)  # (B, S, 64)
        s = image.shape[1]
        references: tuple[tuple[int, int], ...] = ()
        if conditions.reference is not None:
            references = ((conditions.reference.shape[2] // 2, conditions.reference.shape[3] // 2),)
            image = torch.cat([image, pack(conditions.reference)], 1)  # (B, S + R, 64)
        k = 0 if conditions.style is None else conditions.style.shape[1]
        arguments = {
            "hidden_states": image,
            "encoder_hidden_states": conditions.text,
            "pooled_projections": conditions.pooled,
            "style_tokens": conditions.style,
            "timestep": time,
            "guidance": guidance,
            "img_ids": _positions(target, references, self.device),
            "txt_ids": torch.zeros(k + conditions.text.shape[1], 3, device=self.device),
            "return_dict": False,
        }
        if conditions.adapted:
            out = functional_call(self.transformer, weights or self.adapted_weights(), (), arguments)[0]
        else:
            out = self.transformer(**arguments)[0]
        return out[:, :s]


@lru_cache(maxsize=64)
def _positions(target: tuple[int, int], references: tuple[tuple[int, int], ...], device: torch.device) -> torch.Tensor:
    """Position ids (S + R, 3), kept on the device."""
    return image_ids(target, list(references), REFERENCE_COLUMNS).to(device)
