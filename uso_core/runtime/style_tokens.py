"""The styles of a request as the pipeline takes them: images, and tokens that were made earlier."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image

from uso_core.catalog.models import Model
from uso_core.errors import RequestError
from uso_core.messages import message
from uso_core.model.pipeline import USOPipeline
from uso_core.request import GenerationRequest, StoredStyle

SAMPLES = 4096  # values of each weight that the fingerprint looks at


def styles_of(
    request: GenerationRequest, pipeline: USOPipeline, model: Model
) -> tuple[list[Image.Image | torch.Tensor], tuple[float, ...]]:
    """The styles for `encode`, tokens (1, K, D) or images, and a strength for each; none where all are 1.

    Raises `RequestError` naming a saved style whose tokens another projector or vision tower made.
    """
    saved = any(isinstance(style, StoredStyle) for style in request.styles)
    ours = fingerprint(pipeline) if saved else ""
    styles: list[Image.Image | torch.Tensor] = []
    strengths: list[float] = []
    given = request.style_strengths or (1.0,) * len(request.styles)
    for style, strength in zip(request.styles, given, strict=True):
        if isinstance(style, StoredStyle):
            if style.fingerprint != ours:
                other = "style_for_weights" if style.model == model.name else "style_for_model"
                made_for = message(other, model=style.model)
                raise RequestError("style_made_elsewhere", name=style.name, made_for=made_for, model=model.name)
            placed = (torch.tensor(tokens).to(pipeline.compute_device) for tokens in style.tokens)
            styles += [tokens[None] for tokens in placed]
            strengths += [strength * each for each in style.strengths]
        elif style.image is not None:
            styles.append(style.image)
            strengths.append(strength)
    return styles, tuple(strengths) if any(strength != 1.0 for strength in strengths) else ()


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
