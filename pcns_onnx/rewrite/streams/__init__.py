"""A residual stream in another basis: its norms, its writers and its readers rewritten."""
