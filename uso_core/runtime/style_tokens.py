"""The styles of a request as the pipeline takes them: images, and tokens that were made earlier."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image

from uso_core.model.pipeline import USOPipeline

SAMPLES = 4096  # values of each weight that the fingerprint looks at


@torch.inference_mode()
def encoded(styles: list[Image.Image | torch.Tensor], pipeline: USOPipeline) -> tuple[np.ndarray, ...]:
    """The style tokens of each, (K, D) float32."""
    return tuple(pipeline.style_tokens(style)[0].float().cpu().numpy() for style in styles)


@torch.inference_mode()
def fingerprint(pipeline: USOPipeline) -> str:
    """64 hex digits over name, shape and evenly spaced values of the weights that turn an image into style tokens.

    The same whatever file and layout the weights came from and wherever they are placed. The 428 M parameters of
    SigLIP so400m take a fraction of a second.
    """
    if pipeline.offloader is not None:
        pipeline.offloader.leave()  # until then the blocks of a streamed tower point at memory that others pass through
    digest = hashlib.sha256()
    for module in (pipeline.image_encoder, pipeline.style_projector):
        for name, tensor in sorted(module.state_dict().items()):
            values = tensor.flatten()
            step = max(1, values.numel() // SAMPLES)
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(values[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()
