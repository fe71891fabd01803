"""Faster forwards of transformer and VAE on a CPU."""
