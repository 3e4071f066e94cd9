"""Networks for sequences half of whose channels are superfluous, for `duplicates.py`: as they are deployed for writing,
speech and pictures in patches.

Sizes are computed in the graph (Shape, Gather, Concat), as exporters write them where lengths are open.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import numpy_helper

from robustness.planted import Planted
from robustness.planted_cells import cell

GATES = {"LSTM": "ifog", "GRU": "rzn", "RNN": "n"}


def recogniser(net: Planted) -> str:
    """Convolutions over a picture, whose columns are the steps of a recurrent layer, and a layer at every step."""
    height, channels = 2 * net.any(1, 2), 2 * int(net.rng.integers(2, 5))
    net.shape = (1, 2 * height, int(net.rng.integers(8, 13)))
    weight, bias = net.rows(channels, 9, "Relu", constant=False)
    x = net.op("Relu", net.conv("x", weight.reshape(channels, 1, 3, 3), bias, pads=[1] * 4))
    x = net.op("MaxPool", x, kernel_shape=[2, 1], strides=[2, 1])
    columns = net.op("Reshape", x, net.op("Concat", _size(net, x, 0), net.keep([channels * height, -1]), axis=0))
    steps = net.op("Transpose", columns, perm=[2, 0, 1])
    units = 2 * int(net.rng.integers(2, 6))
    states = net.op("Squeeze", cell(net, steps, channels * height, units, 1), net.keep([1]))
    return net.matmul(net.op("Transpose", states, perm=[1, 0, 2]), net.reader(5, units))


def written_out(net: Planted) -> str:
    """A recurrent cell, step by step, from a state of zeros that is made for as many samples as there are."""
    steps, width, units = net.any(3, 4), int(net.rng.integers(3, 6)), 2 * int(net.rng.integers(2, 5))
    net.shape, kind = (steps, width), net.any(*GATES)
    twice = np.concatenate([np.arange(units // 2), net.rng.permutation(units // 2)])
    w, r = ({g: net.reader(units // 2, columns)[twice] for g in GATES[kind]} for columns in (width, units))
    weights = {g: [net.keep(one[g].T, "w") for one in (w, r)] for g in GATES[kind]}
    zeros = net.op("ConstantOfShape", net.op("Concat", _size(net, "x", 0), net.keep([units]), axis=0))
    hidden, memory, states = zeros, zeros, []
    for step in range(steps):
        x = _at(net, "x", step)
        parts = {g: (net.op("MatMul", x, own), net.op("MatMul", hidden, past)) for g, (own, past) in weights.items()}
        hidden, memory = _stepped(net, kind, parts, hidden, memory)
        states.append(hidden)
    last = hidden if net.any(0, 1) else net.op("Sum", *states)
    return net.gemm(last, net.reader(4, units))


def _stepped(net: Planted, kind: str, parts: dict[str, tuple[str, str]], hidden: str, memory: str) -> tuple[str, str]:
    """One step: the next state, and the memory beside it."""
    if kind == "RNN":
        return net.op("Tanh", net.op("Add", *parts["n"])), memory
    if kind == "GRU":
        reset, keep = (net.op("Sigmoid", net.op("Add", *parts[g])) for g in "rz")
        new = net.op("Tanh", net.op("Add", parts["n"][0], net.op("Mul", reset, parts["n"][1])))
        rest = net.op("Sub", net.keep(np.ones(1), "one"), keep)
        return net.op("Add", net.op("Mul", rest, new), net.op("Mul", keep, hidden)), memory
    take, forget, out = (net.op("Sigmoid", net.op("Add", *parts[g])) for g in "ifo")
    new = net.op("Mul", take, net.op("Tanh", net.op("Add", *parts["g"])))
    memory = net.op("Add", net.op("Mul", forget, memory), new)
    return net.op("Mul", out, net.op("Tanh", memory)), memory


def gated(net: Planted) -> str:
    """WaveNet: dilated convolutions over time that see the past only, gates, a stream and a sum of what skips it."""
    channels, width = int(net.rng.integers(1, 4)), 2 * int(net.rng.integers(2, 5))
    net.shape = (channels, int(net.rng.integers(10, 15)))
    twice = np.concatenate([np.arange(width // 2), net.rng.permutation(width // 2)])
    x = net.conv("x", net.reader(width // 2, channels)[twice].reshape(width, channels, 1), np.zeros(width))
    skipped = []
    for dilation in (1, 2)[: net.any(1, 2)]:
        inner = 2 * int(net.rng.integers(2, 5))
        again = np.concatenate([np.arange(inner // 2), net.rng.permutation(inner // 2)])
        past = net.op("Pad", x, net.keep([0, 0, 2 * dilation, 0, 0, 0]))
        taps = [net.reader(inner // 2, 3 * width)[again].reshape(inner, width, 3) for _ in range(2)]
        tanh, gate = (net.conv(past, tap, np.zeros(inner), dilations=[dilation]) for tap in taps)
        y = net.op("Mul", net.op("Tanh", tanh), net.op("Sigmoid", gate))
        back = net.reader(width // 2, inner)[twice].reshape(width, inner, 1)
        x = net.op("Add", x, net.conv(y, back, np.zeros(width)))
        skipped.append(net.conv(y, net.reader(4, inner).reshape(4, inner, 1), np.zeros(4)))
    last = net.conv(x, net.reader(4, width).reshape(4, width, 1), np.zeros(4))
    return net.op("Sum", last, *skipped)


def class_token(net: Planted) -> str:
    """Patches behind a learned token that is repeated for every sample, positions added, FFNs on the stream."""
    length, patch, width = int(net.rng.integers(3, 6)), int(net.rng.integers(4, 8)), 2 * int(net.rng.integers(2, 5))
    net.shape = (length, patch)
    twice = np.concatenate([np.arange(width // 2), net.rng.permutation(width // 2)])
    token, places = (net.rng.standard_normal((1, rows, width // 2))[..., twice] for rows in (1, length + 1))
    rest = net.keep(net.any([1, 1], [-1, -1]))
    one = net.op("Concat", _size(net, "x", 0), rest, axis=0)
    one = one if net.stored[rest].min() > 0 else _ones(net, one)
    first = net.op("Expand", net.keep(token, "token"), one)
    x = net.op("Concat", first, net.matmul("x", net.reader(width // 2, patch)[twice]), axis=1)
    x = net.op("Add", x, net.keep(places, "places"))
    for _ in range(net.any(1, 2)):
        inner, act = 2 * int(net.rng.integers(3, 8)), net.activation()
        h = net.act(net.matmul(x, *net.rows(inner, width, act, constant=False)), act)
        x = net.op("Add", x, net.matmul(h, net.reader(width // 2, inner)[twice]))
    return net.gemm(_at(net, x, 0), net.reader(4, width))


def _ones(net: Planted, shape: str) -> str:
    """PyTorch's -1 for 'as it is', taken out again: Where(shape == -1, 1, shape)."""
    ones = net.op("ConstantOfShape", net.keep([3]), value=numpy_helper.from_array(np.ones(1, np.int64)))
    minus = net.op("Mul", ones, net.keep([-1]))
    return net.op("Where", net.op("Equal", shape, minus), ones, shape)


def _size(net: Planted, x: str, axis: int) -> str:
    """The size of an axis, as a list of one number."""
    return net.op("Gather", net.op("Shape", x), net.keep([axis]), axis=0)


def _at(net: Planted, x: str, step: int) -> str:
    """One position of every sample."""
    return net.op("Squeeze", net.op("Gather", x, net.keep([step]), axis=1), net.keep([1]))


SEQUENCES: dict[str, Callable[[Planted], str]] = {
    "recogniser": recogniser,
    "written out": written_out,
    "gated": gated,
    "class token": class_token,
}
"""What is built by what."""
