"""Memory: what fits, what stays where, and weights in one byte a number."""
