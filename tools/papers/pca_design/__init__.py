"""Garg, Panda and Roy: a low-effort approach to design by PCA."""
