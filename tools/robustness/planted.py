"""Random models in which half of every width is superfluous, for `duplicates.py`.

Channels are copies of others, copies up to a factor (behind an activation that lets factors through), constant,
or linear combinations (behind none); some pairs are weak. They stand in random order. Whoever keeps the right half
and hands on what the other did loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

ACTIVATIONS = ("Relu", "LeakyRelu", "Tanh", "Sigmoid", "Elu", "Softplus", "gelu", "silu")
_HOMOGENEOUS = ("Relu", "LeakyRelu", "")
_WIDE = 1040
"""Wider than what moments are multiplied in double precision for."""


@dataclass
class Planted:
    """A model that grows node by node: `rng` draws whatever is drawn."""

    rng: np.random.Generator
    kind: str
    shape: tuple[int, ...] = ()
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, Array] = field(default_factory=dict)
    made: int = 0
    combined: bool = False

    def name(self, of: str) -> str:
        self.made += 1
        return f"{of}{self.made}"

    def keep(self, value: Array | list[int], of: str = "c") -> str:
        name = self.name(of)
        kind = np.int64 if isinstance(value, list) else np.float32
        self.stored[name] = np.asarray(value, kind)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        out = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def any(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def activation(self) -> str:
        return str(self.any(*ACTIVATIONS))

    def act(self, x: str, kind: str) -> str:
        """x behind an activation, "" being none."""
        if kind == "gelu":
            inner = self.op("Erf", self.op("Mul", x, self.keep(np.array(0.5**0.5), "root")))
            half = self.op("Mul", x, self.keep(np.array(0.5), "half"))
            return self.op("Mul", half, self.op("Add", inner, self.keep(np.array(1.0), "one")))
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return self.op(kind, x) if kind else x

    def all_vary(self, model: onnx.ModelProto, few: Array, many: Array) -> bool:
        """Whether `few` samples make every neuron fire that `many` do: of one that never does nothing can be known."""
        wanted = [node.output[0] for node in self.nodes if node.op_type == "Relu"]
        axis = -1 if len(self.shape) == 2 and self.kind == "positions" else 1
        open_ = onnx.ModelProto()
        open_.CopyFrom(model)
        open_.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        session = onnxruntime.InferenceSession(open_.SerializeToString(), options, providers=["CPUExecutionProvider"])
        fires = [[np.moveaxis(y, axis, 0).reshape(y.shape[axis], -1).any(1) for y in session.run(wanted, {"x": x})]
                 for x in (few, many)] if wanted else [[], []]  # fmt: skip
        return all((a == b).all() for a, b in zip(*fires, strict=True))

    def rows(self, width: int, columns: int, act: str, *, constant: bool = True) -> tuple[Array, Array]:
        """Weights (width, columns) and biases (width,) of neurons half of which are superfluous behind `act`."""
        half = width // 2
        weight = self.rng.standard_normal((half, columns)) * (1.5 / columns**0.5)
        bias = self.rng.standard_normal(half) * 0.3
        size = np.where(self.rng.random(half) < 0.15, 0.01, 1.0)  # weak ones
        weight, bias = weight * size[:, None], bias * (size if act in _HOMOGENEOUS or act == "Tanh" else 1.0)
        kinds = ["copy", "copy"] + ["constant"] * constant
        kinds += ["dead"] * (act == "Relu") + ["scaled"] * (act in _HOMOGENEOUS)
        extra_weight, extra_bias = weight.copy(), bias.copy()
        for row in range(half):
            kind = "combined" if not act and self.rng.random() < 0.4 else self.any(*kinds)
            if kind == "scaled":
                factor = self.rng.uniform(0.2, 3.0)
                extra_weight[row], extra_bias[row] = weight[row] * factor, bias[row] * factor
            elif kind == "constant":
                extra_weight[row] = 0
            elif kind == "dead":
                extra_weight[row], extra_bias[row] = 0, -1
            elif kind == "combined":
                self.combined = True
                mix = self.rng.standard_normal(half) / half**0.5
                extra_weight[row], extra_bias[row] = mix @ weight, mix @ bias
        order = self.rng.permutation(width)
        return np.concatenate([weight, extra_weight])[order], np.concatenate([bias, extra_bias])[order]

    def reader(self, outputs: int, columns: int) -> Array:
        """Weights (outputs, columns) without anything planted."""
        return np.asarray(self.rng.standard_normal((outputs, columns)) / columns**0.5)

    def gemm(self, x: str, weight: Array, bias: Array | None = None) -> str:
        """A dense layer, spelled in one of three ways."""
        bias = np.zeros(len(weight)) if bias is None else bias
        form = self.any("gemm", "transposed", "matmul")
        if form == "matmul":
            return self.op("Add", self.op("MatMul", x, self.keep(weight.T, "w")), self.keep(bias, "b"))
        if form == "gemm":
            return self.op("Gemm", x, self.keep(weight.T, "w"), self.keep(bias, "b"))
        return self.op("Gemm", x, self.keep(weight, "w"), self.keep(bias, "b"), transB=1)

    def matmul(self, x: str, weight: Array, bias: Array | None = None) -> str:
        """A dense layer of positions."""
        y = self.op("MatMul", x, self.keep(weight.T, "w"))
        return y if bias is None else self.op("Add", y, self.keep(bias, "b"))

    def conv(self, x: str, weight: Array, bias: Array, **attributes: Any) -> str:
        return self.op("Conv", x, self.keep(weight, "w"), self.keep(bias, "b"), **attributes)

    def norm(self, x: str, width: int) -> str:
        """A BatchNormalization that treats all channels alike."""
        scale, variance = self.rng.uniform(0.5, 1.5, 2)
        values = (np.full(width, number) for number in (scale, 0.0, 0.0, variance))
        return self.op("BatchNormalization", x, *(self.keep(value, "bn") for value in values))

    def model(self, y: str) -> onnx.ModelProto:
        """Everything up to `y`, which comes out."""
        self.op("Identity", y)
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes, self.kind,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self.stored.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def _even(net: Planted, low: int, high: int) -> int:
    return 2 * int(net.rng.integers(low, high + 1))


def dense(net: Planted) -> str:
    """Two or three hidden layers of an MLP."""
    net.shape = (int(net.rng.integers(3, 9)),)
    x, columns = "x", net.shape[0]
    for _ in range(net.any(1, 2, 2, 3)):
        width, act = _even(net, 3, 16), net.any(net.activation(), net.activation(), "")
        x, columns = net.act(net.gemm(x, *net.rows(width, columns, act)), act), width
    return net.gemm(x, net.reader(4, columns))


def wide(net: Planted) -> str:
    """A single hidden layer, of more columns than moments are multiplied in double precision for."""
    net.shape, act = (8,), net.any("Relu", "Tanh")
    return net.gemm(net.act(net.gemm("x", *net.rows(_WIDE, 8, act)), act), net.reader(4, _WIDE))


def positions(net: Planted) -> str:
    """The same for every position of a sequence: MatMul and Add."""
    net.shape = (int(net.rng.integers(3, 7)), int(net.rng.integers(4, 9)))
    x, columns = "x", net.shape[1]
    for _ in range(net.any(1, 2)):
        width, act = _even(net, 3, 12), net.activation()
        x, columns = net.act(net.matmul(x, *net.rows(width, columns, act)), act), width
    return net.matmul(x, net.reader(4, columns), net.rng.standard_normal(4))


def _convs(net: Planted, count: int, dims: int = 2) -> tuple[str, int]:
    """Some convolutions behind each other: what comes out and how many channels it has."""
    net.shape = (int(net.rng.integers(1, 4)), *(int(net.rng.integers(9, 11)),) * dims)
    x, channels = "x", net.shape[0]
    for number in range(count):
        width, kernel = _even(net, 2, 6), net.any(1, 3, 3)
        pads = [net.any(0, 1) if kernel == 3 else 0] * (2 * dims)
        act = net.any("Relu", "Relu", net.activation(), net.activation(), "" if number < count - 1 else "Relu")
        weight, bias = net.rows(width, channels * kernel**dims, act, constant=False)
        x = net.conv(x, weight.reshape(width, channels, *[kernel] * dims), bias, pads=pads)
        x = net.act(net.norm(x, width) if net.any(0, 0, 1) else x, act)
        channels = width
    return x, channels


def convolutions(net: Planted) -> str:
    """Conv, an activation, perhaps a pool, and so on; global pooling at the end."""
    x, channels = _convs(net, net.any(1, 2, 3))
    x = net.any(x, net.op("MaxPool", x, kernel_shape=[2, 2]), net.op("AveragePool", x, kernel_shape=[2, 2]))
    return net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), net.reader(4, channels))


def one_dimension(net: Planted) -> str:
    """Conv over time, read by another Conv."""
    x, channels = _convs(net, net.any(1, 2), 1)
    return net.conv(x, net.reader(3, channels * 2).reshape(3, channels, 2), np.zeros(3))


def flattened(net: Planted) -> str:
    """LeNet: Conv read through Flatten, perhaps with a hidden layer behind."""
    x, _ = _convs(net, net.any(1, 2))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]) if net.any(0, 1) else x
    sizes = onnx.shape_inference.infer_shapes(_piece(net, x)).graph.output[0].type.tensor_type.shape.dim
    columns = int(np.prod([d.dim_value for d in sizes[1:]]))
    x = net.any(net.op("Flatten", x), net.op("Reshape", x, net.keep([0, columns])))
    if net.any(0, 1):
        width, act = _even(net, 3, 10), net.activation()
        x, columns = net.act(net.gemm(x, *net.rows(width, columns, act)), act), width
    return net.gemm(x, net.reader(4, columns))


def _piece(net: Planted, x: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        net.nodes, "piece",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *net.shape])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in net.stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def depthwise(net: Planted) -> str:
    """Conv, a depthwise Conv with the same filter for copies, a pointwise Conv."""
    net.shape = (2, 8, 8)
    width = _even(net, 2, 6)
    half = width // 2
    order = net.rng.permutation(width)
    first = net.reader(half, 18)[np.r_[0:half, 0:half]][order].reshape(width, 2, 3, 3) * 3
    filters = net.reader(half, 9)[np.r_[0:half, 0:half]][order].reshape(width, 1, 3, 3) * 2
    bias, own = (net.rng.standard_normal(half)[np.r_[0:half, 0:half]][order] * 0.3 for _ in range(2))
    x = net.op("Relu", net.conv("x", first, bias, pads=[net.any(0, 1)] * 4))
    x = net.act(net.conv(x, filters, own, group=width, pads=[net.any(0, 1)] * 4), net.any("Relu", "silu"))
    x = net.conv(x, net.reader(6, width).reshape(6, width, 1, 1), np.zeros(6))
    return net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), net.reader(3, 6)) if net.any(0, 1) else x


def residual(net: Planted) -> str:
    """A stream whose second half repeats the first, and blocks of two convolutions."""
    net.shape = (2, 7, 7)
    width = _even(net, 2, 5)
    order = net.rng.permutation(width)
    twice = np.r_[0 : width // 2, 0 : width // 2][order]
    weight, bias = net.reader(width // 2, 18)[twice], net.rng.standard_normal(width // 2)[twice]
    x = net.op("Relu", net.conv("x", 2 * weight.reshape(width, 2, 3, 3), bias, pads=[1] * 4))
    for _ in range(net.any(1, 2)):
        inner, act = _even(net, 2, 5), net.activation()
        weight, bias = net.rows(inner, width * 9, act, constant=False)
        h = net.act(net.conv(x, weight.reshape(inner, width, 3, 3), bias, pads=[1] * 4), act)
        weight, bias = net.reader(width // 2, inner * 9)[twice], net.rng.standard_normal(width // 2)[twice]
        h = net.conv(h, weight.reshape(width, inner, 3, 3), bias * 0.1, pads=[1] * 4)
        x = net.op("Relu", net.op("Add", x, h))
    return net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), net.reader(4, width))


def concatenated(net: Planted) -> str:
    """Two branches, each with copies of its own, read together."""
    net.shape = (3, 7, 7)
    branches, widths = [], []
    for _ in range(2):
        width, act = _even(net, 2, 5), net.any("Relu", net.activation())
        weight, bias = net.rows(width, 27, act, constant=False)
        branches.append(net.act(net.conv("x", weight.reshape(width, 3, 3, 3), bias, pads=[1] * 4), act))
        widths.append(width)
    x, both = net.op("Concat", *branches, axis=1), sum(widths)
    weight, bias = net.rows(8, both * 9, "Relu", constant=False)
    x = net.op("Relu", net.conv(x, weight.reshape(8, both, 3, 3), bias, pads=[1] * 4))
    return net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), net.reader(3, 8))


def transposed(net: Planted) -> str:
    """Conv and ConvTranspose, both with copies."""
    x, channels = _convs(net, 1)
    width, act = _even(net, 2, 5), net.activation()
    weight, bias = net.rows(width, channels * 9, act, constant=False)
    weight = np.swapaxes(weight.reshape(width, channels, 3, 3), 0, 1)
    stride = net.any(1, 2)
    x = net.op("ConvTranspose", x, net.keep(weight, "w"), net.keep(bias, "b"), strides=[stride] * 2)
    x = net.act(x, act)
    return net.conv(x, net.reader(3, width * 4).reshape(3, width, 2, 2), np.zeros(3))


def in_groups(net: Planted) -> str:
    """Conv read by a grouped Conv, which takes the same share of every block."""
    net.shape, blocks = (3, 7, 7), 2
    half, outputs = int(net.rng.integers(2, 5)), 4
    weight, bias = net.reader(half * blocks, 27) * 2, net.rng.standard_normal(half * blocks) * 0.3
    twice = np.concatenate([np.tile(np.arange(half), 2) + block * half for block in range(blocks)])
    x = net.op("Relu", net.conv("x", weight[twice].reshape(-1, 3, 3, 3), bias[twice], pads=[1] * 4))
    second = net.reader(outputs * blocks, 2 * half * 9).reshape(-1, 2 * half, 3, 3)
    again = np.concatenate([np.tile(np.arange(outputs), 2) + block * outputs for block in range(blocks)])
    x = net.op("Tanh", net.conv(x, second[again], np.zeros(len(again)), group=blocks))
    return net.gemm(net.op("Flatten", net.op("GlobalAveragePool", x)), net.reader(3, len(again)))


KINDS: dict[str, Callable[[Planted], str]] = {
    "dense": dense,
    "wide": wide,
    "positions": positions,
    "convolutions": convolutions,
    "one dimension": one_dimension,
    "flattened": flattened,
    "depthwise": depthwise,
    "residual": residual,
    "concatenated": concatenated,
    "transposed": transposed,
    "in groups": in_groups,
}
"""What is built by what."""
