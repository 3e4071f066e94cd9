"""LSTM, GRU and RNN: forward, reverse and in both directions, by the formulas of the ONNX specification.

A pass that PyTorch has too (usual activations, all sequences full, no clip, no peepholes) runs in
its own kernel, whose gates stand in another order; every other one runs step by step:

    LSTM  i = f(xWi + hRi + Pi c),  f = f(xWf + hRf + Pf c),  c' = f c + i g(xWc + hRc),
          o = f(xWo + hRo + Po c'),  h' = o h(c')
    GRU   z = f(xWz + hRz),  r = f(xWr + hRr),  h' = (1 - z) n + z h,
          n = g(xWh + (r h) Rh),  or  g(xWh + r (h Rh))  if linear_before_reset
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.operator import Operator

Activation = Callable[[Tensor], Tensor]


def _affine(x: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    return alpha * x + beta


def _scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    return alpha * torch.tanh(beta * x)


def _hard_sigmoid(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


def _leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x >= alpha, x, 0.0)


def _elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "sigmoid": (torch.sigmoid, 0), "tanh": (torch.tanh, 0), "relu": (torch.relu, 0), "softsign": (F.softsign, 0),
    "softplus": (F.softplus, 0), "affine": (_affine, 2), "scaledtanh": (_scaled_tanh, 2),
    "hardsigmoid": (_hard_sigmoid, 2), "leakyrelu": (_leaky_relu, 1), "thresholdedrelu": (_thresholded_relu, 1),
    "elu": (_elu, 1),
}  # fmt: skip
"""Name in small letters -> function, and how many of alpha and beta it takes."""


def _unknown_activations(attributes: Mapping[str, Any]) -> str | None:
    names = [name.decode() if isinstance(name, bytes) else name for name in attributes.get("activations", ())]
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    return f"with activation {unknown[0]}" if unknown else None


@dataclass(frozen=True)
class _Direction:
    """One direction of one layer: weights (gates * hidden, ...), biases (gates * hidden), states (batch, hidden)."""

    w: Tensor
    r: Tensor
    wb: Tensor | None
    rb: Tensor | None
    peepholes: Tensor | None
    states: tuple[Tensor, ...]
    activations: tuple[Activation, ...]
    clip: float | None

    def clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else torch.clamp(x, -self.clip, self.clip)


Step = Callable[[_Direction, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _lstm_step(d: _Direction, x: Tensor, states: tuple[Tensor, ...], *, is_coupled: int) -> tuple[Tensor, ...]:
    h, c = states
    i, o, f, g = (x + F.linear(h, d.r, d.rb)).chunk(4, dim=1)
    pi, po, pf = d.peepholes.chunk(3) if d.peepholes is not None else (None, None, None)
    first, second, third = d.activations
    i = first(d.clipped(i if pi is None else i + pi * c))
    f = 1 - i if is_coupled else first(d.clipped(f if pf is None else f + pf * c))
    c = f * c + i * second(d.clipped(g))
    o = first(d.clipped(o if po is None else o + po * c))
    return o * third(c), c


def _gru_step(d: _Direction, x: Tensor, states: tuple[Tensor, ...], *, is_linear_first: int) -> tuple[Tensor, ...]:
    (h,) = states
    first, second = d.activations
    xz, xr, xh = x.chunk(3, dim=1)
    rz, rr, rh = d.r.chunk(3)
    bz, br, bh = d.rb.chunk(3) if d.rb is not None else (None, None, None)
    z = first(d.clipped(xz + F.linear(h, rz, bz)))
    r = first(d.clipped(xr + F.linear(h, rr, br)))
    inner = r * F.linear(h, rh, bh) if is_linear_first else F.linear(r * h, rh, bh)
    return ((1 - z) * second(d.clipped(xh + inner)) + z * h,)


def _rnn_step(d: _Direction, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (h,) = states
    return (d.activations[0](d.clipped(x + F.linear(h, d.r, d.rb))),)


def _scanned(
    step: Step, d: _Direction, x: Tensor, lengths: Tensor | None, is_reverse: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One direction over the steps of x (time, batch, width): all outputs, and the last states."""
    times = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    limits = torch.full((x.shape[1],), x.shape[0], device=x.device) if lengths is None else lengths
    order = torch.where(times < limits, limits - 1 - times, times).unsqueeze(2)  # (time, batch, 1): back to front
    inputs = F.linear(x, d.w, d.wb)
    inputs = inputs.gather(0, order.expand_as(inputs)) if is_reverse else inputs
    states, outputs = d.states, []
    for time in range(x.shape[0]):
        new = step(d, inputs[time], states)
        if lengths is not None:
            lasts = (time < lengths).unsqueeze(1)
            outputs.append(torch.where(lasts, new[0], 0.0))
            new = tuple(torch.where(lasts, after, before) for after, before in zip(new, states, strict=True))
        else:
            outputs.append(new[0])
        states = new
    y = torch.stack(outputs)
    return (y.gather(0, order.expand_as(y)) if is_reverse else y), states


def _native(
    name: str, x: Tensor, directions: Sequence[_Direction], order: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All directions in PyTorch's kernel, whose gates are those of ONNX in `order`."""

    def gates(value: Tensor) -> Tensor:
        parts = value.chunk(len(order))
        return torch.cat([parts[place] for place in order])

    weights = []
    for d in directions:
        weights += [gates(d.w), gates(d.r)]
        weights += [gates(bias) for bias in (d.wb, d.rb) if bias is not None]
    states = [torch.stack(parts) for parts in zip(*(d.states for d in directions), strict=True)]
    run = getattr(torch, name)
    first: Any = states if len(states) > 1 else states[0]
    has_bias, is_training = directions[0].wb is not None, torch.is_grad_enabled()
    y, *last = run(x.to(weights[0].dtype), first, weights, has_bias, 1, 0.0, is_training, len(directions) > 1, False)
    return y, tuple(last)


def _directions(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, states: Sequence[Tensor | None], p: Tensor | None,
    names: Sequence[str], values: Sequence[Sequence[float] | None], clip: float | None,
) -> list[_Direction]:  # fmt: skip
    """The stacked inputs of the operator, a direction each; absent states are zeros."""
    count, hidden = w.shape[0], r.shape[2]
    zeros = torch.zeros(count, x.shape[1], hidden, dtype=w.dtype, device=x.device)
    alphas, betas = (list(numbers or ()) for numbers in values)
    functions: list[Activation] = []
    for name in names:
        function, takes = _ACTIVATIONS[name.lower()]
        constants = {"alpha": alphas.pop(0)} if takes and alphas else {}
        constants |= {"beta": betas.pop(0)} if takes > 1 and betas else {}
        functions.append(partial(function, **constants) if constants else function)
    each = len(names) // count
    biases = [(None, None) if b is None else b[i].chunk(2) for i in range(count)]
    return [
        _Direction(
            w=w[i],
            r=r[i],
            wb=biases[i][0],
            rb=biases[i][1],
            peepholes=None if p is None else p[i],
            states=tuple((zeros if state is None else state)[i] for state in states),
            activations=tuple(functions[i * each : (i + 1) * each]),
            clip=clip,
        )
        for i in range(count)
    ]


def _layer(
    x: Tensor, directions: Sequence[_Direction], step: Step, lengths: Tensor | None, direction: str,
    native: tuple[str, Sequence[int]] | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Y (time, directions, batch, hidden), and the last states (directions, batch, hidden)."""
    if lengths is not None and bool((lengths == x.shape[0]).all()):
        lengths = None
    if native is not None and lengths is None and all(d.clip is None and d.peepholes is None for d in directions):
        flipped = x.flip(0) if direction == "reverse" else x
        y, states = _native(native[0], flipped, directions, native[1])
        y = y.flip(0) if direction == "reverse" else y
        return y.unflatten(2, (len(directions), -1)).transpose(1, 2), *states
    runs = [_scanned(step, d, x, lengths, direction == "reverse" or place == 1) for place, d in enumerate(directions)]
    states = tuple(torch.stack(parts) for parts in zip(*(last for _, last in runs), strict=True))
    return torch.stack([y for y, _ in runs], dim=1), *states


def _lstm(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, c: Tensor | None = None, p: Tensor | None = None, *,
    hidden_size: int | None = None, direction: str = "forward", activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    clip: float | None = None, input_forget: int = 0, output_sequence: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    usual = ["Sigmoid", "Tanh", "Tanh"] * len(w)
    names = list(activations or usual)
    parts = _directions(x, w, r, b, (h, c), p, names, (activation_alpha, activation_beta), clip)
    native = ("lstm", (0, 2, 3, 1)) if names == usual and not input_forget else None
    return _layer(x, parts, partial(_lstm_step, is_coupled=input_forget), lengths, direction, native)


def _gru(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, *,
    hidden_size: int | None = None, direction: str = "forward", activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    clip: float | None = None, linear_before_reset: int = 0, output_sequence: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    usual = ["Sigmoid", "Tanh"] * len(w)
    names = list(activations or usual)
    parts = _directions(x, w, r, b, (h,), None, names, (activation_alpha, activation_beta), clip)
    native = ("gru", (1, 0, 2)) if names == usual and linear_before_reset else None
    return _layer(x, parts, partial(_gru_step, is_linear_first=linear_before_reset), lengths, direction, native)


def _rnn(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
    h: Tensor | None = None, *,
    hidden_size: int | None = None, direction: str = "forward", activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None, activation_beta: Sequence[float] | None = None,
    clip: float | None = None, output_sequence: int = 1,
) -> tuple[Tensor, ...]:  # fmt: skip
    names = list(activations or ["Tanh"] * len(w))
    parts = _directions(x, w, r, b, (h,), None, names, (activation_alpha, activation_beta), clip)
    native = {"Tanh": ("rnn_tanh", (0,)), "Relu": ("rnn_relu", (0,))}.get(names[0]) if len({*names}) == 1 else None
    return _layer(x, parts, _rnn_step, lengths, direction, native)


_COMMON: dict[str, Any] = {"layer": True, "only": {"layout": 0}, "refuse": _unknown_activations}

RECURRENT: dict[str, Operator] = {
    "LSTM": Operator(_lstm, frozen=(4, 5, 6), outputs=3, **_COMMON),
    "GRU": Operator(_gru, frozen=(4, 5), outputs=2, **_COMMON),
    "RNN": Operator(_rnn, frozen=(4, 5), outputs=2, **_COMMON),
}
