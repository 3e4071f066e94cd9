"""Methods by name."""

from __future__ import annotations

import pytest

from pcns_onnx.errors import InputError
from pcns_onnx.methods.registry import CHOICES, DEFAULT, METHODS, method_named
from pcns_onnx.methods.subset.score import rank_of


def test_every_method_can_be_named_and_auto_is_the_default() -> None:
    assert [method_named(name).name for name in CHOICES] == [DEFAULT, *METHODS]
    subsets = [method for method in METHODS.values() if method.family == "subset"]
    assert all(callable(rank_of(method)) for method in subsets)
    assert [method.name for method in METHODS.values() if method.ranks] == [method.name for method in subsets]


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="unknown method 'magic': choose one of auto, obs"):
        method_named("magic")
