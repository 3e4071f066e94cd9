"""Damaged files and killed runs."""
