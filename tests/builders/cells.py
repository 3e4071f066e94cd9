"""Small models with a recurrent layer: x (N, T, I) -> LSTM, GRU or RNN -> a layer at every step, or behind the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array
from pcns_onnx.ops.recurrent import GATES

DIRECTIONS = ("forward", "reverse", "bidirectional")


def drawn(seed: int, *shape: int, scale: float = 0.4) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


@dataclass(frozen=True)
class CellModel:
    """A model around one cell of `units` units, `planted` of which do what others do, in places of their own.

    `ends` 'steps' reads Y by Transpose and Reshape (Squeeze where there is one direction), 'last' reads Y_h,
    'state' puts it out. `extra` are further inputs of the cell by position: arrays are stored, names are as they are.
    """

    op: str = "LSTM"
    direction: str = "forward"
    units: int = 12
    planted: int = 0
    inputs: int = 5
    steps: int = 7
    opset: int = 17
    ends: str = "steps"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[int, Any] = field(default_factory=dict)
    more: Sequence[onnx.NodeProto] = ()
    graph_inputs: Sequence[onnx.ValueInfoProto] = ()
    stored: Mapping[str, Array] = field(default_factory=dict)
    bias: bool = True
    front: int = 0
    seed: int = 0

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def weights(self) -> dict[str, Array]:
        k, h, d, width = GATES[self.op], self.units, self.directions, self.front or self.inputs
        weights = {"W": drawn(self.seed, d, k * h, width), "R": drawn(self.seed + 1, d, k * h, h)}
        weights["B"] = drawn(self.seed + 2, d, 2 * k * h)
        for side in range(d):
            for at in range(self.planted):
                self._copy(weights, side, (3 * side + at) % h, (5 + 4 * side + at) % h)
        return weights

    def _copy(self, weights: dict[str, Array], side: int, source: int, target: int) -> None:
        """Let a unit do what another does, and share out what is read of both."""
        k, h = GATES[self.op], self.units
        rows = [(gate * h + source, gate * h + target) for gate in range(2 * k)]
        for a, b in rows[:k]:
            weights["W"][side, b], weights["R"][side, b] = weights["W"][side, a], weights["R"][side, a]
        for a, b in rows:
            weights["B"][side, b] = weights["B"][side, a]

    def build(self) -> onnx.ModelProto:
        weights = {**self.weights(), **self.stored}
        d, h, steps = self.directions, self.units, ["x"]
        nodes = []
        if self.front:
            nodes += [helper.make_node("MatMul", ["x", "W0"], ["m0"]), helper.make_node("Relu", ["m0"], ["h0"])]
            weights["W0"], steps = drawn(self.seed + 5, self.inputs, self.front), ["h0"]
        nodes += [helper.make_node("Transpose", steps, ["t"], perm=[1, 0, 2]), *self.more]
        names = ["t", "W", "R", "B" if self.bias else ""]
        for at in range(4, max(self.extra, default=3) + 1):
            value = self.extra.get(at, "")
            names.append(value if isinstance(value, str) else f"extra{at}")
            if not isinstance(value, str):
                weights[names[-1]] = value
        outputs = {"steps": ["Y"], "last": ["", "Yh"], "state": ["Y", "Yh"], "cell": ["", "", "Yc"]}[self.ends]
        nodes.append(
            helper.make_node(
                self.op, names, outputs, name="cell", hidden_size=h, direction=self.direction, **self.attributes
            )
        )
        if self.ends in ("last", "cell"):
            nodes += [
                helper.make_node("Transpose", [outputs[-1]], ["u"], perm=[1, 0, 2]),
                helper.make_node("Reshape", ["u", "flat"], ["v"]),
            ]
            weights["flat"] = np.array([0, -1], dtype=np.int64)
        elif d == 1:
            if self.opset < 13:
                nodes.append(helper.make_node("Squeeze", ["Y"], ["u"], axes=[1]))
            else:
                nodes.append(helper.make_node("Squeeze", ["Y", "one"], ["u"]))
                weights["one"] = np.array([1], dtype=np.int64)
            nodes.append(helper.make_node("Transpose", ["u"], ["v"], perm=[1, 0, 2]))
        else:
            nodes += [
                helper.make_node("Transpose", ["Y"], ["u"], perm=[2, 0, 1, 3]),
                helper.make_node("Reshape", ["u", "flat"], ["v"]),
            ]
            weights["flat"] = np.array([0, 0, d * h], dtype=np.int64)
        nodes.append(helper.make_node("MatMul", ["v", "V"], ["y"], name="head"))
        weights["V"] = drawn(self.seed + 3, d * h, 3)
        if not self.bias:
            del weights["B"]
        shown = [
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, ["N", *(["S"] if self.ends in ("steps", "state") else []), 3]
            )
        ]
        if self.ends == "state":
            shown.append(helper.make_tensor_value_info("Yh", TensorProto.FLOAT, [d, "N", h]))
        graph = helper.make_graph(
            nodes,
            "cells",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", self.steps, self.inputs]), *self.graph_inputs],
            shown,
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def samples(model: CellModel, count: int = 64, seed: int = 9) -> Array:
    return np.random.default_rng(seed).standard_normal((count, model.steps, model.inputs)).astype(np.float32)
