"""Residual streams of pre-norm transformers: where they run, what writes them, and through which norms they are read."""
