"""Attention in one operator, as ONNX 1.18 and onnxruntime have it, and the rotary angles in front of it."""
