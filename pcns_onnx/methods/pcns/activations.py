"""The table of activations that PCNS can solve through: sigma, its inverse, its slope.

A target e for a neuron's *output* becomes a target for its *pre-activation*, sigma⁻¹(e):

| sigma | range | what is done |
|---|---|---|
| identity | all | exact |
| LeakyRelu, PRelu | all | sigma⁻¹ directly, equations weighted by the slope of sigma at the target |
| Tanh, Sigmoid, HardSigmoid, Softsign | bounded | targets scaled and shifted into the range, undone in the reader |
| Elu, Selu, Celu, Softplus | bounded below | the same |
| Relu, Clip from 0 | not injective | e = e⁺ - e⁻, two neurons, one-sided equations |
| any other Clip with a lower bound | bounded | as Tanh, with the identity inside |

Everything else (Gelu, SiLU, Mish, HardSwish: not monotone) has no inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pcns_onnx.numerics.arrays import Array, namespace_of

Handling = Literal["identity", "slope", "range", "one-sided"]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Activation:
    """One scalar function with what PCNS needs of it; `low`, `high` bound its open range."""

    name: str
    handling: Handling
    forward: Function
    inverse: Function
    low: float = float("-inf")
    high: float = float("inf")
    alpha: float = 1.0


def _same(x: Array) -> Array:
    return x


IDENTITY = Activation("identity", "identity", _same, _same)


def activation(
    op: str, attrs: dict[str, Any], slope: float | None = None, bounds: tuple[float, float] | None = None
) -> Activation | None:
    """The activation of an operator, None if PCNS has no inverse for it.

    `slope` is a PRelu's (mean) slope, `bounds` those of a Clip.
    """
    if op in ("LeakyRelu", "PRelu"):
        alpha = float(attrs.get("alpha", 0.01)) if slope is None else slope
        return _leaky(op, alpha) if alpha > 0 else None
    if op == "Relu":
        return Activation(op, "one-sided", lambda x: namespace_of(x).clip(x, 0.0, None), _same)
    if op == "Clip":
        return _clip(bounds)
    if op in ("Elu", "Celu", "Selu"):
        return _elu(op, attrs)
    if op == "HardSigmoid":
        a, b = float(attrs.get("alpha", 0.2)), float(attrs.get("beta", 0.5))
        return Activation(
            op, "range", lambda x: namespace_of(x).clip(a * x + b, 0.0, 1.0), lambda e: (e - b) / a, 0.0, 1.0
        )
    return _BOUNDED.get(op)


def _leaky(op: str, alpha: float) -> Activation:
    def forward(x: Array) -> Array:
        return namespace_of(x).where(x > 0, x, alpha * x)

    def inverse(e: Array) -> Array:
        return namespace_of(e).where(e > 0, e, e / alpha)

    return Activation(op, "slope", forward, inverse, alpha=alpha)


def _clip(bounds: tuple[float, float] | None) -> Activation | None:
    if bounds is None or not bounds[0] < bounds[1]:
        return None
    low, high = (None if abs(bound) == float("inf") else bound for bound in bounds)

    def forward(x: Array) -> Array:
        return namespace_of(x).clip(x, low, high)

    if low is None and high is None:
        return IDENTITY
    if low is None:  # bounded above only: there is no candidate range for it
        return None
    return Activation("Clip", "one-sided" if low == 0.0 else "range", forward, _same, *bounds)


def _elu(op: str, attrs: dict[str, Any]) -> Activation:
    """gamma * (x if x > 0 else alpha * (exp(x / scale) - 1)); only Celu has a scale, its alpha."""
    alpha = float(attrs.get("alpha", 1.67326319217681884765625 if op == "Selu" else 1.0))
    gamma = float(attrs.get("gamma", 1.05070102214813232421875)) if op == "Selu" else 1.0
    scale = alpha if op == "Celu" else 1.0

    def forward(x: Array) -> Array:
        xp = namespace_of(x)
        return gamma * xp.where(x > 0, x, alpha * xp.expm1(xp.clip(x, None, 0.0) / scale))

    def inverse(e: Array) -> Array:
        xp = namespace_of(e)
        return xp.where(e > 0, e / gamma, scale * xp.log1p(xp.clip(e, None, 0.0) / (gamma * alpha)))

    return Activation(op, "range", forward, inverse, low=-gamma * alpha)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + namespace_of(x).tanh(0.5 * x))


def _logit(e: Array) -> Array:
    xp = namespace_of(e)
    return xp.log(e) - xp.log1p(-e)


def _softplus(x: Array) -> Array:
    xp = namespace_of(x)
    return xp.clip(x, 0.0, None) + xp.log1p(xp.exp(-xp.abs(x)))


def _softplus_inverse(e: Array) -> Array:
    xp = namespace_of(e)
    return e + xp.log(-xp.expm1(-e))


_BOUNDED = {
    "Tanh": Activation(
        "Tanh", "range", lambda x: namespace_of(x).tanh(x), lambda e: namespace_of(e).atanh(e), -1.0, 1.0
    ),
    "Sigmoid": Activation("Sigmoid", "range", _sigmoid, _logit, 0.0, 1.0),
    "Softsign": Activation(
        "Softsign",
        "range",
        lambda x: x / (1 + namespace_of(x).abs(x)),
        lambda e: e / (1 - namespace_of(e).abs(e)),
        -1.0,
        1.0,
    ),
    "Softplus": Activation("Softplus", "range", _softplus, _softplus_inverse, low=0.0),
}
