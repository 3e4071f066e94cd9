"""The ONNX model as the rest of the house edits it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from pcns_onnx.errors import InputError
from pcns_onnx.graph.files import first_line, read_model, write_atomic
from pcns_onnx.graph.protobuf import (
    Array,
    Node,
    copy_of,
    is_float,
    keep_only,
    shape_of,
    skeleton,
    tensor_of,
    widen_graph,
    widen_nodes,
)
from pcns_onnx.graph.view import GraphView

ModelSource = str | os.PathLike[str] | onnx.ModelProto


class Graph(GraphView):
    """One ONNX model: read through `GraphView`, edited in place, saved whole."""

    @classmethod
    def load(cls, source: ModelSource) -> Graph:
        """Read and check a model; raises `InputError` with one line for anything unusable."""
        if not isinstance(source, str | os.PathLike | onnx.ModelProto):
            raise InputError(f"a model cannot be a {type(source).__name__}: give a path or a ModelProto")
        where = "the given ModelProto" if isinstance(source, onnx.ModelProto) else f"'{os.fspath(source)}'"
        graph = cls(copy_of(source) if isinstance(source, onnx.ModelProto) else read_model(Path(source)))
        try:
            graph.check()
        except (onnx.checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
            raise InputError(f"{where} is not a valid ONNX model: {first_line(error)}") from None
        graph._refuse_non_finite(where)
        return graph

    def copy(self) -> Graph:
        """An independent deep copy."""
        return Graph(copy_of(self.proto))

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
            elif name and name not in made and name not in self.sparse:
                part.graph.input.append(self._value(name))
        part.graph.sparse_initializer.extend(
            tensor for tensor in self.proto.graph.sparse_initializer if tensor.values.name in used
        )
        part.graph.output.extend(self._value(name, guess=False) for name in outputs)
        return Graph(part)

    def as_float32(self) -> Graph:
        """A twin whose half-precision tensors are float32 (onnxruntime's CPU has no bf16 kernels)."""
        if self.storage == "float32" and not any(s.dtype.itemsize == 2 for s in self.inputs):
            return self
        twin = self.copy()
        widen_graph(twin.proto.graph)
        for function in twin.proto.functions:
            widen_nodes(function.node)
        return twin

    def evaluated(self, name: str) -> Array:
        """The value of a tensor that is computed from constants alone."""
        values: Any = ReferenceEvaluator(self.extract([], [name]).proto).run(None, {})
        return np.asarray(values[0])

    # -- edits ---------------------------------------------------------------------------

    def set_input(self, key: str, position: int, value: Array) -> None:
        """Make input `position` of node `key` the constant `value`, kept in the old one's dtype.

        A constant that other nodes read too is left to them and a new one is made; an absent
        optional input is appended under a new name.
        """
        proto, node = self._proto(key), self.node(key)
        old = node.inputs[position] if position < len(node.inputs) else ""
        tensor = self._initializers.get(old) or self._constant_nodes.get(old)
        is_count = value.dtype.kind == "i"
        kind = TensorProto.INT64 if is_count else self._float_type(node)
        dtype = tensor.data_type if tensor is not None else kind
        mine = bool(old) and old in self._initializers and len(self.consumers[old]) == 1
        mine = mine and list(node.inputs).count(old) == 1 and old not in {o.name for o in self.outputs}
        name = old if mine else self.fresh_name(old or f"{node.label}.{'sizes' if is_count else 'bias'}")
        new = tensor_of(name, value, dtype)
        if mine:
            self._initializers[old].CopyFrom(new)
            for spec in self.proto.graph.input:
                if spec.name == old:
                    spec.CopyFrom(helper.make_tensor_value_info(old, dtype, new.dims))
            for stale in {"inputs", "_types"} & vars(self).keys():
                del self.__dict__[stale]
            return
        self._add_initializer(new)
        while len(proto.input) <= position:
            proto.input.append("")
        proto.input[position] = name
        self._changed()

    def set_numbers(self, key: str, position: int, numbers: Mapping[int, int]) -> None:
        """Set elements of a 1-d integer input that is concatenated from pieces, some of them stored.

        What other nodes read too is left to them: node `key` gets a concatenation of its own.
        """
        name = self.node(key).inputs[position]
        value = self.constant(name)
        if value is not None:
            new = value.reshape(-1).copy()
            new[list(numbers)] = list(numbers.values())
            self.set_input(key, position, new.reshape(value.shape))
            return
        maker = self._own_maker(key, position)
        if maker.op != "Concat":
            self.set_numbers(maker.key, 0, numbers)
            return
        shapes, start = self.shapes(), 0
        for piece, source in enumerate(maker.inputs):
            count = int(np.prod([size or 1 for size in shapes[source]]))
            mine = {element - start: n for element, n in numbers.items() if start <= element < start + count}
            if mine:
                self.set_numbers(maker.key, piece, mine)
            start += count

    def is_computed(self, key: str, position: int) -> bool:
        """Whether a node has this input and something computes it."""
        inputs = self.node(key).inputs
        return position < len(inputs) and inputs[position] in self.producers and not self.is_constant(inputs[position])

    def _own_maker(self, key: str, position: int) -> Node:
        """The node that makes an input, copied if anything else reads what it makes."""
        node = self.node(key)
        name = node.inputs[position]
        maker = self.producers[name]
        if len(self.consumers[name]) == 1 and name not in {o.name for o in self.outputs}:
            return maker
        at = self._index(maker.key)
        twin = onnx.NodeProto()
        twin.CopyFrom(self.proto.graph.node[at])
        twin.output[0] = self.fresh_name(f"{node.label}.shape")
        twin.name = twin.output[0] if twin.name else ""
        self._proto(key).input[position] = twin.output[0]
        self.proto.graph.node.insert(at + 1, twin)
        self._changed()
        return self.node(twin.output[0])

    def set_attributes(self, key: str, **attrs: Any) -> None:
        """Set attributes of node `key`; None takes one away."""
        proto = self._proto(key)
        for name, value in attrs.items():
            for i, attr in enumerate(proto.attribute):
                if attr.name == name:
                    del proto.attribute[i]
                    break
            if value is not None:
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
        self._add_initializer(tensor_of(bias, value, dtype))
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
        """Replace node `key` by an initializer of its output's name, in the dtype of the constant `like`, if any."""
        tensor = self._initializers.get(like) or self._constant_nodes.get(like)
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype) if tensor is None else tensor.data_type
        del self.proto.graph.node[self._index(key)]
        self._add_initializer(tensor_of(key, value, dtype))
        self._changed()

    def prune(self) -> None:
        """Drop constants that no node reads and bring `value_info` up to date."""
        graph = self.proto.graph
        used = {*self.consumers, *(o.name for o in graph.output)}
        keep_only(graph.node, lambda p: p.op_type != "Constant" or p.domain or p.output[0] in used)
        unused = {t.name for t in graph.initializer} - used
        keep_only(graph.initializer, lambda t: t.name not in unused)
        keep_only(graph.sparse_initializer, lambda t: t.values.name in used)
        keep_only(graph.input, lambda v: v.name not in unused)
        self._changed()
        inferred = {v.name: v for v in shape_inference.infer_shapes(skeleton(self.proto)).graph.value_info}
        stale = [v for v in graph.value_info if v.name not in inferred]
        for value in graph.value_info:
            if value.name in inferred and shape_of(value) != shape_of(inferred[value.name]):
                value.type.CopyFrom(inferred[value.name].type)
        keep_only(graph.value_info, lambda v: v not in stale)

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
        for name in vars(self).keys() - {"proto"}:
            del self.__dict__[name]

    def _add_initializer(self, tensor: TensorProto) -> None:
        """Before IR version 4 an initializer must be listed as an input too."""
        graph = self.proto.graph
        graph.initializer.append(tensor)
        if self.proto.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    def _index(self, key: str) -> int:
        return next(i for i, p in enumerate(self.proto.graph.node) if key in p.output)

    def _proto(self, key: str) -> onnx.NodeProto:
        found: onnx.NodeProto = self.proto.graph.node[self._index(key)]
        return found

    def _float_type(self, node: Node) -> int:
        """The tensor type of a node's weights: what a constant added beside them must have."""
        for name in node.inputs:
            tensor = self._initializers.get(name) or self._constant_nodes.get(name)
            if tensor is not None and is_float(tensor.data_type):
                return int(tensor.data_type)
        return int(TensorProto.FLOAT)

    def _value(self, name: str, *, guess: bool = True) -> onnx.ValueInfoProto:
        """A tensor as input or output of a part; one of unknown type is float32 where that is to be guessed."""
        graph = self.proto.graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name == name:
                kind = value.type.tensor_type.elem_type
                return helper.make_tensor_value_info(name, kind, None)
        kind = self._types.get(name, 0) or (TensorProto.FLOAT if guess else 0)
        return helper.make_tensor_value_info(name, kind, None) if kind else onnx.ValueInfoProto(name=name)

    @cached_property
    def _types(self) -> dict[str, int]:
        inferred = shape_inference.infer_shapes(skeleton(self.proto))
        return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}

    def _refuse_non_finite(self, where: str) -> None:
        """Refuse NaN, and Inf among other numbers; a bound or a mask made of Inf (and 0) is meant."""
        for name, tensor in {**self._initializers, **self._constant_nodes}.items():
            if not is_float(tensor.data_type):
                continue
            try:
                value = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise InputError(f"{where}: constant '{name}' is damaged: {first_line(error)}") from None
            finite = np.isfinite(value)
            if not finite.all() and (np.isnan(value).any() or value[finite].any()):
                raise InputError(f"{where}: constant '{name}' holds NaN or Inf; export the model again")
