"""A caller's own score: a function, or an object that counts batch by batch, or where to import it from.

A metric takes (outputs of one batch, its labels or None). Where it has a parameter named `reference`, it also gets the
original's outputs of the same batch, and under `size` the number of samples. A function returns a score, and scores
are averaged by the size of the batches. A class or an object with `update` and `compute` (as in torchmetrics) is made
or copied anew for every model, and has the last word over all batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from pcns_onnx.data.references import resolve_here
from pcns_onnx.errors import InputError, PcnsError


class Accumulator(Protocol):
    """What counts batch by batch and has the last word."""

    @property
    def update(self) -> Callable[..., Any]:
        """Takes the outputs of one batch and its labels."""

    @property
    def compute(self) -> Callable[[], Any]:
        """Gives the score of all that was counted."""


Metric: TypeAlias = Callable[..., Any] | Accumulator
"""A function, called as the module says; a class whose objects count, or such an object."""

_MORE = ("reference", "size")
"""What a metric is given beside outputs and labels, if it asks for it by name."""


def load_metric(reference: str | Metric | None) -> Metric | None:
    """`module:function` (the current folder is importable) or the metric itself; raises `InputError`."""
    if not isinstance(reference, str):
        if reference is None or _is_metric(reference):
            return reference
        raise InputError(f"a metric cannot be a {type(reference).__name__}: give module:function or a function")
    try:
        metric: Metric = resolve_here(reference)
    except Exception as error:  # a user's module may raise anything
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"metric '{reference}' cannot be imported as module:function ({cause})") from error
    if not _is_metric(metric):
        raise InputError(f"metric '{reference}' is a {type(metric).__name__}, not a function")
    return metric


class Score:
    """What a metric says of one model, batch by batch."""

    def __init__(self, metric: Metric) -> None:
        self._metric: Any = _guarded(metric) if isinstance(metric, type) else metric
        self._counts = _counts(self._metric)
        if self._counts:
            self._metric = deepcopy(self._metric)
        self._called = self._metric.update if self._counts else self._metric
        self._asked = _asked(self._called)
        self._sum, self._samples = 0.0, 0

    def add(
        self,
        outputs: Mapping[str, NDArray[Any]],
        labels: NDArray[Any] | None,
        reference: Mapping[str, NDArray[Any]],
        size: int,
    ) -> None:
        """Count a batch of `size` samples; `reference` are the original's outputs. Raises `InputError`."""
        more = {"reference": reference, "size": size}
        value = _guarded(self._called, outputs, labels, **{name: more[name] for name in self._asked})
        self._sum += 0.0 if self._counts else size * _number(value)
        self._samples += size

    @property
    def value(self) -> float:
        """The score over all samples."""
        if self._counts:
            return _number(_guarded(self._metric.compute))
        return self._sum / self._samples


def _is_metric(metric: object) -> bool:
    return callable(metric) or _counts(metric)


def _counts(metric: object) -> bool:
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute"))


def _asked(function: Callable[..., Any]) -> list[str]:
    """Which of the further arguments a function names; none where it cannot be looked into."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in _MORE if name in parameters]


def _guarded(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    try:
        return function(*args, **more)
    except PcnsError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise InputError(f"the metric failed: {type(error).__name__}: {error}") from error


def _number(value: Any) -> float:
    return float(_guarded(float, value))
