"""Budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcns_onnx.errors import InputError
from pcns_onnx.planning.budget import Budget


@pytest.mark.parametrize(
    ("text", "resource", "fraction"),
    [
        ("macs=0.5", "macs", 0.5),
        ("params=1", "params", 1.0),
        ("macs=.25", "macs", 0.25),
        ("params=1e-3", "params", 1e-3),
    ],
)
def test_a_budget_is_a_resource_and_a_fraction(text: str, resource: str, fraction: float) -> None:
    assert Budget.parse(text) == Budget(resource, fraction)


@given(st.floats(0, 1, exclude_min=True))
def test_every_fraction_is_a_budget(fraction: float) -> None:
    assert Budget.parse(f"macs={fraction!r}").limit == fraction


@pytest.mark.parametrize(
    "text",
    ["", "macs", "macs=", "macs=abc", "macs=0.5x", "macs=50%", "=0.5", "foo=0.5", "MACS=0.5", "macs=0.5,params=0.5"],
)
def test_text_that_is_no_budget(text: str) -> None:
    line = rf"^budget '{text}' is not understood: write macs=0\.5, params=0\.4, size=0\.5 or latency=0\.6"
    with pytest.raises(InputError, match=line):
        Budget.parse(text)


@given(st.floats().filter(lambda number: not 0 < number <= 1))
def test_numbers_that_are_no_fraction(number: float) -> None:
    with pytest.raises(InputError, match=r"fractions in \(0, 1\], error="):
        Budget.parse(f"macs={number!r}")
