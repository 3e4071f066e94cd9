"""No share of a variance is above all of it, and of nothing there is none."""

from __future__ import annotations

import math

import pytest

from pcns_onnx.report.shares import known_share, number, share, worst_share


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0125, "1.25%"), (0.0, "0.00%"), (1.0, "≥ 100%"), (37.2, "≥ 100%"), (None, "\N{EN DASH}"),
     (math.nan, "\N{EN DASH}"), (math.inf, "≥ 100%")],
)  # fmt: skip
def test_shares_as_text(value: float | None, text: str) -> None:
    assert share(value) == text


def test_shares_as_numbers() -> None:
    assert (known_share(3.0), known_share(math.nan), known_share(0.5)) == (1.0, None, 0.5)
    assert worst_share([None, 0.2, 0.1]) == 0.2 and worst_share([]) is None
    assert number(None) == number(math.nan) == "\N{EN DASH}" and number(0.5) == "0.5000"
