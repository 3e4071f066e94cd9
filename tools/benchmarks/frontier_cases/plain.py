"""The model as peers like to get it: constants folded, flattening said as Flatten, padded shortcuts as Conv.

onnxsim folds constants and, on request, BatchNormalization. A shortcut that strides by Slice and adds
channels by Pad (ResNet's "option A") is the 1x1 Conv whose weight is the identity among zeros: exact,
and the only form in which peers can narrow the residual stream. It adds MACs (0.6 % for ResNet-20),
which count.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxsim
from onnx import helper, numpy_helper

from benchmarks.frontier_cases.counting import shapes_of


def plain(path: str, *, fold_norms: bool, conv_shortcuts: bool) -> onnx.ModelProto:
    """Load and tidy a model; the function that it computes stays the same."""
    model = _simplified(onnx.load(path), fold_norms)
    _flatten(model)
    if conv_shortcuts:
        _convolve_shortcuts(model)
    return _simplified(model, fold_norms)


def _simplified(model: onnx.ModelProto, fold_norms: bool) -> onnx.ModelProto:
    simple: onnx.ModelProto = onnxsim.simplify(model, skip_fuse_bn=not fold_norms)[0]
    return simple


def _flatten(model: onnx.ModelProto) -> None:
    """Reshape before Gemm can only be N x rest: say so, because its constant would hold a width that changes."""
    matrices = {node.input[0] for node in model.graph.node if node.op_type == "Gemm"}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.output[0] in matrices:
            node.CopyFrom(helper.make_node("Flatten", node.input[:1], node.output, node.name, axis=1))


def _convolve_shortcuts(model: onnx.ModelProto) -> None:
    shapes = shapes_of(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    writers = {node.output[0]: node for node in model.graph.node}
    for pad in model.graph.node:
        if pad.op_type != "Pad":
            continue
        pads, source, stride = constants[pad.input[1]], pad.input[0], 1
        slicing = writers.get(source)
        if slicing is not None and slicing.op_type == "Slice":
            stride, source = int(constants[slicing.input[4]].max()), slicing.input[0]
        inputs, outputs = shapes[source][1], shapes[pad.output[0]][1]
        positions = shapes[source][2] // stride, shapes[source][3] // stride
        if pads[[0, 2, 3, 4, 6, 7]].any() or shapes[pad.output[0]][2:] != list(positions):
            raise ValueError(f"Pad '{pad.name}' is no padded shortcut")
        weight = np.zeros((outputs, inputs, 1, 1), np.float32)
        weight[int(pads[1]) : int(pads[1]) + inputs, :, 0, 0] = np.eye(inputs)
        name = f"{pad.output[0]}_identity"
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
        pad.CopyFrom(
            helper.make_node("Conv", [source, name], pad.output, name, kernel_shape=[1, 1], strides=[stride, stride])
        )
