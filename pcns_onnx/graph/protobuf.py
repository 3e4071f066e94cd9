"""Protobuf messages to plain values, files and back: the vocabulary of the graph package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from pcns_onnx.errors import InputError, UnsupportedError, first_line

Array = NDArray[Any]
Shape = tuple[int | None, ...]

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of a graph input or output; None is a dynamic dimension.

    `symbols` are the names of the dynamic dimensions, '' for one that has none or is not dynamic.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Shape
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """One node, read only. `key` is its first output.

    `captures` are the names that its subgraphs read, `inner` their operators; `stop` are the names that say how often
    a Loop runs, beside the number of times that it is given.
    """

    key: str
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    captures: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The node's name, or its first output's where it has none."""
        return self.name or self.key


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy of a model."""
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    return twin


def moved_out(proto: onnx.ModelProto, ops: set[str]) -> onnx.ModelProto:
    """A copy in which these operators are said to be onnxruntime's own, which the checker lets pass."""
    twin = copy_of(proto)
    for p in twin.graph.node:
        if not p.domain and p.op_type in ops:
            p.domain = "com.microsoft"
    if all(opset.domain != "com.microsoft" for opset in twin.opset_import):
        twin.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return twin


def node_of(p: onnx.NodeProto) -> Node:
    """A node as plain values; subgraphs are kept as the names that they capture."""
    attrs, captures, inner, stop = {}, list[str](), list[str](), tuple[str, ...]()
    for attr in p.attribute:
        if attr.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            for sub in [attr.g] if attr.type == AttributeProto.GRAPH else attr.graphs:
                nodes = [node_of(part) for part in sub.node]  # once: subgraphs may be deep
                captures += _captured(sub, nodes)
                inner += [op for node in nodes for op in (node.op, *node.inner)]
                stop = _stop_of(p, sub, nodes) if p.op_type == "Loop" else ()
            continue
        attrs[attr.name] = helper.get_attribute_value(attr)
    key = next((o for o in p.output if o), "")
    domain = "" if p.domain == "ai.onnx" else p.domain
    outputs = tuple(p.output)
    return Node(key, p.op_type, domain, p.name, tuple(p.input), outputs, attrs, tuple(captures), tuple(inner), stop)


def _stop_of(loop: onnx.NodeProto, body: onnx.GraphProto, nodes: Sequence[Node]) -> tuple[str, ...]:
    """What the condition of a Loop follows from: names outside, states traced back to what they start from."""
    makers = {name: node for node in nodes for name in node.outputs}
    states = {value.name: place for place, value in enumerate(body.input)}
    stored = {tensor.name for tensor in body.initializer}
    names, visited, pending = dict[str, None](), set[str](), [body.output[0].name] if body.output else []
    while pending:
        name = pending.pop()
        if not name or name in visited or name in stored:
            continue
        visited.add(name)
        if name in makers:
            pending += [*makers[name].inputs, *makers[name].captures]
        elif name not in states:
            names[name] = None
        elif 0 < states[name] < len(loop.input):
            names[loop.input[states[name]]] = None
            pending.append(body.output[states[name] - 1].name if states[name] > 1 else "")
    return tuple(name for name in names if name)


def captured(graph: onnx.GraphProto) -> list[str]:
    """Names that a subgraph reads from outside, those of nested ones included."""
    return _captured(graph, [node_of(p) for p in graph.node])


def _captured(graph: onnx.GraphProto, nodes: Sequence[Node]) -> list[str]:
    local = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    local |= {t.values.name for t in graph.sparse_initializer}
    names: list[str] = []
    for node in nodes:
        names += [name for name in (*node.inputs, *node.captures) if name and name not in local]
        local.update(node.outputs)
    return names


def constant_tensor(p: onnx.NodeProto) -> TensorProto:
    """The value of a Constant node; an empty one for text, which nothing here reads."""
    if not p.attribute:
        raise InputError(f"Constant '{p.output[0]}' has no value")
    attr = p.attribute[0]
    if attr.type == AttributeProto.TENSOR:
        stored: TensorProto = attr.t
        return stored
    value = helper.get_attribute_value(attr)
    dtype = np.float32 if attr.type in (AttributeProto.FLOAT, AttributeProto.FLOATS) else np.int64
    if attr.type in (AttributeProto.STRING, AttributeProto.STRINGS):
        return TensorProto(data_type=TensorProto.STRING, dims=[0])
    return numpy_helper.from_array(np.asarray(value, dtype=dtype))


def array_of(tensor: TensorProto) -> Array:
    """The numbers of a tensor that is an attribute."""
    return numpy_helper.to_array(tensor)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and shape of a graph input or output."""
    kind = value.type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(object)
    if value.type.WhichOneof("value") not in ("tensor_type", None):
        dtype = np.dtype(np.void)  # a sequence, a map
    # Exporters write open sizes as -1 or 0, too, and onnxruntime runs such files.
    sizes = tuple(size if size is None or size > 0 else None for size in shape_of(value))
    symbols = tuple("" if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim)
    return TensorSpec(value.name, np.dtype(dtype), sizes, symbols)


def shape_of(value: onnx.ValueInfoProto) -> Shape:
    """The declared shape; None for a dynamic axis."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)


def with_open_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with sizes of 0 at its inputs and outputs left open, as they are meant; a copy if there are any."""

    def closed(proto: onnx.ModelProto) -> list[Any]:
        values = [*proto.graph.input, *proto.graph.output]
        return [d for v in values for d in v.type.tensor_type.shape.dim if d.HasField("dim_value") and d.dim_value < 1]

    if not closed(model):
        return model
    twin = copy_of(model)
    for dim in closed(twin):
        dim.ClearField("dim_value")
    return twin


def is_float(kind: int) -> bool:
    """Whether a tensor type is a floating point one."""
    return kind in (TensorProto.FLOAT, TensorProto.DOUBLE, *HALF_TYPES)


def is_container(kind: onnx.TypeProto) -> bool:
    """Whether a type is that of a sequence, an optional or a map."""
    return kind.WhichOneof("value") not in (None, "tensor_type", "sparse_tensor_type")


def widen(tensor: TensorProto) -> None:
    """Make a half-precision tensor float32, in place."""
    if tensor.data_type in HALF_TYPES:
        tensor.CopyFrom(tensor_of(tensor.name, numpy_helper.to_array(tensor), TensorProto.FLOAT))


def widen_graph(graph: onnx.GraphProto) -> None:
    """Make all half-precision tensors of a graph float32, in place, those of its subgraphs included."""
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in HALF_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    widen_nodes(graph.node)


def widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    """Make the half-precision tensors and types in the attributes of nodes float32, in place."""
    for attr in (attr for node in nodes for attr in node.attribute):
        if attr.type == AttributeProto.TENSOR:
            widen(attr.t)
        elif attr.type == AttributeProto.SPARSE_TENSOR:
            widen(attr.sparse_tensor.values)
        elif attr.name in ("to", "dtype", "output_dtype") and attr.i in HALF_TYPES:
            attr.i = TensorProto.FLOAT
        for sub in (attr.g, *attr.graphs):
            widen_graph(sub)


def tensor_of(name: str, value: Array, kind: int) -> TensorProto:
    """A tensor of type `kind`; raises `UnsupportedError` where a value does not fit into it."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    with np.errstate(over="ignore"):
        stored = np.asarray(value, order="C").astype(dtype)
    if is_float(kind) and (np.isfinite(value) & ~np.isfinite(stored)).any():
        raise UnsupportedError(f"a solved value of '{name}' is too large for {dtype}: store the model in float32")
    return numpy_helper.from_array(stored, name)


def keep_only(field: Any, wanted: Callable[[Any], Any]) -> None:
    """Drop, in place, the items of a repeated field that are not wanted."""
    kept = [item for item in field if wanted(item)]
    if len(kept) != len(field):
        del field[:]
        field.extend(kept)


def parse(path: Path) -> onnx.ModelProto:
    """Parse a model without its external data; raises `InputError`."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise InputError(f"no such model file: '{path}'") from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None
    except (DecodeError, ValueError):
        raise InputError(f"'{path}' is not an ONNX model, or is truncated: cannot parse it as protobuf") from None
    if not proto.graph.node or not proto.ir_version:
        raise InputError(f"'{path}' is not an ONNX model: it holds no graph")
    return proto


def encode(model: onnx.ModelProto) -> bytes:
    """A model as bytes, the same for equal content; raises `InputError` above 2 GB."""
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise InputError(f"the model cannot be written as one protobuf: {first_line(error)}") from None
