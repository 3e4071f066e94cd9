"""An ONNX graph as a trainable PyTorch module, and back: the one room of operators that have gradients."""
