"""The ONNX model as the rest of the house sees it: nodes, constants, shapes, edits, files.

This is the only module that imports onnx. A `Graph` wraps one `ModelProto`; its index (who
makes a tensor, who reads it) is rebuilt lazily after an edit. Nodes are addressed by their
*key*, the name of their first output: unique in a valid graph, present where node names are
not, and stable under every edit made here. Edits go straight to the protobuf, so whatever is
not touched (names, metadata, doc strings, opsets) survives to the byte.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, helper, numpy_helper, shape_inference

from pcns_onnx.errors import InputError, UnsupportedError

Array = NDArray[Any]
Shape = tuple[int | None, ...]
ModelSource = str | os.PathLike[str] | onnx.ModelProto

_HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LARGE = 1024  # elements; larger initializers are replaced by their type for shape inference


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype and shape of a graph input or output; None is a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: Shape


@dataclass(frozen=True)
class Node:
    """One node, read only. `key` is its first output; `captures` the names its subgraphs read."""

    key: str
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    captures: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The node's name, or its first output's where it has none."""
        return self.name or self.key


class Graph:
    """One ONNX model with an index over its main graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto

    @classmethod
    def load(cls, source: ModelSource) -> Graph:
        """Read and check a model; raises `InputError` with one line for anything unusable."""
        where = "the given ModelProto" if isinstance(source, onnx.ModelProto) else f"'{os.fspath(source)}'"
        graph = cls(_copy(source) if isinstance(source, onnx.ModelProto) else _read(Path(source)))
        try:
            graph.check()
        except (onnx.checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
            raise InputError(f"{where} is not a valid ONNX model: {_first_line(error)}") from None
        graph._refuse_non_finite(where)
        return graph

    def copy(self) -> Graph:
        """An independent deep copy."""
        return Graph(_copy(self.proto))

    # -- index ---------------------------------------------------------------------------

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes of the main graph in topological order."""
        return tuple(_node(p) for p in self.proto.graph.node)

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Tensor name -> the node that makes it."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Tensor name -> the nodes that read it, those that capture it in a subgraph included."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *node.captures)):
                if name:
                    readers.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @cached_property
    def _initializers(self) -> dict[str, TensorProto]:
        return {t.name: t for t in self.proto.graph.initializer}

    @cached_property
    def _constant_nodes(self) -> dict[str, TensorProto]:
        found: dict[str, TensorProto] = {}
        for p in self.proto.graph.node:
            if p.op_type == "Constant" and not p.domain:
                found[p.output[0]] = _constant_tensor(p)
        return found

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initializer or the output of a Constant node."""
        return name in self._initializers or name in self._constant_nodes

    def constant(self, name: str) -> Array | None:
        """Value of an initializer or Constant node, None for anything computed."""
        tensor = self._initializers.get(name) or self._constant_nodes.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def node(self, key: str) -> Node:
        """The node whose first output is `key`."""
        return self.producers[key]

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller must feed: graph inputs that are not initializers."""
        return tuple(_spec(v) for v in self.proto.graph.input if v.name not in self._initializers)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs."""
        return tuple(_spec(v) for v in self.proto.graph.output)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def parameters(self) -> int:
        """Number of floating point elements in initializers and Constant nodes."""
        tensors = [*self._initializers.values(), *self._constant_nodes.values()]
        return sum(int(np.prod(t.dims)) for t in tensors if _is_float(t.data_type))

    @property
    def nbytes(self) -> int:
        """Size of the serialised model in bytes."""
        return int(self.proto.ByteSize())

    @property
    def storage(self) -> str:
        """'bfloat16', 'float16' or 'float32': the narrowest float among the initializers."""
        types = {t.data_type for t in (*self._initializers.values(), *self._constant_nodes.values())}
        if TensorProto.BFLOAT16 in types:
            return "bfloat16"
        return "float16" if TensorProto.FLOAT16 in types else "float32"

    # -- shapes --------------------------------------------------------------------------

    def shapes(self, feeds: Mapping[str, Sequence[int]] | None = None, *, batch: int = 2) -> dict[str, Shape]:
        """Shape of every tensor when dynamic leading axes are `batch`.

        `feeds` gives the size of each input where it is known (a real sample), and of any other
        tensor that cannot be inferred; the remaining dynamic axes stay None. Stale `value_info`
        is ignored: everything is inferred anew.
        """
        probe = _skeleton(self.proto)
        for value in probe.graph.input:
            known = (feeds or {}).get(value.name)
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.HasField("dim_value"):
                    continue
                if axis == 0:
                    dim.dim_value = batch
                elif known is not None and axis < len(known):
                    dim.dim_value = known[axis]
        for value in probe.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = shape_inference.infer_shapes(probe, data_prop=True)
        values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
        shapes = {v.name: _shape(v) for v in values if v.type.tensor_type.HasField("shape")}
        for name, tensor in {**self._initializers, **self._constant_nodes}.items():
            shapes[name] = tuple(tensor.dims)
        for name, known in (feeds or {}).items():
            if None in shapes.get(name, (None,)):
                shapes[name] = (batch, *known[1:])
        return shapes

    def check(self, *, full: bool = False) -> None:
        """Run the ONNX checker; `full` adds strict shape inference. Raises onnx's own errors."""
        onnx.checker.check_model(self.proto, full_check=full)

    def passes_full_check(self) -> bool:
        """Whether strict shape inference agrees too; some exports that run well do not pass it."""
        try:
            self.check(full=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError):
            return False
        return True

    # -- derived graphs ------------------------------------------------------------------

    def extract(self, inputs: Iterable[str], outputs: Sequence[str]) -> Graph:
        """The part that computes `outputs` from `inputs` (tensor names): a throwaway model.

        Initializers are shared by value; types of cut tensors are float32 unless known.
        """
        given = set(inputs)
        wanted, needed = set(), list(outputs)
        while needed:
            name = needed.pop()
            node = self.producers.get(name)
            if name in given or node is None or node.key in wanted:
                continue
            wanted.add(node.key)
            needed += [*node.inputs, *node.captures]
        part = onnx.ModelProto(ir_version=max(self.proto.ir_version, 4))
        part.opset_import.extend(self.proto.opset_import)
        part.functions.extend(self.proto.functions)
        part.graph.name = "part"
        used: dict[str, None] = {}
        for p, node in zip(self.proto.graph.node, self.nodes, strict=True):
            if node.key in wanted:
                part.graph.node.append(p)
                used.update(dict.fromkeys((*node.inputs, *node.captures)))
        made = {out for node in self.nodes if node.key in wanted for out in node.outputs}
        for name in used:
            if name in self._initializers:
                part.graph.initializer.append(self._initializers[name])
            elif name and name not in made:
                part.graph.input.append(self._value(name))
        part.graph.output.extend(self._value(name) for name in outputs)
        return Graph(part)

    def as_float32(self) -> Graph:
        """A twin whose half-precision tensors are float32 (onnxruntime's CPU has no bf16 kernels)."""
        if self.storage == "float32" and not any(s.dtype.itemsize == 2 for s in self.inputs):
            return self
        twin = self.copy()
        graph = twin.proto.graph
        for tensor in graph.initializer:
            _widen(tensor)
        for value in [*graph.input, *graph.output, *graph.value_info]:
            if value.type.tensor_type.elem_type in _HALF_TYPES:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attr in node.attribute:
                if attr.type == AttributeProto.TENSOR:
                    _widen(attr.t)
                elif attr.name in ("to", "dtype") and attr.i in _HALF_TYPES:
                    attr.i = TensorProto.FLOAT
        return twin

    # -- edits ---------------------------------------------------------------------------

    def set_input(self, key: str, position: int, value: Array) -> None:
        """Make input `position` of node `key` the constant `value`, kept in the old one's dtype.

        A constant that other nodes read too is left to them and a new one is made; an absent
        optional input is appended under a new name.
        """
        proto, node = self._proto(key), self.node(key)
        old = node.inputs[position] if position < len(node.inputs) else ""
        tensor = self._initializers.get(old) or self._constant_nodes.get(old)
        dtype = tensor.data_type if tensor is not None else self._float_type(node)
        mine = bool(old) and old in self._initializers and len(self.consumers[old]) == 1
        mine = mine and list(node.inputs).count(old) == 1 and old not in {o.name for o in self.outputs}
        name = old if mine else self.fresh_name(old or f"{node.label}.bias")
        new = _tensor(name, value, dtype)
        if mine:
            self._initializers[old].CopyFrom(new)
            for spec in self.proto.graph.input:
                if spec.name == old:
                    spec.CopyFrom(helper.make_tensor_value_info(old, dtype, new.dims))
        else:
            self.proto.graph.initializer.append(new)
            while len(proto.input) <= position:
                proto.input.append("")
            proto.input[position] = name
            if self.proto.ir_version < 4:
                self.proto.graph.input.append(helper.make_tensor_value_info(name, dtype, new.dims))
        self._changed()

    def set_attributes(self, key: str, **attrs: Any) -> None:
        """Set attributes of node `key`."""
        proto = self._proto(key)
        for name, value in attrs.items():
            for i, attr in enumerate(proto.attribute):
                if attr.name == name:
                    del proto.attribute[i]
                    break
            proto.attribute.append(helper.make_attribute(name, value))
        self._changed()

    def append_add(self, key: str, value: Array) -> None:
        """Put `+ value` behind node `key`; the sum takes over the node's output name."""
        index = self._index(key)
        proto = self.proto.graph.node[index]
        node = self.node(key)
        dtype = self._float_type(node)
        inner = self.fresh_name(f"{key}.linear")
        bias = self.fresh_name(f"{node.label}.bias")
        proto.output[0] = inner
        add = helper.make_node("Add", [inner, bias], [key], name=f"{node.name}.bias" if node.name else "")
        self.proto.graph.node.insert(index + 1, add)
        self.proto.graph.initializer.append(_tensor(bias, value, dtype))
        if self.proto.ir_version < 4:
            self.proto.graph.input.append(helper.make_tensor_value_info(bias, dtype, value.shape))
        self._changed()

    def bypass(self, key: str) -> None:
        """Remove single-input node `key`; its producer takes over the removed output's name."""
        node = self.node(key)
        source = self._proto(self.producers[node.inputs[0]].key)
        position = list(source.output).index(node.inputs[0])
        del self.proto.graph.node[self._index(key)]
        source.output[position] = key
        self._changed()

    def drop_into_reader(self, key: str) -> None:
        """Remove node `key`; its readers read its first input instead."""
        source = self.node(key).inputs[0]
        del self.proto.graph.node[self._index(key)]
        for proto in self.proto.graph.node:
            for position, name in enumerate(proto.input):
                if name == key:
                    proto.input[position] = source
        self._changed()

    def make_constant(self, key: str, like: str, value: Array) -> None:
        """Replace node `key` by an initializer of its output's name, in the dtype of the constant `like`."""
        graph = self.proto.graph
        dtype = (self._initializers.get(like) or self._constant_nodes[like]).data_type
        del graph.node[self._index(key)]
        graph.initializer.append(_tensor(key, value, dtype))
        if self.proto.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(key, dtype, value.shape))
        self._changed()

    def prune(self) -> None:
        """Drop constants that no node reads and bring `value_info` up to date."""
        graph = self.proto.graph
        used = {*self.consumers, *(o.name for o in graph.output)}
        _keep(graph.node, lambda p: p.op_type != "Constant" or p.domain or p.output[0] in used)
        unused = {t.name for t in graph.initializer} - used
        _keep(graph.initializer, lambda t: t.name not in unused)
        _keep(graph.input, lambda v: v.name not in unused)
        self._changed()
        inferred = {v.name: v for v in shape_inference.infer_shapes(_skeleton(self.proto)).graph.value_info}
        stale = [v for v in graph.value_info if v.name not in inferred]
        for value in graph.value_info:
            if value.name in inferred and _shape(value) != _shape(inferred[value.name]):
                value.type.CopyFrom(inferred[value.name].type)
        _keep(graph.value_info, lambda v: v not in stale)

    def set_metadata(self, key: str, value: str) -> None:
        """Set one entry of the model's `metadata_props`."""
        for entry in self.proto.metadata_props:
            if entry.key == key:
                entry.value = value
                return
        self.proto.metadata_props.add(key=key, value=value)

    def metadata(self, key: str) -> str | None:
        """One entry of the model's `metadata_props`, or None."""
        return next((e.value for e in self.proto.metadata_props if e.key == key), None)

    def fresh_name(self, stem: str) -> str:
        """A tensor name derived from `stem` that nothing in the graph uses yet."""
        taken = {*self.producers, *self.consumers, *self._initializers, *(v.name for v in self.proto.graph.input)}
        names = (stem if not i else f"{stem}_{i}" for i in range(len(taken) + 1))
        return next(name for name in names if name not in taken)

    # -- files ---------------------------------------------------------------------------

    def serialize(self) -> bytes:
        """The model as bytes, deterministic for equal content."""
        try:
            return bytes(self.proto.SerializeToString(deterministic=True))
        except (EncodeError, ValueError) as error:
            raise InputError(f"the model cannot be written as one protobuf: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically: the file appears whole or not at all."""
        write_atomic(path, self.serialize())

    # -- internals -----------------------------------------------------------------------

    def _changed(self) -> None:
        for name in ("nodes", "producers", "consumers", "_initializers", "_constant_nodes", "inputs", "outputs"):
            self.__dict__.pop(name, None)

    def _index(self, key: str) -> int:
        return next(i for i, p in enumerate(self.proto.graph.node) if key in p.output)

    def _proto(self, key: str) -> onnx.NodeProto:
        found: onnx.NodeProto = self.proto.graph.node[self._index(key)]
        return found

    def _float_type(self, node: Node) -> int:
        """The tensor type of a node's weights: what a constant added beside them must have."""
        for name in node.inputs:
            tensor = self._initializers.get(name) or self._constant_nodes.get(name)
            if tensor is not None and _is_float(tensor.data_type):
                return int(tensor.data_type)
        return int(TensorProto.FLOAT)

    def _value(self, name: str) -> onnx.ValueInfoProto:
        graph = self.proto.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name == name:
                kind = value.type.tensor_type.elem_type
                return helper.make_tensor_value_info(name, kind, None)
        kind = self._types.get(name, TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, kind, None)

    @cached_property
    def _types(self) -> dict[str, int]:
        inferred = shape_inference.infer_shapes(_skeleton(self.proto))
        return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}

    def _refuse_non_finite(self, where: str) -> None:
        """Refuse NaN, and Inf among other numbers; a bound or a mask made of Inf (and 0) is meant."""
        for name, tensor in {**self._initializers, **self._constant_nodes}.items():
            if not _is_float(tensor.data_type):
                continue
            try:
                value = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise InputError(f"{where}: constant '{name}' is damaged: {_first_line(error)}") from None
            finite = np.isfinite(value)
            if not finite.all() and (np.isnan(value).any() or value[finite].any()):
                raise InputError(f"{where}: constant '{name}' holds NaN or Inf; export the model again")


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to a temporary neighbour of `path` and rename it into place."""
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent or ".", prefix=f".{target.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write '{target}': {error.strerror or error}") from None


def _read(path: Path) -> onnx.ModelProto:
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
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"cannot read the external data of '{path}': {_first_line(error)}") from None
    return proto


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    return twin


def _skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the contents of large weights: enough for shape inference."""
    bare = onnx.ModelProto(ir_version=proto.ir_version)
    bare.opset_import.extend(proto.opset_import)
    bare.functions.extend(proto.functions)
    bare.graph.name = proto.graph.name
    bare.graph.node.extend(proto.graph.node)
    listed = {v.name for v in proto.graph.input}
    bare.graph.input.extend(proto.graph.input)
    bare.graph.output.extend(proto.graph.output)
    for tensor in proto.graph.initializer:
        if int(np.prod(tensor.dims)) <= _LARGE:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def _node(p: onnx.NodeProto) -> Node:
    attrs, captures = {}, []
    for attr in p.attribute:
        if attr.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            for sub in [attr.g] if attr.type == AttributeProto.GRAPH else attr.graphs:
                captures += _captured(sub)
            continue
        attrs[attr.name] = helper.get_attribute_value(attr)
    key = next((o for o in p.output if o), "")
    domain = "" if p.domain == "ai.onnx" else p.domain
    return Node(key, p.op_type, domain, p.name, tuple(p.input), tuple(p.output), attrs, tuple(captures))


def _captured(graph: onnx.GraphProto) -> list[str]:
    made = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    captured: list[str] = []
    for p in graph.node:
        node = _node(p)
        captured += [name for name in (*node.inputs, *node.captures) if name and name not in made]
        made.update(node.outputs)
    return captured


def _constant_tensor(p: onnx.NodeProto) -> TensorProto:
    attr = p.attribute[0]
    if attr.type == AttributeProto.TENSOR:
        stored: TensorProto = attr.t
        return stored
    value = helper.get_attribute_value(attr)
    dtype = np.float32 if attr.type in (AttributeProto.FLOAT, AttributeProto.FLOATS) else np.int64
    if attr.type in (AttributeProto.STRING, AttributeProto.STRINGS, AttributeProto.SPARSE_TENSOR):
        return TensorProto(data_type=TensorProto.STRING, dims=[0])
    return numpy_helper.from_array(np.asarray(value, dtype=dtype))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(object)
    return TensorSpec(value.name, np.dtype(dtype), _shape(value))


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)


def _is_float(kind: int) -> bool:
    return kind in (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF_TYPES)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _HALF_TYPES:
        tensor.CopyFrom(_tensor(tensor.name, numpy_helper.to_array(tensor), TensorProto.FLOAT))


def _tensor(name: str, value: Array, kind: int) -> TensorProto:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(value.astype(dtype))
    if _is_float(kind) and (np.isfinite(value) & ~np.isfinite(stored)).any():
        raise UnsupportedError(f"a solved value of '{name}' is too large for {dtype}: store the model in float32")
    return numpy_helper.from_array(stored, name)


def _keep(field: Any, wanted: Any) -> None:
    kept = [item for item in field if wanted(item)]
    if len(kept) != len(field):
        del field[:]
        field.extend(kept)
