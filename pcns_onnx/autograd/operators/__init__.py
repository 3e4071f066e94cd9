"""ONNX operators in PyTorch: one function per operator, its attributes as keyword arguments.

A function takes the node's inputs by position and its attributes by their ONNX names; an
attribute that it does not take is refused before anything runs. A module a kind, and `registry`
puts their tables together. Semantics are those of the ONNX operator specification at the opset
that the model is written in, and of onnxruntime's documentation for com.microsoft.
"""
