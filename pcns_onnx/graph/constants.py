"""Derived constants: what nodes make of stored tensors alone.

Exporters leave such nodes where they are told not to fold: a Transpose in front of nn.Linear's
weight, an Identity where two constants are equal, a Cast, a ConstantOfShape; quantisers put a
DequantizeLinear behind every weight. They stay in the graph and are seen through: which
tensors are derived, and of what type and shape, is known without computing any; a value is
computed, by onnx's reference implementation, when it is first asked for. Weights that DequantizeLinear makes are
written as they were stored (`quantized_weights`).

A layer that is quantised together with its input (it reads the DequantizeLinear of a computed
tensor and that of its weight) is kept intact: its weight counts as computed.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from pcns_onnx.graph.protobuf import Array, Node, node_of
from pcns_onnx.graph.quantized_weights import dequantized

OPERATORS = {
    "Identity", "Cast", "CastLike", "DequantizeLinear", "Shape", "Size", "ConstantOfShape", "Expand",
    "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Concat", "Slice", "Gather",
    "Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "Where", "Range",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor",
    "Neg", "Sqrt", "Reciprocal", "Exp", "Log", "Floor", "Ceil",
}  # fmt: skip
"""Deterministic, of one output, without a subgraph."""

SIZES = {"Shape", "Size"}
"""What a tensor's shape is read by."""

_OF_SIZES = OPERATORS - SIZES | {"ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Tile", "Round", "Split"}
"""What makes numbers of sizes, and masks and positions of these."""

MOST = 1 << 31
"""Elements; what would be larger is left to the runtime."""

_DEQUANTIZE = 19
"""The opset from which on onnx's reference implementation has a DequantizeLinear."""

FEW = 1024
"""Elements; integers up to so many may be the shape of another tensor, and are computed for its sake."""


class Derived:
    """The derived constants of one graph; `read` gives the value of a `stored` tensor."""

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: Sequence[Node],
        stored: Mapping[str, TensorProto],
        read: Callable[[str], Array],
    ) -> None:
        self._model, self._stored, self._read = model, stored, read
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self._makers: dict[str, onnx.NodeProto] = {}
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, Array | None] = {}
        quantised = _weights_of_quantised_layers(nodes, stored)
        constants = ChainMap[str, object](self._makers, stored)  # type: ignore[arg-type]
        for node, maker in zip(nodes, model.graph.node, strict=True):
            if node.key not in quantised and _is_made_of(node, constants):
                inferred = self._infer(node, maker)
                if inferred is not None:
                    self._makers[node.key], self._types[node.key] = maker, inferred
        self.names = frozenset(self._makers)

    @cached_property
    def numbers(self) -> dict[str, Array]:
        """Integers that may be the shape of another tensor, with their values."""
        values = {name: self._number(name) for name in self._makers}
        return {name: value for name, value in values.items() if value is not None}

    def kind(self, name: str) -> int:
        """The element type of a derived tensor."""
        return int(self._types[name].tensor_type.elem_type)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a derived tensor."""
        return tuple(dim.dim_value for dim in self._types[name].tensor_type.shape.dim)

    def value(self, name: str) -> Array | None:
        """The value of a derived tensor, None where the reference implementation fails."""
        pending = [name]
        while pending:
            maker = self._makers[pending[-1]]
            missing = [source for source in maker.input if source in self._makers and source not in self._values]
            if missing:
                pending += missing
            else:
                self._values[pending.pop()] = self._compute(maker)
        return self._values[name]

    def _compute(self, maker: onnx.NodeProto) -> Array | None:
        from onnx.reference import ReferenceEvaluator

        key = maker.output[0]
        if maker.op_type == "DequantizeLinear" and self._opset < _DEQUANTIZE:
            return self._dequantized(maker)
        names = [name for name in dict.fromkeys(maker.input) if name]
        values = [self._values[name] if name in self._values else self._read(name) for name in names]
        if any(value is None for value in values):
            return None
        inputs, outputs = ([onnx.ValueInfoProto(name=name) for name in side] for side in (names, [key]))
        part = helper.make_graph([maker], "part", inputs, outputs)
        try:
            with np.errstate(all="ignore"):
                (result,) = ReferenceEvaluator(part, {"": self._opset}).run(None, dict(zip(names, values, strict=True)))
            value = np.asarray(result, dtype=helper.tensor_dtype_to_np_dtype(self.kind(key))).reshape(self.shape(key))
            value.flags.writeable = False  # it is handed out again, and may be a view of what is stored
            return value
        except Exception:  # an index out of range, say: every operator raises its own
            return None

    def _dequantized(self, maker: onnx.NodeProto) -> Array | None:
        """What the reference implementation, which starts at a later opset, does not compute."""
        values = [self._values[name] if name in self._values else self._read(name) for name in maker.input if name]
        known = [value for value in values if value is not None]
        return dequantized(node_of(maker), known).value if len(known) == len(values) else None

    def _infer(self, node: Node, maker: onnx.NodeProto) -> onnx.TypeProto | None:
        """What a node makes of constants; None where its shape is open or too large."""
        names = [name for name in node.inputs if name]
        numbers = {name: self._number(name) for name in names}
        try:
            inferred = shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op, self._opset, ""),
                maker,
                {name: self._type(name) for name in names},
                {name: numpy_helper.from_array(value) for name, value in numbers.items() if value is not None},
                opset_imports=list(self._model.opset_import),
                ir_version=self._model.ir_version,
            )
        except (shape_inference.InferenceError, onnx.checker.ValidationError, onnx.defs.SchemaError):
            return None
        output = inferred.get(node.key, onnx.TypeProto())
        dims = output.tensor_type.shape.dim
        known = output.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        return output if known and math.prod(dim.dim_value for dim in dims) <= MOST else None

    def _type(self, name: str) -> onnx.TypeProto:
        if name in self._types:
            return self._types[name]
        tensor = self._stored[name]
        return helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims))

    def _number(self, name: str) -> Array | None:
        kind = self._type(name).tensor_type
        if kind.elem_type not in (TensorProto.INT64, TensorProto.INT32):
            return None
        if math.prod(dim.dim_value for dim in kind.shape.dim) > FEW:
            return None
        return self.value(name) if name in self._makers else self._read(name)


def made_of_sizes(nodes: Sequence[Node], is_small: Callable[[str], bool]) -> frozenset[str]:
    """What nodes make of the outputs of Shape and Size and of small constants alone."""
    sizes = {node.key for node in nodes if node.op in SIZES and not node.domain}
    following = set[str]()
    for node in nodes:
        names = {name for name in node.inputs if name}
        if node.op in _OF_SIZES and not node.domain and not names.isdisjoint(sizes | following):
            if all(name in sizes or name in following or is_small(name) for name in names):
                following.update(node.outputs)
    return frozenset(following)


def _is_made_of(node: Node, constants: Mapping[str, object]) -> bool:
    """Whether a node makes a constant of constants."""
    if node.op not in OPERATORS or node.domain or len(node.outputs) != 1:
        return False
    return any(node.inputs) and all(name in constants for name in node.inputs if name)


def _weights_of_quantised_layers(nodes: Sequence[Node], stored: Mapping[str, object]) -> set[str]:
    """DequantizeLinears of constants that meet, in some reader, that of a computed tensor."""
    constants: dict[str, Node | None] = dict.fromkeys(stored)
    computed: set[str] = set()
    for node in nodes:
        if _is_made_of(node, constants):
            constants[node.key] = node
        elif node.op == "DequantizeLinear":
            computed.update(node.outputs)
    weights: set[str] = set()
    pending = [name for node in nodes if not computed.isdisjoint(node.inputs) for name in node.inputs]
    while pending:
        maker = constants.pop(pending.pop(), None)
        if maker is not None:
            weights.update(maker.outputs if maker.op == "DequantizeLinear" else ())
            pending += maker.inputs
    return weights
