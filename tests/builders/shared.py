"""Models that store a weight once and use it several times; every second half of hidden channels repeats the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from builders.chains import ints, node
from builders.models import Array, build

C, K = 16, 4
"""Hidden channels, outputs."""


@dataclass
class Weights:
    """Reproducible weights by name: `plain`, or `twins` whose rows are there twice."""

    made: dict[str, Array] = field(default_factory=dict)

    def plain(self, name: str, *shape: int) -> str:
        if name not in self.made:
            generator = np.random.default_rng([len(name), *map(ord, name)])
            scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.5
            self.made[name] = (generator.standard_normal(shape) * scale).astype(np.float32)
        return name

    def twins(self, name: str, rows: int, *rest: int) -> str:
        if name not in self.made:
            half = self.plain(f"{name}.half", rows // 2, *rest)
            self.made[name] = np.concatenate([self.made.pop(half)] * 2)
        return name

    def columns(self, name: str, rows: int, columns: int) -> str:
        if name not in self.made:
            self.made[name] = np.ascontiguousarray(self.made.pop(self.twins(f"{name}.T", columns, rows)).T)
        return name


def pyramid(bias: str = "shared", *, separable: bool = False, norm: bool = False, levels: int = 3) -> onnx.ModelProto:
    """A head on every level of a pyramid; its biases are 'shared', 'own' or 'none', its norms every level's own."""
    w = Weights()
    nodes = [node("Conv", f"x {w.twins('w0', C, 3, 3, 3)}", "p0", pads=[1] * 4)]
    for level in range(levels):
        if level:
            nodes.append(node("MaxPool", f"p{level - 1}", f"p{level}", kernel_shape=[2, 2], strides=[2, 2]))
        source = f"p{level}"
        for depth in (1, 2):
            at = f"{depth}_{level}"
            stored = {"shared": f"b{depth}", "own": f"b{at}", "none": ""}[bias]
            tail = f" {w.twins(stored, C)}" if stored else ""
            kernel = 1 if separable else 3
            if separable:
                nodes.append(
                    node("Conv", f"{source} {w.twins(f'd{depth}', C, 1, 3, 3)}", f"s{at}", group=C, pads=[1] * 4)
                )
                source = f"s{at}"
            weight = w.twins(f"h{depth}", C, C, kernel, kernel)
            nodes.append(node("Conv", f"{source} {weight}{tail}", f"a{at}", pads=[kernel // 2] * 4))
            source = f"a{at}"
            if norm:
                stored = " ".join(w.twins(f"{kind}{at}", C) for kind in "gbm")
                variance = w.twins(f"v{at}", C)
                w.made[variance] = np.abs(w.made[variance]) + np.float32(0.5)
                nodes.append(node("BatchNormalization", f"{source} {stored} v{at}", f"n{at}"))
                source = f"n{at}"
            nodes.append(node("Relu", source, f"r{at}"))
            source = f"r{at}"
        nodes.append(node("Conv", f"{source} {w.plain('h3', K, C, 3, 3)}", f"o{level}", pads=[1] * 4))
        nodes.append(node("Reshape", f"o{level} flat", f"f{level}"))
    nodes.append(node("Concat", " ".join(f"f{level}" for level in range(levels)), "y", axis=2))
    return build(nodes, {**w.made, "flat": ints(0, K, -1)}, ("N", 3, 12, 12))


def siamese() -> onnx.ModelProto:
    """Two towers of two layers, and what reads their difference."""
    w = Weights()
    nodes = [node("Split", "x", "xa xb", axis=1)]
    for tower in "ab":
        first, second = f"{w.twins('w1', C, 8)} {w.twins('b1', C)}", f"{w.twins('w2', C, C)} {w.twins('b2', C)}"
        nodes += [node("Gemm", f"x{tower} {first}", f"h{tower}", transB=1), node("Relu", f"h{tower}", f"i{tower}")]
        nodes += [node("Gemm", f"i{tower} {second}", f"j{tower}", transB=1), node("Relu", f"j{tower}", f"k{tower}")]
    nodes += [node("Sub", "ka kb", "d"), node("Abs", "d", "e"), node("Gemm", f"e {w.plain('w3', K, C)}", "y", transB=1)]
    return build(nodes, w.made, ("N", 16))


def rates() -> onnx.ModelProto:
    """One kernel at three dilations."""
    w = Weights()
    nodes = [node("Conv", f"x {w.twins('w0', C, 3, 3, 3)}", "h", pads=[1] * 4), node("Relu", "h", "r")]
    kernel = w.twins("w1", C, C, 3, 3)
    nodes += [node("Conv", f"r {kernel}", f"a{d}", pads=[d] * 4, dilations=[d, d]) for d in (1, 2, 3)]
    nodes += [node("Sum", "a1 a2 a3", "s"), node("Relu", "s", "q"), node("Conv", f"q {w.plain('w2', K, C, 1, 1)}", "y")]
    return build(nodes, w.made, ("N", 3, 9, 9))


def recurrent(steps: int = 3) -> onnx.ModelProto:
    """A layer that reads what it has made itself."""
    w = Weights()
    nodes = [node("Gemm", f"x {w.twins('w0', C, 8)}", "h0", transB=1), node("Relu", "h0", "r0")]
    for step in range(steps):
        stored = f"{w.twins('w1', C, C)} {w.twins('b1', C)}"
        nodes += [
            node("Gemm", f"r{step} {stored}", f"h{step + 1}", transB=1),
            node("Tanh", f"h{step + 1}", f"r{step + 1}"),
        ]
    nodes.append(node("Gemm", f"r{steps} {w.plain('w2', K, C)}", "y", transB=1))
    return build(nodes, w.made, ("N", 8))


def blocks(count: int = 3) -> onnx.ModelProto:
    """The same residual block again and again (ALBERT)."""
    w = Weights()
    nodes = [node("MatMul", f"x {w.plain('w0', 8, C)}", "s0")]
    for at in range(count):
        nodes += [
            node("Gemm", f"s{at} {w.twins('w1', 2 * C, C)}", f"a{at}", transB=1),
            node("Relu", f"a{at}", f"b{at}"),
        ]
        nodes += [node("Gemm", f"b{at} {w.plain('w2', C, 2 * C)}", f"c{at}", transB=1)]
        nodes += [node("Add", f"s{at} c{at}", f"s{at + 1}")]
    nodes.append(node("Gemm", f"s{count} {w.plain('w3', K, C)}", "y", transB=1))
    return build(nodes, w.made, ("N", 8))


def rows(second: Callable[[str], tuple[Sequence[onnx.NodeProto], str]] = lambda name: ((), name)) -> onnx.ModelProto:
    """A matrix without a bias that reads two tensors; the second time by the name that `second` gives."""
    w = Weights()
    matrix = w.columns("w1", C, C)
    before, again = second(matrix)
    nodes = [
        node("MatMul", f"x {w.columns('w0', 8, C)}", "h"),
        node("Relu", "h", "r"),
        node("Sigmoid", "h", "s"),
        *before,
    ]
    nodes += [node("MatMul", f"r {matrix}", "a"), node("MatMul", f"s {again}", "b")]
    nodes += [node("Relu", "a", "c"), node("Relu", "b", "d"), node("Add", "c d", "e")]
    nodes.append(node("MatMul", f"e {w.plain('w2', C, K)}", "y"))
    return build(nodes, w.made, ("N", 5, 8))


def autoencoder() -> onnx.ModelProto:
    """A layer, and its transpose behind it: between two others."""
    w = Weights()
    nodes = [node("MatMul", f"x {w.columns('w0', 8, C)}", "h0"), node("Relu", "h0", "r0")]
    nodes += [node("MatMul", f"r0 {w.plain('w1', C, 2 * C)}", "h", name="h"), node("Relu", "h", "r")]
    nodes += [
        node("Transpose", "w1", "w1.T", perm=[1, 0]),
        node("MatMul", "r w1.T", "g", name="g"),
        node("Relu", "g", "t"),
    ]
    nodes += [node("MatMul", f"t {w.columns('w2', C, C)}", "u"), node("Relu", "u", "v")]
    nodes.append(node("MatMul", f"v {w.plain('w3', C, K)}", "y"))
    return build(nodes, w.made, ("N", 8))


def weights_of(model: onnx.ModelProto) -> Iterator[int]:
    """The number of values of every float initializer."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield int(np.prod(tensor.dims))
