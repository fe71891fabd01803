"""Faster forwards of the transformer and VAE on a CPU."""
