"""Fused operators taken apart for the solve, and put together again."""
