"""What shapes tensors have: inferred, where inference is mended."""
