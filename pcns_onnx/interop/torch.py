"""ONNX to a trainable `torch.nn.Module` and back, so that training can go on where shrinking left off.

    module = to_torch("small.onnx")             # an fx.GraphModule: one call per ONNX node
    ...                                         # train it: gradients reach every weight
    onnx.save(to_onnx(module, "small.onnx"), "trained.onnx")

PyTorch is an extra: `pip install 'pcns-onnx[torch]'`.
"""

from pcns_onnx.autograd.translation import to_onnx, to_torch, unknown_operators

__all__ = ["to_onnx", "to_torch", "unknown_operators"]
