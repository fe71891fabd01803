"""What is computed: latents, style tokens, the transformer, the pipeline."""
