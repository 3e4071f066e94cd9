"""A float32 model in float16, between inputs and outputs that stay float32.

Every tensor of floats exists in one or two versions: that which its maker gives, and a Cast of it where a reader wants
the other. A node computes in float16 where its operator's definition knows float16, unless its values speak for
float32 (`kept`), onnxruntime's converter has it on a list, it is an If, Loop or Scan (whose bodies stay as they are),
or it is from a library. Single inputs that are float32 by definition (the scales of a Resize) stay so. Constants are
stored as their readers want them. A number that is nearer to 0 than the least of float16 becomes that, not 0: many
of them are what keeps a division from failing.

onnxruntime 1.32 crashes while it loads some products of turned samples in float16. Their stored matrices get as many
axes as the samples, (1, K, N) for three, with which it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from pcns_onnx.graph.lowering.isolation import has_subgraph, tensor_names
from pcns_onnx.graph.model import Graph
from pcns_onnx.graph.protobuf import Array, keep_only, node_of

LARGEST = float(np.finfo(np.float16).max)
"""65,504: what is larger is infinite in float16."""

LEAST = float(np.finfo(np.float16).smallest_subnormal)

ONNXRUNTIMES = "com.microsoft"

_FLOAT32_ONLY = {
    "NonMaxSuppression", "TopK", "RoiAlign", "Range", "CumSum", "Min", "Max", "Upsample",  # as onnxruntime has it
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "EyeLike",
    "SequenceConstruct", "SequenceInsert", "SequenceAt", "SequenceEmpty", "SequenceMap", "SplitToSequence",
    "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
}  # fmt: skip

_FLOAT32_REDUCTIONS = {
    "ScatterElements": {b"add", b"mul"},
    "ScatterND": {b"add", b"mul", b"max", b"min"},
}
"""What onnxruntime does in float32 only: it loads such a model in float16, and fails as it runs."""

_PASSING = {"Identity", "Cast", "Dropout"}
"""Operators that onnxruntime sees through, or takes out, before it makes one of two others."""

_FLOAT32_INPUTS = {"GroupNorm": {1, 2}, "SkipGroupNorm": {1, 2}}
"""Of onnxruntime's own operators, whose definitions onnx does not have."""


def in_float16(graph: Graph, floats: Collection[str], kept: Collection[str], *, onnxruntimes: bool = True) -> Graph:
    """`graph` in float16; `floats` are the tensors of float32 that its nodes make, `kept` the keys of those nodes that
    stay in float32. `onnxruntimes`: whether operators of onnxruntime's own compute in float16, too."""
    return _Lowering(graph, floats, kept, onnxruntimes).lowered()


@dataclass(frozen=True)
class Probe:
    """A model that gives magnitudes of another one: `peaks` names the output with the largest of a tensor, `sums` those
    with what a node (by key) adds up at most, in how many parts: the mean of |x|, elements read, and made."""

    graph: Graph
    peaks: dict[str, str]
    sums: dict[str, tuple[str, str, str]]


def probe_of(graph: Graph, names: Sequence[str], adding: Collection[str]) -> Probe:
    """The probe for these tensors of float32, and the nodes of the keys `adding`, which add up their first inputs."""
    proto, stem = graph.extract([spec.name for spec in graph.inputs], names).proto, "peak"
    while any(name.startswith(f"{stem}.") for name in tensor_names(proto.graph)):
        stem += "_"
    declared = {value.name: value for value in graph.proto.graph.input}
    for value in proto.graph.input:  # a Scan has to know shapes
        value.CopyFrom(declared.get(value.name, value))
    nodes = {next(name for name in node.output if name): node for node in proto.graph.node}
    constants = {f"{stem}.row": np.array([-1]), f"{stem}.zero": np.zeros(1, np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    del proto.graph.output[:]

    def append(op: str, inputs: list[str], name: str, kind: int = 0, **attributes: Any) -> str:
        proto.graph.node.append(helper.make_node(op, inputs, [name], **attributes))
        if kind:
            proto.graph.output.append(helper.make_tensor_value_info(name, kind, []))
        return name

    def peak(tensor: str, name: str) -> str:
        row = append("Reshape", [tensor, f"{stem}.row"], f"{name}.row")
        rest = append("Concat", [row, f"{stem}.zero"], f"{name}.rest", axis=0)  # there may be nothing in it
        return append("ReduceMax", [append("Abs", [rest], f"{name}.size")], name, TensorProto.FLOAT, keepdims=0)

    peaks = {name: peak(name, f"{stem}.{number}") for number, name in enumerate(names)}
    sums = {}
    for number, key in enumerate(sorted(nodes.keys() & set(adding))):
        name, source = f"{stem}.sum.{number}", nodes[key].input[0]
        mean = NodeProto()
        mean.CopyFrom(nodes[key])
        mean.name, mean.input[0], mean.output[0] = "", f"{name}.of", f"{name}.mean"
        append("Abs", [source], f"{name}.of")
        proto.graph.node.append(mean)
        counts = [
            append("Size", [tensor], f"{name}.{end}", TensorProto.INT64)
            for tensor, end in ((source, "elements"), (key, "parts"))
        ]
        sums[key] = peak(f"{name}.mean", f"{name}.peak"), counts[0], counts[1]
    return Probe(Graph(proto), peaks, sums)


class _Lowering:
    """One model on its way: nodes are written anew in their order, casts where they are first needed."""

    def __init__(self, graph: Graph, floats: Collection[str], kept: Collection[str], onnxruntimes: bool) -> None:
        self._proto, self._opset, self._kept, self._onnxruntimes = graph.proto, graph.opset, set(kept), onnxruntimes
        proto = self._proto.graph
        _store_constants(proto)
        self._stored = {t.name: t for t in proto.initializer if t.data_type == TensorProto.FLOAT}
        fed = {spec.name for spec in graph.inputs if spec.dtype == np.float32}
        self._floats, self._sparse = {*floats, *self._stored, *fed}, graph.sparse
        self._pinned = {name for node in proto.node for name in node_of(node).captures} | {v.name for v in proto.output}
        self._taken, self._node_names = tensor_names(proto), {node.name for node in proto.node}
        self._versions: dict[tuple[str, bool], str] = {(name, False): name for name in fed}
        self._nodes: list[NodeProto] = []
        self._made_half: set[str] = set()
        self._stacked: dict[tuple[str, int], str] = {}

    def lowered(self) -> Graph:
        nodes = [(node, self._is_half(node)) for node in self._proto.graph.node]
        self._store_as_wanted(nodes)
        rank_of = self._turned(nodes)
        for node, is_half in nodes:
            axes = max((rank_of.get(name, 0) for name in node.input), default=0) if node.op_type == "MatMul" else 0
            for place, name in enumerate(node.input):
                if name in self._floats:
                    node.input[place] = self._version(name, is_half and self._reads_half(node, place))
            if axes:
                self._stack(node, axes)
            self._nodes.append(node)
            if is_half:
                _retype(node)
            self._make_outputs(node, is_half)
        proto = self._proto.graph
        del proto.node[:]
        proto.node.extend(self._nodes)
        used = {name for node in proto.node for name in (*node.input, *node_of(node).captures)}
        used |= {value.name for value in (*proto.input, *proto.output)}
        stacked = {name for name, _ in self._stacked}
        keep_only(proto.initializer, lambda t: t.name in used or t.name not in stacked)
        for value in proto.value_info:
            if value.name in self._made_half:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return Graph(self._proto)

    def _is_half(self, node: NodeProto) -> bool:
        """Whether a node computes in float16."""
        outputs = [name for name in node.output if name]
        if not self._floats & {*node.input, *outputs} or has_subgraph(node) or (outputs and outputs[0] in self._kept):
            return False
        if node.domain == ONNXRUNTIMES:
            return self._onnxruntimes
        if node.domain not in ("", "ai.onnx") or node.op_type in _FLOAT32_ONLY or self._sparse & {*node.input}:
            return False
        if any(a.name == "reduction" and a.s in _FLOAT32_REDUCTIONS.get(node.op_type, ()) for a in node.attribute):
            return False
        inputs, results = _definition(node.op_type, self._opset)
        if not inputs and not results:
            return False
        halves = {inputs[min(i, len(inputs) - 1)] for i, name in enumerate(node.input) if name in self._floats}
        halves.discard("")
        float_results = [
            results[min(i, len(results) - 1)] for i, name in enumerate(node.output) if name in self._floats
        ]
        by_attribute = node.op_type in ("Cast", "ConstantOfShape", "LayerNormalization")
        return all(kind in halves or by_attribute for kind in float_results if kind) and bool(halves or float_results)

    def _reads_half(self, node: NodeProto, place: int) -> bool:
        """Whether a node that computes in float16 has this input in it."""
        if node.domain == ONNXRUNTIMES:
            return place not in _FLOAT32_INPUTS.get(node.op_type, ())
        inputs, _ = _definition(node.op_type, self._opset)
        return bool(inputs[min(place, len(inputs) - 1)])

    def _store_as_wanted(self, nodes: list[tuple[NodeProto, bool]]) -> None:
        """Constants in float16 under their own names, or beside those in float32 where both are read."""
        wanted: dict[str, set[bool]] = {name: {False} for name in self._pinned & self._stored.keys()}
        for node, is_half in nodes:
            for place, name in enumerate(node.input):
                if name in self._stored:
                    wanted.setdefault(name, set()).add(is_half and self._reads_half(node, place))
        for name, halves in wanted.items():
            tensor = self._stored[name]
            if False in halves:
                self._versions[name, False] = name
            if True in halves:
                self._versions[name, True] = self._fresh(f"{name}.half") if False in halves else name
                half = numpy_helper.from_array(rounded(numpy_helper.to_array(tensor)), self._versions[name, True])
                if False in halves:
                    self._proto.graph.initializer.append(half)
                else:
                    tensor.CopyFrom(half)
                    self._made_half.add(name)

    def _turned(self, nodes: list[tuple[NodeProto, bool]]) -> dict[str, int]:
        """The axes of what Transposes in float16 make that move the first one and leave the last; also passed on."""
        rank_of = dict[str, int]()
        for node, is_half in nodes:
            perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            if node.op_type == "Transpose" and is_half and perm[:1] != [0] and perm[-1:] == [len(perm) - 1]:
                rank_of[node.output[0]] = len(perm)
            elif node.op_type in _PASSING and node.input[0] in rank_of:
                rank_of[node.output[0]] = rank_of[node.input[0]]
        return rank_of

    def _stack(self, node: NodeProto, axes: int) -> None:
        """Let a MatMul read stored matrices (K, N) as (1, ..., K, N), under names of their own."""
        for place, name in enumerate(node.input):
            matrix = next((t for t in self._proto.graph.initializer if t.name == name and len(t.dims) == 2), None)
            if matrix is None:
                continue
            if (name, axes) not in self._stacked:
                copy = TensorProto()
                copy.CopyFrom(matrix)
                copy.name, copy.dims[:] = self._fresh(f"{name}.stacked"), [*[1] * (axes - 2), *matrix.dims]
                self._proto.graph.initializer.append(copy)
                self._stacked[name, axes] = copy.name
            node.input[place] = self._stacked[name, axes]

    def _make_outputs(self, node: NodeProto, is_half: bool) -> None:
        _, results = _definition(node.op_type, self._opset) if not node.domain else ((), ())
        for place, name in enumerate(node.output):
            if name not in self._floats:
                continue
            gives_half = is_half and (node.domain == ONNXRUNTIMES or bool(results[min(place, len(results) - 1)]))
            gives_half = gives_half and (node.op_type != "LayerNormalization" or place == 0)  # statistics are float32
            own = name
            if gives_half and name in self._pinned:
                own = node.output[place] = self._fresh(f"{name}.half")
            elif gives_half:
                self._made_half.add(name)
            self._versions[name, gives_half] = own
            if own != name:
                self._cast(own, name, half=False)
                self._versions[name, False] = name

    def _version(self, name: str, half: bool) -> str:
        if (name, half) not in self._versions:
            target = self._fresh(f"{name}.{'half' if half else 'float'}")
            self._cast(self._versions[name, not half], target, half=half)
            self._versions[name, half] = target
        return self._versions[name, half]

    def _cast(self, source: str, target: str, *, half: bool) -> None:
        kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        names = (target, *(f"{target}.cast_{i}" for i in range(len(self._node_names))))
        name = next(name for name in names if name not in self._node_names)  # onnxruntime minds nodes of one name
        self._node_names.add(name)
        self._nodes.append(helper.make_node("Cast", [source], [target], name=name, to=kind))

    def _fresh(self, stem: str) -> str:
        name = next(n for n in (stem, *(f"{stem}_{i}" for i in range(len(self._taken)))) if n not in self._taken)
        self._taken.add(name)
        return name


def rounded(value: Array) -> Array:
    """Numbers of float32 as float16; what is nearer to 0 than the least of these becomes that."""
    with np.errstate(over="ignore"):
        half = np.asarray(value, dtype=np.float16)
    return np.where((half == 0) & (value != 0), np.copysign(np.float16(LEAST), value).astype(np.float16), half)


@cache
def _definition(op: str, opset: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The types of an operator's inputs and outputs by the names that its definition has for them; '' where float16 is
    no such type. Nothing where onnx has no such operator."""
    if not onnx.defs.has(op, opset, ""):
        return (), ()
    schema = onnx.defs.get_schema(op, opset, "")
    inputs, outputs = (
        tuple(side.type_str if "tensor(float16)" in side.types else "" for side in sides)
        for sides in (schema.inputs, schema.outputs)
    )
    return inputs, outputs


def _retype(node: NodeProto) -> None:
    """Make what a node's attributes say of float32 say float16, in place."""
    if node.op_type == "ConstantOfShape":
        value = next((numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"), np.zeros(1, np.float32))
        keep_only(node.attribute, lambda attribute: attribute.name != "value")
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(rounded(value))))
    elif node.op_type == "Cast":
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16


def _store_constants(graph: onnx.GraphProto) -> None:
    """Make initializers of Constant nodes of floats, in place."""
    for node in graph.node:
        if (
            node.op_type == "Constant"
            and not node.domain
            and node.attribute[0].name in ("value", "value_float", "value_floats")
        ):
            attribute = node.attribute[0]
            value = helper.get_attribute_value(attribute)
            tensor = value if attribute.name == "value" else numpy_helper.from_array(np.asarray(value, np.float32))
            if tensor.data_type == TensorProto.FLOAT:
                graph.initializer.add().CopyFrom(tensor)
                graph.initializer[-1].name = node.output[0]
                node.op_type = ""
    keep_only(graph.node, lambda node: node.op_type)
