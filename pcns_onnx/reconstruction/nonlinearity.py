"""What lies between a layer and its reader, as a function of rows, with its slope.

Most networks have one of a few functions there, whose value and slope are known. Anything else is what onnxruntime
makes of it, and its slope a central difference, for which it is run twice more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcns_onnx.graph import Graph, Node
from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.ops import Labels
from pcns_onnx.runtime.engine import Engine

NUDGE = 1e-3
"""Half the width of a central difference, as a share of the mean size of what it is taken of."""

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Nonlinearity:
    """`value` of rows (R, M), and its `slope` there where that is known; both keep the shape."""

    value: Function
    slope: Function | None = None

    def slope_at(self, rows: Array) -> Array:
        """The slope, a central difference where it is not known."""
        if self.slope is not None:
            return self.slope(rows)
        xp = namespace_of(rows)
        step = NUDGE * float(xp.mean(xp.abs(rows))) + 1e-12
        return (self.value(rows + step) - self.value(rows - step)) / (2 * step)


def _relu(rows: Array) -> Array:
    xp = namespace_of(rows)
    return xp.maximum(rows, xp.zeros((), dtype=rows.dtype))


def _relu_slope(rows: Array) -> Array:
    return namespace_of(rows).astype(rows > 0, rows.dtype)


def _tanh(rows: Array) -> Array:
    return namespace_of(rows).tanh(rows)


def _tanh_slope(rows: Array) -> Array:
    value = _tanh(rows)
    return 1 - value * value


def _sigmoid(rows: Array) -> Array:
    return 0.5 * (1 + _tanh(0.5 * rows))


def _sigmoid_slope(rows: Array) -> Array:
    value = _sigmoid(rows)
    return value * (1 - value)


def _leaky_relu(alpha: float) -> Nonlinearity:
    def value(rows: Array) -> Array:
        return namespace_of(rows).where(rows > 0, rows, alpha * rows)

    def slope(rows: Array) -> Array:
        xp = namespace_of(rows)
        return xp.where(rows > 0, xp.ones_like(rows), xp.full_like(rows, alpha))

    return Nonlinearity(value, slope)


def _same(rows: Array) -> Array:
    return rows


def _one(rows: Array) -> Array:
    return namespace_of(rows).ones_like(rows)


NONE = Nonlinearity(_same, _one)
"""Nothing lies between."""

KNOWN: Mapping[str, Callable[[Mapping[str, Any]], Nonlinearity]] = {
    "Relu": lambda attrs: Nonlinearity(_relu, _relu_slope),
    "Tanh": lambda attrs: Nonlinearity(_tanh, _tanh_slope),
    "Sigmoid": lambda attrs: Nonlinearity(_sigmoid, _sigmoid_slope),
    "LeakyRelu": lambda attrs: _leaky_relu(float(attrs.get("alpha", 0.01))),
}
"""By operator of ai.onnx, what it is with these attributes."""


def known_nonlinearity(node: Node) -> Nonlinearity | None:
    """The function of a node of one input, None where it is none of `KNOWN`."""
    known = KNOWN.get(node.op) if node.domain in ("", "ai.onnx") else None
    return None if known is None else known(node.attrs)


def nonlinearity(engine: Engine, graph: Graph, output: str, activation: str, labels: Labels) -> Nonlinearity:
    """What `graph` does between a layer's `output`, which has these channel labels, and its activations."""
    if activation == output:
        return NONE
    node = graph.producers[activation]
    known = known_nonlinearity(node) if list(node.inputs) == [output] else None
    if known is not None:
        return known
    session = engine.session(graph.extract([output], [activation]).program())

    def value(rows: Array) -> Array:
        xp = namespace_of(rows)
        shape = [int(rows.shape[0]), *labels.shape[1:]]
        shape[int(np.argmax(labels.shape))] = int(rows.shape[1])
        return xp.reshape(session.run({output: xp.reshape(rows, shape)})[activation], rows.shape)

    return Nonlinearity(value)
