"""What can be inferred of a model: the type and the shape of every tensor, and what follows from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from pcns_onnx.graph.constants import FEW, made_of_sizes
from pcns_onnx.graph.initializers import without_placeholders
from pcns_onnx.graph.protobuf import Shape, is_container, is_float, keep_only, shape_of
from pcns_onnx.graph.shapes.fused_operators import PREFIX, state_fused_shapes
from pcns_onnx.graph.shapes.pooling_sizes import state_pool_sizes
from pcns_onnx.graph.view import GraphView

CONTAINERS = ("Sequence", "SplitToSequence", "Optional", "ZipMap", "DictVectorizer")
"""How the operators begin that make no tensors."""


class InferredView(GraphView):
    """A `GraphView` with all that follows from types and shapes."""

    def shapes(self, feeds: Mapping[str, Sequence[int]] | None = None, *, batch: int = 2) -> dict[str, Shape]:
        """Shape of every tensor when the dynamic axes that count samples are `batch`.

        `feeds` gives the size of each input where it is known (a real sample), and of any other
        tensor that cannot be inferred, sizes per sample as negative numbers; the remaining dynamic
        axes stay None. Stale `value_info` is ignored: everything is inferred anew.
        """
        probe, along = self._unshaped(), self.layout.axes
        for value in probe.graph.input:
            known, batch_axis = (feeds or {}).get(value.name), along.get(value.name)
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_value > 0:
                    continue
                if value.name in along:
                    dim.ClearField("dim_value")  # -1 or 0, which mean an open size
                if axis == batch_axis:
                    dim.dim_value = batch
                elif known is not None and axis < len(known):
                    dim.dim_value = known[axis]
        for value in probe.graph.output:
            value.type.tensor_type.ClearField("shape")
        inferred = shape_inference.infer_shapes(probe, data_prop=True)
        values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
        shapes = {
            v.name: shape_of(v)
            for v in values
            if v.type.tensor_type.HasField("shape") and not v.name.startswith(PREFIX)
        }
        shapes |= {name: tuple(tensor.dims) for name, tensor in self._stored.items()}
        shapes |= {name: self._derived.shape(name) for name in self._derived.names}
        for name, known in (feeds or {}).items():
            if None in shapes.get(name, (None,)):
                sizes = [size if size >= 0 else -size * batch for size in known]
                batch_axis = along.get(name)
                if batch_axis is not None:
                    sizes[batch_axis] = batch
                shapes[name] = tuple(sizes)
        return shapes

    def _update_shapes(self) -> None:
        """Bring `value_info` up to date, in place, and the shapes of outputs that are none that they can have."""
        graph, probe = self._model.graph, self._unshaped()
        for output in probe.graph.output:
            output.type.tensor_type.ClearField("shape")
        inferred = shape_inference.infer_shapes(probe).graph
        for output, value in zip(graph.output, inferred.output, strict=True):
            if value.type.tensor_type.HasField("shape") and _contradict(shape_of(output), shape_of(value)):
                output.type.CopyFrom(value.type)
        types = {value.name: value.type for value in inferred.value_info}
        keep_only(graph.value_info, lambda value: value.name in types or value.name in self.derived)
        for value in graph.value_info:
            if value.name in types and shape_of(value) != shape_of(onnx.ValueInfoProto(type=types[value.name])):
                value.type.CopyFrom(types[value.name])

    def _unshaped(self) -> onnx.ModelProto:
        """A copy for shape inference: numbers are written down, no shape is stale, and nothing sparse."""
        probe = without_placeholders(self._model)
        numbers = self._derived.numbers
        keep_only(probe.graph.node, lambda p: numbers.keys().isdisjoint(p.output))
        probe.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
        listed = {value.name for value in probe.graph.input}
        for sparse in probe.graph.sparse_initializer:
            name, kind = sparse.values.name, sparse.values.data_type
            if name not in listed:
                probe.graph.input.append(helper.make_tensor_value_info(name, kind, sparse.dims))
        probe.graph.ClearField("sparse_initializer")
        probe.graph.ClearField("value_info")
        state_pool_sizes(probe.graph.node)
        state_fused_shapes(probe)
        return probe

    @cached_property
    def types(self) -> Mapping[str, onnx.TypeProto]:
        """The type of every tensor, sequence or optional, as far as it can be inferred."""
        inferred = shape_inference.infer_shapes(self._unshaped()).graph
        return {v.name: v.type for v in (*inferred.input, *inferred.value_info, *inferred.output)}

    def is_floating(self, name: str) -> bool:
        """Whether a tensor holds floating point numbers."""
        kind = self._kind(name)
        return is_float(self.types.get(name, onnx.TypeProto()).tensor_type.elem_type if kind is None else kind)

    def is_open(self, name: str) -> bool:
        """Whether the rank of a tensor is not known, or the size of an axis that has not even a name."""
        kind = self.types.get(name, onnx.TypeProto()).tensor_type
        return not kind.HasField("shape") or any(dim.WhichOneof("value") is None for dim in kind.shape.dim)

    def is_weight(self, name: str) -> bool:
        """Whether a constant is a matrix, or more, of floating point numbers: what a layer is solved for."""
        if name in self._stored:
            return is_float(self._stored[name].data_type) and len(self._stored[name].dims) > 1
        return name in self._derived.names and len(self._derived.shape(name)) > 1 and self.is_floating(name)

    @cached_property
    def anew(self) -> frozenset[str]:
        """What is made anew wherever it is wanted, and not kept: sequences and the like, and what follows from sizes.

        When channels go, a number that counts them may be written into the arithmetic in front of a cut.
        """
        few = {name for name, tensor in self._stored.items() if math.prod(tensor.dims) <= FEW}
        few |= {name for name in self._derived.names if math.prod(self._derived.shape(name)) <= FEW}
        return made_of_sizes(self.nodes, few.__contains__) | self.containers

    @cached_property
    def containers(self) -> frozenset[str]:
        """The names of sequences, optionals and maps."""
        ops = {op for node in self.nodes for op in (node.op, *node.inner)}
        values = (*self._model.graph.input, *self._model.graph.output)
        if not any(is_container(v.type) for v in values) and not any(op.startswith(CONTAINERS) for op in ops):
            return frozenset()
        return frozenset(name for name, kind in self.types.items() if is_container(kind))

    def _value(self, name: str, *, guess: bool = True) -> onnx.ValueInfoProto:
        """A tensor as input or output of a part; one of unknown type is float32 where that is to be guessed."""
        graph = self._model.graph
        stated = {value.name: value.type for value in (*graph.value_info, *graph.output, *graph.input)}
        kind = stated.get(name, onnx.TypeProto())
        if not is_container(kind) and not kind.tensor_type.elem_type:
            kind = self.types.get(name, onnx.TypeProto())
        if is_container(kind):
            return onnx.ValueInfoProto(name=name, type=kind)
        element = kind.tensor_type.elem_type or (TensorProto.FLOAT if guess else 0)
        return helper.make_tensor_value_info(name, element, None) if element else onnx.ValueInfoProto(name=name)


def _contradict(one: Shape, other: Shape) -> bool:
    """Whether no tensor has both shapes."""
    return len(one) != len(other) or any(a != b for a, b in zip(one, other, strict=True) if None not in (a, b))
