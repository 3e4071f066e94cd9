"""Methods in families, a folder each: what a method may touch, which widths it takes, which weights it makes."""
