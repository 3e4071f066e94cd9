"""What an output decides: the class, or yes and no. Found from the graph, by what makes the output.

    Softmax         the largest along its axis, at every place (arg-max)
    Sigmoid, [0,1]  over one half or not (threshold)
    integers, text  the value itself (equal)

A relative error says little of such outputs: a probability of 0.51 that becomes 0.49 is 4 % off, and another answer.
Integers that follow from the inputs by moving and comparing them (a mask or ids handed on, lengths) decide nothing: no
model gets them wrong.
Followed is what keeps a value what it is (shapes, slices, transposes), and what keeps it within [0, 1] (products,
means); of a Concat that holds such values and others, the part that is bounded, where its place is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.conform import is_floating
from pcns_onnx.graph import Graph
from pcns_onnx.graph.protobuf import Node

Kind = Literal["arg-max", "threshold", "equal"]

_SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid"})
_SOFTMAXES = frozenset({"Softmax", "LogSoftmax"})
_SAME_PLACES = frozenset({"Identity", "Cast", "Dropout", "Resize", "Upsample"})
_OTHER_PLACES = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Split", "Tile"}
    | {"AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceMin", "Sqrt"}
)
_HANDED_ON = frozenset(
    {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand", "Tile"}
    | {"Concat", "Split", "Shape", "Size", "ConstantOfShape", "Constant", "Range", "Where", "Not", "And", "Or", "Equal"}
    | {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Add", "Sub", "Mul", "Div", "Min", "Max", "ReduceSum"}
)
_PRODUCTS = frozenset({"Mul", "Min", "Max"})


@dataclass(frozen=True)
class DecisionRule:
    """How an output decides: `axis` of an arg-max; `part` (axis, from, to) where only some of its values do."""

    kind: Kind
    axis: int = -1
    part: tuple[int, int, int] | None = None

    def decisions(self, values: NDArray[Any]) -> NDArray[Any]:
        """What an output decides: classes, 0 or 1, or its values."""
        if self.part is not None:
            axis, start, stop = self.part
            values = np.take(values, np.arange(start, stop), axis=axis)
        if self.kind == "equal":
            return values
        return values.argmax(axis=self.axis) if self.kind == "arg-max" else np.asarray(values > 0.5, dtype=np.int64)


class DecisionTally:
    """Counts how many decisions of two models flip; of all, and of those that are not the usual one in both.

    A detector says "background" a thousand times for every face: there the second share is what is felt.
    """

    def __init__(self, rule: DecisionRule) -> None:
        self.rule = rule
        self.flipped = self.count = 0
        self._same = np.zeros(0, dtype=np.int64)

    def update(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
        """Add a batch of two outputs of the same shape; which decisions differ."""
        if not a.size:
            return np.zeros(0, dtype=np.bool_)
        first, second = self.rule.decisions(a), self.rule.decisions(b)
        same = np.asarray(first == second)
        self.count += same.size
        self.flipped += int(same.size - same.sum())
        if self.rule.kind != "equal":
            counts = np.bincount(first[same].reshape(-1), minlength=len(self._same))
            counts[: len(self._same)] += self._same
            self._same = counts
        return np.asarray(~same).reshape(-1)

    @property
    def share(self) -> float | None:
        """The share of all decisions that flip."""
        return self.flipped / self.count if self.count else None

    @property
    def share_of_unusual(self) -> float | None:
        """The share that flips of those that at least one model decides unlike most; None where there are none."""
        unusual = self.count - int(self._same.max(initial=0))
        return self.flipped / unusual if unusual and self.rule.kind != "equal" else None


def decision_rules(graph: Graph) -> dict[str, DecisionRule]:
    """By name, the outputs that decide something."""
    rules = dict[str, DecisionRule]()
    for output in graph.outputs:
        if is_floating(output.dtype):
            rule = _rule(graph, output.name)
        else:
            rule = None if _is_handed_on(graph, output.name) else DecisionRule("equal")
        if rule is not None:
            rules[output.name] = rule
    return rules


def _is_handed_on(graph: Graph, name: str) -> bool:
    """Whether nothing but `_HANDED_ON` stands between the inputs and a tensor."""
    pending, visited = [name], set[str]()
    while pending:
        name = pending.pop()
        node = graph.producers.get(name)
        if node is None or name in visited:
            continue
        if node.domain or node.op not in _HANDED_ON:
            return False
        visited.add(name)
        pending += [source for source in node.inputs if source]
    return True


def _rule(graph: Graph, name: str) -> DecisionRule | None:
    node = graph.producers.get(name)
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op in _SIGMOIDS or (node.op == "Clip" and _is_unit(graph, node)):
        return DecisionRule("threshold")
    if node.op in _SOFTMAXES:
        return DecisionRule("arg-max", int(node.attrs.get("axis", -1 if graph.opset >= 13 else 1)))
    if node.op == "Concat":
        return _of_parts(graph, node)
    if node.op in _PRODUCTS:
        whole = all((rule := _rule(graph, part)) is not None and rule.part is None for part in node.inputs)
        return DecisionRule("threshold") if whole else None
    if node.op not in _SAME_PLACES | _OTHER_PLACES | {"Transpose"} or not node.inputs:
        return None
    rule = _rule(graph, node.inputs[0])
    if rule is None or node.op in _SAME_PLACES:
        return rule
    if node.op == "Transpose":
        return _transposed(rule, node.attrs.get("perm"))
    return DecisionRule("threshold") if rule.part is None else None


def _transposed(rule: DecisionRule, order: Any) -> DecisionRule | None:
    if order is None:
        return rule if rule.kind == "threshold" and rule.part is None else None
    place = {old: new for new, old in enumerate(int(axis) for axis in order)}
    part = rule.part if rule.part is None else (place[rule.part[0] % len(place)], *rule.part[1:])
    return replace(rule, axis=place[rule.axis % len(place)], part=part)


def _of_parts(graph: Graph, node: Node) -> DecisionRule | None:
    axis, rules = int(node.attrs["axis"]), [_rule(graph, name) for name in node.inputs]
    bounded = [at for at, rule in enumerate(rules) if rule is not None]
    if not bounded:
        return None
    if len(bounded) == len(rules):
        first = rules[0]
        alike = all(rule == first for rule in rules) and first is not None and first.kind == "arg-max"
        return first if alike and first is not None and first.axis != axis else _all_bounded(rules)
    shapes = graph.shapes()
    sizes = [shapes[name][axis] if shapes.get(name) else None for name in node.inputs]
    start, stop = bounded[0], bounded[-1] + 1
    if bounded != list(range(start, stop)) or any(size is None for size in sizes[:stop]):
        return None
    before, within = (sum(size or 0 for size in sizes[a:b]) for a, b in ((0, start), (start, stop)))
    rule = _all_bounded(rules[start:stop])
    return None if rule is None else replace(rule, part=(axis, before, before + within))


def _all_bounded(rules: list[DecisionRule | None]) -> DecisionRule | None:
    return DecisionRule("threshold") if all(rule is not None and rule.part is None for rule in rules) else None


def _is_unit(graph: Graph, node: Node) -> bool:
    ends: Mapping[str, Any] = {
        key: graph.constant(node.inputs[at]) if len(node.inputs) > at and node.inputs[at] else node.attrs.get(key)
        for at, key in ((1, "min"), (2, "max"))
    }
    return all(end is not None for end in ends.values()) and (float(ends["min"]), float(ends["max"])) == (0.0, 1.0)
