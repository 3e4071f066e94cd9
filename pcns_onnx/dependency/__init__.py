"""Which channels go together: the dependency graph of structured pruning, as layers and groups."""
