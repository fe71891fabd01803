"""Style images as tokens: three depths of SigLIP, each projected into the transformer's text stream.

Letters: B batch, N vision tokens, V vision width, M style tokens per depth, D transformer width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

NAMES = ("high", "mid", "low")
DEPTHS = (-2, -11, -20)  # hidden states of the 27 layers of SigLIP so400m, before the final norm


class StyleProjector(ModelMixin, ConfigMixin):
    """USO's projector: per depth a linear over the token axis N -> M, SiLU, LayerNorm over V, linear V -> D.

    The defaults are the published sizes: 729 -> 64 tokens per depth, width 1152 -> 3072. `depths` index the vision
    tower's hidden states in the order of the output tokens: high, mid, low. The submodules are named as in the
    published file, whose keys begin with "feature_embedder.".
    """

    @register_to_config
    def __init__(
        self,
        tokens_in: int = 729,
        tokens_out: int = 64,
        vision_width: int = 1152,
        width: int = 3072,
        depths: Sequence[int] = DEPTHS,
    ) -> None:
        super().__init__()
        for name in NAMES:
            self.add_module(f"{name}_embedding_linear", nn.Sequential(nn.Linear(tokens_in, tokens_out), nn.SiLU()))
            self.add_module(f"{name}_layer_norm", nn.LayerNorm(vision_width))
            self.add_module(f"{name}_projection", nn.Linear(vision_width, width))

    def forward(self, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """All hidden states of the vision tower, each (B, N, V) -> style tokens (B, 3M, D)."""
        tokens = []
        for name, depth in zip(NAMES, self.config.depths, strict=True):
            state = hidden_states[depth].transpose(1, 2)  # (B, V, N)
            state = self.get_submodule(f"{name}_embedding_linear")(state).transpose(1, 2)  # (B, M, V)
            state = self.get_submodule(f"{name}_layer_norm")(state)
            tokens.append(self.get_submodule(f"{name}_projection")(state))  # (B, M, D)
        return torch.cat(tokens, dim=1)
