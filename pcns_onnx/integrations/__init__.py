"""Shrinking as a step of other tools' pipelines."""
