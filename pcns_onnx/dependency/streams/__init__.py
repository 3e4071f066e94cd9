"""Residual streams of pre-norm transformers: where they run, what writes them, what reads them through norms."""
