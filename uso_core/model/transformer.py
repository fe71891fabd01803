"""FLUX.1's transformer with style tokens in front of its text.

Letters: B batch, S image tokens (target and references), T text tokens, K style tokens, D width.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel, ModelMixin  # noqa: F401  (from_pretrained looks for ModelMixin here)
from diffusers.models.modeling_outputs import Transformer2DModelOutput


class USOTransformer2DModel(FluxTransformer2DModel):
    """`FluxTransformer2DModel` whose forward takes style tokens; without them it equals the base class bit for bit.

    The weights and their names are those of the base class.
    """

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
        """One prediction of the velocity for all image tokens: (B, S, 4C).

        Args:
            hidden_states: packed latents of target and references (B, S, 4C).
            encoder_hidden_states: T5's last hidden state (B, T, T5 width).
            pooled_projections: CLIP's pooled output (B, CLIP width).
            timestep: sigma in [0, 1] (B,).
            img_ids, txt_ids: positions (S, 3) and (K + T, 3).
            guidance: the embedded guidance (B,); None exactly where the model has no guidance embedding.
            style_tokens: output of `StyleProjector` (B, K, D), put before the embedded text.
            attention_bias: added to every attention's logits, per key (1, 1, 1, K + T + S).
        """
        image = self.x_embedder(hidden_states)  # (B, S, D)
        text = self.context_embedder(encoder_hidden_states)  # (B, T, D)
        if style_tokens is not None:
            text = torch.cat([style_tokens.to(text.dtype), text], dim=1)  # (B, K + T, D)
        conditions = [value.to(image.dtype) * 1000 for value in (timestep, guidance) if value is not None]
        modulation = self.time_text_embed(*conditions, pooled_projections)  # (B, D)
        rotary = self.pos_embed(torch.cat([txt_ids, img_ids]))
        extra = {} if attention_bias is None else {"attention_mask": attention_bias.to(image.dtype)}
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                temb=modulation,
                image_rotary_emb=rotary,
                joint_attention_kwargs=extra,
            )
        sample = self.proj_out(self.norm_out(image, modulation))  # (B, S, 4C)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
