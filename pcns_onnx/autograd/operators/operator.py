"""What is known of one operator: how it runs, and which of its inputs are weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Refusal = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Operator:
    """How one operator runs. `settings` are positions of inputs that are numbers, `frozen` of statistics and states.

    `only` are attributes that are known with these values alone; `refuse` says of a node's
    attributes what is not known (None: all is). Of a `layer` every weight trains; elsewhere single
    numbers (the 0.5 of a Gelu in pieces) and masks do not. A function of several `outputs` gives a
    tuple; 0 are as many as the node has, which it is told as `outputs`. It is told `opset` if it takes it.
    """

    run: Callable[..., Any]
    settings: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    layer: bool = False
    outputs: int = 1
    only: Mapping[str, Any] = field(default_factory=dict)
    refuse: Refusal | None = None
    has_gradient: bool = True


def as_numbers(value: Any) -> list[Any]:
    """A setting as a list of numbers, whether it is one already or a tensor."""
    value = value.tolist() if isinstance(value, Tensor) else value
    return list(value) if isinstance(value, Sequence) else [value]


def as_number(value: Any) -> Any:
    """A setting of one number."""
    return as_numbers(value)[0]


def without_gradient(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Operator]:
    """Operators of tensors alone through which no gradient goes."""
    return {name: Operator(run, has_gradient=False) for name, run in functions.items()}
