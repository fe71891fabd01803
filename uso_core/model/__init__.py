"""The model itself: latents, style tokens, the transformer, the pipeline."""
