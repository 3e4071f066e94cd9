"""The small model learns from its own original (distillation); the modules that train need PyTorch."""
