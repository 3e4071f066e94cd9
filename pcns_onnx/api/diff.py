"""What changed between two models, layer by layer, from the files alone: nothing is run.

Layers and nodes are matched by their names (a node's first output where it has none). Both models
are compared as they would be solved, with BatchNormalization folded and in float32; a weight of the
same shape in both is compared by |V_a - V_b| / |V_a| (Frobenius).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Unpack

import msgspec
import numpy as np

from pcns_onnx.api.inputs import load_model
from pcns_onnx.api.options import Options, Running
from pcns_onnx.calibration.shapes import stated_shapes
from pcns_onnx.cost.model import ModelSize, model_size
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.graph import Graph, ModelSource, Node, TensorSpec
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.layer_weights import stored_bias, stored_weight


class LayerSide(msgspec.Struct, frozen=True):
    """A layer in one of the models: channels that it reads and writes (0 where not known), cost per sample.

    `macs` is None where its sizes are not known.
    """

    kind: str
    reads: int
    width: int
    macs: int | None
    parameters: int


class LayerChange(msgspec.Struct, frozen=True):
    """A layer in both models, or in one (None in the other).

    `weights`, `biases`: relative change, None where the shapes differ or nothing is compared.
    """

    name: str
    before: LayerSide | None
    after: LayerSide | None
    weights: float | None = None
    biases: float | None = None

    @property
    def what(self) -> str:
        """What happened to it, in words."""
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        changes = [] if self.before.kind == self.after.kind else ["another kind"]
        changes += _resized("width", self.before.width, self.after.width)
        changes += _resized("inputs", self.before.reads, self.after.reads)
        if self.weights or self.biases:
            changes.append("other weights")
        return ", ".join(changes) or "the same"


class Difference(msgspec.Struct, frozen=True):
    """Everything that changed from model A to model B.

    `operators`: how many nodes of each operator, in A and in B, where that differs. `nodes`: other nodes of one name
    that differ, and in what. `interface`: what a caller or a runtime would notice. `equal`: nothing differs at all.
    """

    layers: list[LayerChange]
    operators: dict[str, tuple[int, int]]
    nodes: dict[str, str]
    interface: list[str]
    before: ModelSize
    after: ModelSize
    equal: bool


def diff(a: ModelSource, b: ModelSource, **choices: Unpack[Running]) -> Difference:
    """What changed from `a` to `b`; `shape` of `choices` says sizes that they leave open. Raises `InputError`."""
    options = Options.of(**choices)
    scope, forms = options.scope, [Canonical.of(load_model(source, options)) for source in (a, b)]
    first, second = (build_dependency_graph(form.twin, stated_shapes(form.twin, scope)) for form in forms)
    left, right = _sides(first), _sides(second)
    layers = [
        LayerChange(name, left.get(name), right.get(name), *_weights(name, forms, (first, second)))
        for name in dict.fromkeys((*left, *right))
    ]
    one, two = (form.original for form in forms)
    return Difference(
        layers,
        _operators(one, two),
        _nodes(one, two, _solved(forms[0], first) | _solved(forms[1], second)),
        _interface(one, two),
        model_size(one, first),
        model_size(two, second),
        one.digest() == two.digest(),
    )


def _resized(quantity: str, before: int, after: int) -> list[str]:
    return [] if before == after or not (before and after) else [f"{quantity} {before} to {after}"]


def _sides(dependencies: DependencyGraph) -> dict[str, LayerSide]:
    sides = {
        layer.name: LayerSide(layer.kind, len(layer.inputs), layer.width, layer.macs or None, layer.parameters)
        for layer in dependencies.layers
    }
    return sides | {n.name: LayerSide(n.kind, 0, n.width, n.macs or None, n.parameters) for n in dependencies.unsolved}


def _solved(form: Canonical, dependencies: DependencyGraph) -> set[str]:
    """Names of the nodes that are layers."""
    return {form.twin.node(layer.key).label for layer in dependencies.layers}


def _weights(
    name: str, forms: list[Canonical], both: tuple[DependencyGraph, DependencyGraph]
) -> tuple[float | None, float | None]:
    """Relative change of a layer's weight and of its bias."""
    if not all(any(layer.name == name for layer in dependencies.layers) for dependencies in both):
        return None, None
    layers = [dependencies.layer(name) for dependencies in both]
    weights = [stored_weight(form.twin, layer) for form, layer in zip(forms, layers, strict=True)]
    biases = [stored_bias(form.twin, layer) for form, layer in zip(forms, layers, strict=True)]
    return _change(*weights), _change(*biases)


def _change(a: Any, b: Any) -> float | None:
    if a.shape != b.shape:
        return None
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30))


def _operators(a: Graph, b: Graph) -> dict[str, tuple[int, int]]:
    counts = [Counter(_operator(node) for node in graph.nodes) for graph in (a, b)]
    return {op: (x, y) for op in sorted(counts[0] | counts[1]) if (x := counts[0][op]) != (y := counts[1][op])}


def _operator(node: Node) -> str:
    return f"{node.domain}:{node.op}" if node.domain else node.op


def _nodes(a: Graph, b: Graph, layers: set[str]) -> dict[str, str]:
    """Nodes that are no layers: what differs, those that are in one model only included."""
    one, two = ({node.label: node for node in graph.nodes if node.label not in layers} for graph in (a, b))
    changes = {}
    for name in dict.fromkeys((*one, *two)):
        if name not in one or name not in two:
            changes[name] = f"{_operator((one | two)[name])} {'added' if name in two else 'removed'}"
        elif differences := _node_change(a, one[name], b, two[name]):
            changes[name] = ", ".join(differences)
    return changes


def _node_change(a: Graph, one: Node, b: Graph, two: Node) -> list[str]:
    if _operator(one) != _operator(two):
        return [f"{_operator(one)} is now {_operator(two)}"]
    names = dict.fromkeys((*one.attrs, *two.attrs))
    changes = [f"attribute {n}" for n in names if not _same(one.attrs.get(n), two.attrs.get(n))]
    if len(one.inputs) != len(two.inputs):
        return [*changes, f"{len(one.inputs)} inputs, now {len(two.inputs)}"]
    for at, (x, y) in enumerate(zip(one.inputs, two.inputs, strict=True)):
        stored = [graph.constant(name) if name else None for graph, name in ((a, x), (b, y))]
        if not _same(*stored):
            changes.append(f"constant input {at}")
    return changes


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is not None and b is not None and np.array_equal(a, b)
    return bool(a == b)


def _interface(a: Graph, b: Graph) -> list[str]:
    changes = []
    for direction, one, two in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        left, right = ({spec.name: spec for spec in specs} for specs in (one, two))
        for name in dict.fromkeys((*left, *right)):
            if left.get(name) != right.get(name):
                changes.append(f"{direction} '{name}': {_spec(left.get(name))}, now {_spec(right.get(name))}")
    if a.opset != b.opset:
        changes.append(f"opset: {a.opset}, now {b.opset}")
    if a.storage != b.storage:
        changes.append(f"weights stored as {a.storage}, now {b.storage}")
    notes = [graph.metadata("pcns_onnx") for graph in (a, b)]
    if notes[0] != notes[1]:
        changes.append(f"made by pcns-onnx: {notes[1] or 'no'}" + (f" (before: {notes[0]})" if notes[0] else ""))
    return changes


def _spec(spec: TensorSpec | None) -> str:
    if spec is None:
        return "none"
    return f"{spec.dtype} {'x'.join('?' if size is None else str(size) for size in spec.shape)}"
