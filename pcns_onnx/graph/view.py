"""What can be read off an ONNX model: nodes, constants, neighbours, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from pcns_onnx.graph.protobuf import (
    Array,
    Node,
    Shape,
    TensorSpec,
    constant_tensor,
    is_float,
    moved_out,
    node_of,
    shape_of,
    skeleton,
    spec_of,
)

ONNXRUNTIMES = {"LayerNormalization", "SimplifiedLayerNormalization"}
"""What onnxruntime has among the default operators, whatever their version, and onnx does not."""


class GraphView:
    """An index over the main graph of one `ModelProto`, built when it is first asked for."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes of the main graph in topological order."""
        return tuple(node_of(p) for p in self.proto.graph.node)

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
            if p.op_type == "Constant" and not p.domain and p.output[0] not in self.sparse:
                found[p.output[0]] = constant_tensor(p)
        return found

    @cached_property
    def sparse(self) -> frozenset[str]:
        """Constants that are stored sparsely: they count as computed, since nothing here solves for them."""
        made = {p.output[0] for p in self.proto.graph.node for a in p.attribute if a.name == "sparse_value"}
        return frozenset(made | {t.values.name for t in self.proto.graph.sparse_initializer})

    @cached_property
    def functions(self) -> frozenset[tuple[str, str]]:
        """(domain, name) of the functions that the model brings along."""
        return frozenset((f.domain, f.name) for f in self.proto.functions)

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
        stored = self._initializers.keys() | self.sparse
        return tuple(spec_of(v) for v in self.proto.graph.input if v.name not in stored)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs."""
        return tuple(spec_of(v) for v in self.proto.graph.output)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def parameters(self) -> int:
        """Number of floating point elements in initializers and Constant nodes."""
        tensors = [*self._initializers.values(), *self._constant_nodes.values()]
        return sum(int(np.prod(t.dims)) for t in tensors if is_float(t.data_type))

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
        tensor that cannot be inferred, sizes per sample as negative numbers; the remaining dynamic
        axes stay None. Stale `value_info` is ignored: everything is inferred anew.
        """
        probe = skeleton(self.proto)
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
        shapes = {v.name: shape_of(v) for v in values if v.type.tensor_type.HasField("shape")}
        for name, tensor in {**self._initializers, **self._constant_nodes}.items():
            shapes[name] = tuple(tensor.dims)
        fed = {spec.name for spec in self.inputs}
        for name, known in (feeds or {}).items():
            if None in shapes.get(name, (None,)):
                measured = tuple(size if size >= 0 else -size * batch for size in known)
                shapes[name] = (batch, *known[1:]) if name in fed else measured
        return shapes

    def check(self, *, full: bool = False) -> None:
        """Run the ONNX checker; `full` adds strict shape inference. Raises onnx's own errors."""
        strange = {p.op_type for p in self.proto.graph.node if not p.domain} & ONNXRUNTIMES
        strange = {op for op in strange if not onnx.defs.has(op, self.opset)}
        onnx.checker.check_model(moved_out(self.proto, strange) if strange else self.proto, full_check=full)

    def passes_full_check(self) -> bool:
        """Whether strict shape inference agrees too; some exports that run well do not pass it."""
        try:
            self.check(full=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError):
            return False
        return True

    def fresh_name(self, stem: str) -> str:
        """A tensor name derived from `stem` that nothing in the graph uses yet."""
        taken = {*self.producers, *self.consumers, *self._initializers, *(v.name for v in self.proto.graph.input)}
        names = (stem if not i else f"{stem}_{i}" for i in range(len(taken) + 1))
        return next(name for name in names if name not in taken)
