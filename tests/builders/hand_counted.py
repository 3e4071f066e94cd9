"""Fully connected networks whose costs are counted by hand, and errors by width for them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from builders.models import build
from pcns_onnx.cost.model import Costs
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.graph import Graph
from pcns_onnx.planning.allocation import allocate
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.grids import grid

Curves = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Chain:
    """Fully connected layers of these widths, with the costs that a plan sees."""

    widths: tuple[int, ...]
    bias: bool = True

    @property
    def graph(self) -> Graph:
        nodes, x = [], "x"
        weights: dict[str, NDArray[np.float32]] = {}
        for i, (n, k) in enumerate(itertools.pairwise(self.widths)):
            weights[f"w{i}"] = np.zeros((n, k), np.float32)
            out = "y" if i == len(self.widths) - 2 else f"h{i}"
            inputs = [x, f"w{i}"]
            if self.bias:
                weights[f"b{i}"] = np.zeros(k, np.float32)
                inputs.append(f"b{i}")
            nodes.append(helper.make_node("Gemm", inputs, [out], name=f"g{i}"))
            if out != "y":
                nodes.append(helper.make_node("Relu", [out], [f"a{i}"]))
            x = f"a{i}"
        return Graph(build(nodes, weights, ["N", self.widths[0]]))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        return build_dependency_graph(self.graph).shrinkable

    @cached_property
    def costs(self) -> Costs:
        graph = self.graph
        return Costs(build_dependency_graph(graph), {"params": graph.parameters}, {"params": graph.parameters})

    def macs(self, hidden: Mapping[str, int]) -> int:
        """Multiply-adds by hand."""
        return sum(n * k for n, k in itertools.pairwise(self._narrowed(hidden)))

    def parameters(self, hidden: Mapping[str, int]) -> int:
        """Weights and biases by hand."""
        return self.macs(hidden) + sum(self._narrowed(hidden)[1:])

    def _narrowed(self, hidden: Mapping[str, int]) -> list[int]:
        inner = [hidden.get(f"g{i}", width) for i, width in enumerate(self.widths[1:-1])]
        return [self.widths[0], *inner, self.widths[-1]]

    def fractions(self, hidden: Mapping[str, int]) -> dict[str, float]:
        return {name: width / self.widths[int(name[1:]) + 1] for name, width in hidden.items()}

    def allocate(self, curves: Curves, *budgets: str, multiple: str = "1") -> dict[str, int]:
        grids = {g.name: grid(g, "Gemm", multiple) for g in self.groups}
        return allocate(self.groups, curves, grids, self.costs, [Budget.parse(text) for text in budgets])

    def evenly(self, share: float) -> dict[str, int]:
        return {g.name: max(1, int(share * g.width)) for g in self.groups}


@dataclass(frozen=True)
class Stream:
    """A layer, blocks on top of it that add to its outputs, and a last layer.

    A block of inner width 0 is a single layer, which reads and writes the same channels.
    """

    width: int
    inner: tuple[int, ...]
    ends: tuple[int, int] = (5, 3)

    @property
    def graph(self) -> Graph:
        nodes: list[onnx.NodeProto] = []
        weights: dict[str, NDArray[np.float32]] = {}

        def gemm(name: str, source: str, rows: int, columns: int) -> str:
            weights[f"{name}.w"] = np.zeros((rows, columns), np.float32)
            weights[f"{name}.b"] = np.zeros(columns, np.float32)
            nodes.append(helper.make_node("Gemm", [source, f"{name}.w", f"{name}.b"], [name], name=name))
            return name

        stream = gemm("stem", "x", self.ends[0], self.width)
        for i, width in enumerate(self.inner):
            source = gemm(f"in{i}", stream, self.width, width) if width else stream
            if width:
                nodes.append(helper.make_node("Relu", [source], [f"relu{i}"]))
                source = f"relu{i}"
            nodes.append(helper.make_node("Add", [stream, gemm(f"out{i}", source, width or self.width, self.width)],
                                          [f"sum{i}"]))  # fmt: skip
            stream = f"sum{i}"
        gemm("y", stream, self.width, self.ends[1])
        return Graph(build(nodes, weights, ["N", self.ends[0]]))

    @property
    def full(self) -> dict[str, int]:
        return {"stem": self.width, **{f"in{i}": width for i, width in enumerate(self.inner) if width > 1}}

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-adds by hand."""
        w = widths.get("stem", self.width)
        inner = [widths.get(f"in{i}", width) for i, width in enumerate(self.inner)]
        return w * sum(self.ends) + sum(2 * w * i if i else w * w for i in inner)

    def parameters(self, widths: Mapping[str, int]) -> int:
        """Weights and biases by hand."""
        w = widths.get("stem", self.width)
        inner = [widths.get(f"in{i}", width) for i, width in enumerate(self.inner)]
        return self.macs(widths) + w + sum(i + w for i in inner) + self.ends[1]


def total(curves: Curves, widths: Mapping[str, int]) -> float:
    return sum(float(curves[name][width]) for name, width in widths.items())


def convex_curves(chain: Chain, seed: int) -> dict[str, NDArray[np.float64]]:
    """Per group: error at every width from 0 to all of it, falling, convex, 0 at the end."""
    return curves_of({group.name: group.width for group in chain.groups}, seed)


def curves_of(widths: Mapping[str, int], seed: int) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    curves = {}
    for name, width in widths.items():
        gains = np.sort(rng.exponential(size=width) ** rng.integers(1, 4))[::-1]
        curve = np.append(gains.sum(), gains.sum() - np.cumsum(gains))
        curve[-1] = 0
        curves[name] = curve / curve[0] * rng.random()
    return curves
