"""The basis that a residual stream is narrowed in, and what its layers are solved for once it is narrow."""
