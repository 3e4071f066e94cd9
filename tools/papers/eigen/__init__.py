"""Graham's thesis: EigenRemove and WeakExpand."""
