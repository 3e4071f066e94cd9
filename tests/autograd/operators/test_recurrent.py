"""Recurrent layers: the numbers of onnxruntime, and slopes along every weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from builders.models import Array
from builders.single_node import Single, assert_same, assert_slopes, at_opsets

pytest.importorskip("torch")

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
T, N, WIDE, H = 5, 3, 4, 6
FULL, SHORT = np.array([5, 5, 5], dtype=np.int32), np.array([3, 5, 1], dtype=np.int32)


def layer(op: str, direction: str = "forward", *, bias: bool = True, lengths: Array | None = None,
          states: bool = False, peepholes: bool = False, outputs: int = 0, **attributes: Any) -> Single:  # fmt: skip
    rng = np.random.default_rng(len(op) + len(direction))
    ways = 2 if direction == "bidirectional" else 1

    def values(*shape: int) -> Array:
        return (rng.standard_normal(shape) / 2).astype(np.float32)

    g = GATES[op] * H
    inputs: list[Array | None] = [values(T, N, WIDE), values(ways, g, WIDE), values(ways, g, H)]
    inputs += [values(ways, 2 * g) if bias else None, lengths, values(ways, N, H) if states else None]
    if op == "LSTM":
        inputs += [values(ways, N, H) if states else None, values(ways, 3 * H) if peepholes else None]
    while inputs[-1] is None:
        inputs.pop()
    feed = [0, *([5] if states else []), *([6] if states and op == "LSTM" else [])]
    attributes |= {"hidden_size": H, "direction": direction}
    return Single(op, inputs, attributes, feed=feed, outputs=outputs or (3 if op == "LSTM" else 2), high=14)


VARIANTS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "states": {"states": True},
    "no bias": {"bias": False},
    "full": {"lengths": FULL},
    "lengths": {"lengths": SHORT, "states": True},
}

CASES: Mapping[str, Single] = {
    **{
        f"{op} {direction} {name}": layer(op, direction, **options)
        for op in GATES
        for direction in ("forward", "reverse", "bidirectional")
        for name, options in VARIANTS.items()
    },
    "GRU reset first": layer("GRU", "bidirectional", linear_before_reset=1, states=True),
    "GRU reset first, lengths": layer("GRU", "reverse", linear_before_reset=1, lengths=SHORT),
    "GRU clip": layer("GRU", clip=0.3),
    "GRU activations": layer("GRU", activations=["HardSigmoid", "Softsign"]),
    "LSTM clip": layer("LSTM", clip=0.3, states=True),
    "LSTM peepholes": layer("LSTM", "bidirectional", peepholes=True, states=True),
    "LSTM peepholes, lengths": layer("LSTM", "reverse", peepholes=True, lengths=SHORT),
    "LSTM coupled": layer("LSTM", input_forget=1),
    "LSTM activations": layer("LSTM", activations=["HardSigmoid", "Relu", "Tanh"]),
    "LSTM activations with numbers": layer(
        "LSTM", activations=["HardSigmoid", "LeakyRelu", "Tanh"], activation_alpha=[0.3, 0.2], activation_beta=[0.4]
    ),
    "RNN Relu": layer("RNN", "bidirectional", activations=["Relu", "Relu"]),
    "RNN both": layer("RNN", "bidirectional", activations=["Tanh", "Relu"]),
    "RNN Affine": layer("RNN", activations=["Affine"], activation_alpha=[0.5], activation_beta=[0.1]),
}


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize(
    "name",
    ["LSTM bidirectional lengths", "LSTM forward states", "LSTM peepholes", "LSTM coupled", "GRU forward plain",
     "GRU reset first", "GRU bidirectional lengths", "RNN reverse plain", "RNN forward lengths"],
)  # fmt: skip
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    assert_slopes(CASES[name].model(14), CASES[name].fed())


@pytest.mark.parametrize("state", ["h0", "c0"])
def test_stored_states_at_the_start_do_not_train(state: str) -> None:
    from pcns_onnx.autograd.translation import to_torch

    case = CASES["LSTM forward states"]
    stored = Single(case.op, case.values, case.attributes, feed=[0], outputs=3, high=14)
    assert {"h0": "i5", "c0": "i6"}[state] in dict(to_torch(stored.model(14)).named_buffers())
