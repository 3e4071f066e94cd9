"""A caller's own score: a function, or where to import it from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from pcns_onnx.data.references import resolve_here
from pcns_onnx.errors import InputError

Metric = Callable[[Mapping[str, NDArray[Any]], NDArray[Any] | None], float]
"""(outputs of one batch, its labels or None) -> a score; batches are averaged by their size."""


def load_metric(reference: str | Metric | None) -> Metric | None:
    """`module:function` (the current folder is importable) or a callable; raises `InputError`."""
    if reference is None or callable(reference):
        return reference
    if not isinstance(reference, str):
        raise InputError(f"a metric cannot be a {type(reference).__name__}: give module:function or a function")
    try:
        metric: Metric = resolve_here(reference)
    except Exception as error:  # a user's module may raise anything
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"metric '{reference}' cannot be imported as module:function ({cause})") from error
    if not callable(metric):
        raise InputError(f"metric '{reference}' is a {type(metric).__name__}, not a function")
    return metric
