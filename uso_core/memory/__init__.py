"""Decides where each part of a model lies, from sizes and the machine's free memory, and places it there."""
