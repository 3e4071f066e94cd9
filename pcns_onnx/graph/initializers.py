"""The contents of large initializers, kept beside the message that names them.

A protobuf message is copied with all that is in it, holds 2 GB at most when it is written, and
keeps what is overwritten allocated. So large initializers are NumPy arrays that all copies of a
graph share, and the message holds a placeholder for each: name, type and shape, marked as
external data. onnxruntime compiles such a pair as it is: a `Program`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.errors import InputError
from pcns_onnx.graph.protobuf import Array, copy_of, encode, keep_only

LARGE = 1024
"""Bytes; smaller contents stay in the message, where shape inference sees them."""

_PORTABLE = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL,
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
)  # fmt: skip
"""Types that onnxruntime takes as arrays; all others (int4, float8) stay in the message."""

_CONTENT = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data")


@dataclass(frozen=True)
class Program:
    """What onnxruntime compiles: a serialised model, and the contents that it leaves out, by initializer."""

    model: bytes
    weights: Mapping[str, Array] = field(default_factory=dict)

    def packed(self, sizes: Mapping[str, tuple[int, ...]]) -> bytes:
        """The model with all contents inside and inputs of these sizes, for other runtimes.

        Raises `InputError` above 2 GB.
        """
        if sum(value.nbytes for value in self.weights.values()) > onnx.checker.MAXIMUM_PROTOBUF:
            raise InputError("the model holds more than 2 GB: other runtimes are given it in one piece")
        model = onnx.ModelProto.FromString(self.model)
        for tensor in filter(is_left_out, model.graph.initializer):
            put_back(tensor, raw(self.weights[tensor.name]).tobytes())
        for value in model.graph.input:
            if value.name in sizes:
                del value.type.tensor_type.shape.dim[:]
                for size in sizes[value.name]:
                    value.type.tensor_type.shape.dim.add(dim_value=size)
                value.type.tensor_type.shape.SetInParent()  # a scalar has a shape, too
        return encode(model)


def is_left_out(tensor: TensorProto) -> bool:
    """Whether a tensor is a placeholder."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def is_large(tensor: TensorProto) -> bool:
    """Whether the content of a tensor belongs beside the message."""
    if tensor.data_type not in _PORTABLE:
        return False
    return math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize >= LARGE


def take_out(tensors: Iterable[TensorProto]) -> dict[str, Array]:
    """The contents of the large ones among `tensors`, by name; they are left placeholders."""
    contents: dict[str, Array] = {}
    for tensor in tensors:
        if is_left_out(tensor) or not is_large(tensor):
            continue
        try:
            contents[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # damaged: it stays, and `Graph.load` refuses it
            continue
        leave_out(tensor)
    return contents


def leave_out(tensor: TensorProto) -> None:
    """Make a tensor the placeholder of its content, in place."""
    for name in _CONTENT:
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="beside")


def put_back(tensor: TensorProto, content: bytes) -> None:
    """Give a placeholder its content again, in place."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = content


def raw(value: Array) -> memoryview:
    """The bytes of an array, not copied where it lies in one piece."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def without(model: onnx.ModelProto, names: AbstractSet[str]) -> onnx.ModelProto:
    """The model without these initializers (and the inputs that list them)."""
    if not names:
        return model
    twin = copy_of(model)
    keep_only(twin.graph.initializer, lambda tensor: tensor.name not in names)
    keep_only(twin.graph.input, lambda value: value.name not in names)
    return twin


def without_placeholders(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which placeholders are inputs: what the checker and shape inference can take."""
    twin = copy_of(model)
    graph = twin.graph
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if is_left_out(tensor) and tensor.name not in listed:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    keep_only(graph.initializer, lambda tensor: not is_left_out(tensor))
    return twin
