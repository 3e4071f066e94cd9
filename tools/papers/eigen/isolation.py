"""Graham's isolation experiments: one hidden layer removed from or added to, and what the output makes of it.

A network D - N - K with tanh behind both layers, weights and biases uniform in ±1/sqrt(fan-in) as PyTorch draws them,
inputs uniform in [0, 1). Its hidden layer loses or gains a tenth of its size per step; the error is the squared
Frobenius distance of the output's activations from what they were, here also as a share of their squared norm.

Removal and its rankings are the package's own (`methods.weights`); expansion is what `pcns-onnx expand` does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.methods.data_free.low_rank_weights import by_norm, truncated
from pcns_onnx.methods.expansion import shared_out, widened
from pcns_onnx.runtime.engine import Engine

Matrix = NDArray[np.float32]

RATIOS = {"1": 1.0, "3/4": 0.75, "1/2": 0.5, "1/4": 0.25, "1/5": 0.2}
STEPS = 10
BATCH = 64


@dataclass(frozen=True)
class Net:
    """tanh(W2 tanh(W1 x + b1) + b2): W1 (N, D), W2 (K, N)."""

    w1: Matrix
    b1: Matrix
    w2: Matrix
    b2: Matrix

    @classmethod
    def drawn(cls, sizes: tuple[int, int, int], generator: np.random.Generator) -> Net:
        """A fresh one of these sizes."""
        parts: list[Matrix] = []
        for into, out in itertools.pairwise(sizes):
            bound = into**-0.5
            parts += [generator.uniform(-bound, bound, shape).astype(np.float32) for shape in ((out, into), (out,))]
        return cls(*parts)

    def hidden(self, x: Matrix) -> Matrix:
        """(R, N)."""
        return np.asarray(np.tanh(x @ self.w1.T + self.b1))

    def output(self, hidden: Matrix) -> Matrix:
        """(R, K)."""
        return np.asarray(np.tanh(hidden @ self.w2.T + self.b2))


@dataclass(frozen=True)
class Row:
    """One measurement: squared distance of the outputs, and their own squared norm."""

    operation: str
    method: str
    step: int
    width: int
    repetition: int
    distance: float
    norm: float


def removal(sizes: tuple[int, int, int], inputs: int, repetitions: int, seed: int) -> Iterator[Row]:
    """Every way of removing, at every step."""
    for repetition in range(repetitions):
        generator = np.random.default_rng([seed, repetition])
        net, x = Net.drawn(sizes, generator), generator.random((inputs, sizes[0]), dtype=np.float32)
        y = net.output(net.hidden(x))
        ways = list(_removals(net))
        seen = {id(low): low.hidden(x) for _, low, _ in ways}
        for step in range(STEPS):
            width = sizes[1] - step * (sizes[1] // STEPS)
            for name, low, order in ways:
                keep = np.sort(order[:width])
                z = np.tanh(seen[id(low)][:, keep] @ low.w2[:, keep].T + low.b2)
                yield _row("removal", name, step, width, repetition, y, z)
            other = Net.drawn((sizes[0], width, sizes[2]), generator)
            yield _row("removal", "random", step, width, repetition, y, other.output(other.hidden(x)))


def _removals(net: Net) -> Iterator[tuple[str, Net, NDArray[np.int64]]]:
    """(name, the weights that are sliced, neurons from the first to stay to the last)."""
    for label, ratio in RATIOS.items():
        low = reduced(net, ratio)
        order = ranked(net, low)
        if ratio == 1.0:
            yield "minimum weight", net, ranked(net, net)
            yield "by the mean (listing), full rank", net, np.argsort(-net.w2.mean(axis=0), kind="stable")
        yield f"EigenRemove {label}", low, order
        if ratio < 1.0:
            yield f"algorithm 2 (own weights) {label}", net, order


def reduced(net: Net, ratio: float) -> Net:
    """Both matrices at a lower rank, the biases as they are."""
    if ratio == 1.0:
        return net
    w1, w2 = (truncated(w.astype(np.float64), 1, ratio).astype(np.float32) for w in (net.w1, net.w2))
    return Net(w1, net.b1, w2, net.b2)


def ranked(net: Net, low: Net) -> NDArray[np.int64]:
    """Hidden neurons by the norm of what leaves them in `low`."""
    squares = [(w.astype(np.float64) ** 2).sum(axis=0) for w in (low.w2, net.w2, net.w2 - low.w2)]
    return by_norm(*squares).order


def expansion(sizes: tuple[int, int, int], inputs: int, repetitions: int, seed: int) -> Iterator[Row]:
    """Both ways of adding, at every step, run in onnxruntime."""
    for repetition in range(repetitions):
        generator = np.random.default_rng([seed, repetition])
        net, x = Net.drawn(sizes, generator), generator.random((inputs, sizes[0]), dtype=np.float32)
        graph = as_graph(net)
        y = _run(graph, x)
        for step in range(STEPS + 1):
            width = sizes[1] + step * (sizes[1] // STEPS)
            for name in ("WeakExpand", "zero-weight expansion"):
                z = _run(expanded(graph, width, zero=name != "WeakExpand"), x) if step else y
                yield _row("expansion", name, step, width, repetition, y, z)


def as_graph(net: Net) -> Graph:
    """The network as an ONNX model."""
    weights = {"w1": net.w1, "b1": net.b1, "w2": net.w2, "b2": net.b2}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["s"], name="hidden", transB=1),
        helper.make_node("Tanh", ["s"], ["t"]),
        helper.make_node("Gemm", ["t", "w2", "b2"], ["u"], name="out", transB=1),
        helper.make_node("Tanh", ["u"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w.shape[i]])
            for n, w, i in (("x", net.w1, 1), ("y", net.w2, 0))]  # fmt: skip
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return Graph.load(model)


def expanded(graph: Graph, width: int, *, zero: bool) -> Graph:
    """The hidden layer with `width` neurons."""
    dependencies = build_dependency_graph(graph)
    groups = [group for group in dependencies.groups if group.name == "hidden"]
    copies, _ = shared_out(graph, dependencies, groups, {"hidden": width})
    return widened(graph, dependencies, copies, groups, zero=zero)


def _run(graph: Graph, x: Matrix) -> Matrix:
    return np.asarray(Engine("cpu", 1).session(graph.program()).run({"x": x})["y"])


def _row(operation: str, method: str, step: int, width: int, repetition: int, y: Matrix, z: Matrix) -> Row:
    distance, norm = (float((a.astype(np.float64) ** 2).sum()) for a in (y - z, y))
    return Row(operation, method, step, width, repetition, distance, norm)


def timings(sizes: tuple[int, int, int], inputs: int, repetitions: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each operation (on a fifth of the neurons), of forward passes and of an epoch."""
    generator = np.random.default_rng([seed, 99])
    net, x = Net.drawn(sizes, generator), generator.random((inputs, sizes[0]), dtype=np.float32)
    graph = as_graph(net)
    fewer, more = sizes[1] - sizes[1] // 5, sizes[1] + sizes[1] // 5

    def removed(ratio: float) -> Net:
        low = reduced(net, ratio)
        keep = np.sort(ranked(net, low)[:fewer])
        return Net(low.w1[keep], low.b1[keep], np.ascontiguousarray(low.w2[:, keep]), low.b2)

    tasks: dict[str, Callable[[], object]] = {
        "EigenRemove 1/2": lambda: removed(0.5),
        "minimum weight": lambda: removed(1.0),
        "WeakExpand": lambda: expanded(graph, more, zero=False),
        "zero-weight expansion": lambda: expanded(graph, more, zero=True),
        "forward pass, one batch of 64": lambda: net.output(net.hidden(x[:BATCH])),
        f"forward pass, {inputs} inputs": lambda: net.output(net.hidden(x)),
        f"epoch, {inputs} inputs": lambda: _epoch(net, x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repetitions):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _epoch(net: Net, x: Matrix) -> float:
    """One pass of plain SGD towards the network's own outputs plus a little, in batches; returns the loss."""
    parts = [part.copy() for part in (net.w1, net.b1, net.w2, net.b2)]
    loss = 0.0
    for start in range(0, len(x), BATCH):
        w1, b1, w2, b2 = parts
        rows = x[start : start + BATCH]
        t = np.tanh(rows @ w1.T + b1)
        y = np.tanh(t @ w2.T + b2)
        off = y - (y + np.float32(0.1))
        loss += float((off * off).sum())
        du = off * (1 - y * y) / len(rows)
        ds = (du @ w2) * (1 - t * t)
        for part, gradient in zip(parts, (ds.T @ rows, ds.sum(axis=0), du.T @ t, du.sum(axis=0)), strict=True):
            part -= np.float32(0.01) * gradient
    return loss
