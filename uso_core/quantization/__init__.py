"""Linear layers with weights of one byte."""
