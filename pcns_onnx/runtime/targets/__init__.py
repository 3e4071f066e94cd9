"""Runtimes that a model may be meant for: what each likes, and how a model is timed there."""
