"""Edits of a graph."""
