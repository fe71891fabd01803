"""Which linear layers are quantized, by name: shared by quantizing and memory planning. No torch."""

from __future__ import annotations

import re

# Linear layers worth quantizing, by name. Those left out are small, or change the image more than the others together:
# embedders, modulation and output of the transformer, T5's `wo` (which T5 itself wants in a wide format: it casts its
# activations to that weight's dtype).
_ATTENTION = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
TRANSFORMER_MATRICES = re.compile(
    rf"(single_)?transformer_blocks\.\d+\.({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
T5_MATRICES = re.compile(r"encoder\.block\.\d+\.layer\.\d+\.(SelfAttention\.[qkvo]|DenseReluDense\.wi(_[01])?)")
