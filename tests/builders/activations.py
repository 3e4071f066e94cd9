"""Activations with their attributes, as the solve knows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pcns_onnx.methods.pcns.activations import Activation, activation

Array = Any
Parameter = float | tuple[float, float] | None
"""A PRelu's slope or a Clip's bounds."""
ACTIVATIONS: list[tuple[str, dict[str, float], Parameter]] = [
    ("LeakyRelu", {}, None),
    ("LeakyRelu", {"alpha": 0.2}, None),
    ("PRelu", {}, 0.3),
    ("Tanh", {}, None),
    ("Sigmoid", {}, None),
    ("HardSigmoid", {}, None),
    ("HardSigmoid", {"alpha": 0.5, "beta": 0.3}, None),
    ("Softsign", {}, None),
    ("Softplus", {}, None),
    ("Elu", {}, None),
    ("Elu", {"alpha": 0.7}, None),
    ("Selu", {}, None),
    ("Selu", {"alpha": 1.5, "gamma": 1.2}, None),
    ("Celu", {"alpha": 2.0}, None),
    ("Relu", {}, None),
    ("Clip", {}, (0.0, float("inf"))),
    ("Clip", {}, (0.0, 3.0)),
    ("Clip", {}, (-1.0, 1.0)),
    ("Clip", {}, (-0.5, float("inf"))),
]
SIGMAS = pytest.mark.parametrize(("op", "attrs", "slope"), ACTIVATIONS, ids=lambda v: str(v))


def sigma_of(op: str, attrs: dict[str, float], slope: Parameter = None) -> Activation:
    found = activation(op, attrs, bounds=slope) if isinstance(slope, tuple) else activation(op, attrs, slope)
    assert found is not None
    return found


def grid_inside(sigma: Activation) -> Array:
    """Pre-activations on which sigma is one to one."""
    x = np.linspace(-4, 4, 161)
    if sigma.handling == "one-sided":
        return x[(x > 0) & (x < sigma.high)]
    return x[(sigma.forward(x) > sigma.low) & (sigma.forward(x) < sigma.high)]
