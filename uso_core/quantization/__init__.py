"""Linear layers with one-byte weights."""
