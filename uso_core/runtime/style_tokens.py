"""A request's styles in the form that the pipeline takes: images, and tokens made earlier."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image

from uso_core.model.pipeline import USOPipeline

SAMPLES = 4096  # values per weight that the fingerprint reads


@torch.inference_mode()
def encoded(styles: list[Image.Image | torch.Tensor], pipeline: USOPipeline) -> tuple[np.ndarray, ...]:
    """The style tokens of each image, (K, D) float32."""
    return tuple(pipeline.style_tokens(style)[0].float().cpu().numpy() for style in styles)


@torch.inference_mode()
def fingerprint(pipeline: USOPipeline) -> str:
    """64 hex digits over name, shape and evenly spaced values of the weights that turn an image into style tokens.

    Independent of the weights' file, layout and placement. The 428 M parameters of SigLIP so400m take a fraction of a
    second.
    """
    if pipeline.offloader is not None:
        pipeline.offloader.leave()  # before that, a streamed tower's blocks point at memory that others pass through
    digest = hashlib.sha256()
    for module in (pipeline.image_encoder, pipeline.style_projector):
        for name, tensor in sorted(module.state_dict().items()):
            values = tensor.flatten()
            step = max(1, values.numel() // SAMPLES)
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(values[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()
