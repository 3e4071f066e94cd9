"""A slice of the fuzz of planted duplicates (`tools/robustness/duplicates.py`): none may be lost."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from robustness.duplicates import BUILDERS, LIMIT, Case, case, cases


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind != "wide"])
@pytest.mark.parametrize("number", [0, 1])
def test_no_planted_duplicate_is_lost(kind: str, number: int) -> None:
    with threadpool_limits(1):
        assert case(number, 13, kind).error < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_none_is_lost_in_many(seed: int) -> None:
    with threadpool_limits(1):
        assert not [(one.number, one.kind) for one in cases(60, seed) if one.error > LIMIT]


def test_a_case_depends_on_its_number_alone() -> None:
    first, again = case(5, 1, "flattened"), list(cases(8, 1, ("flattened",)))[5]
    assert isinstance(again, Case)
    assert first.model.SerializeToString() == again.model.SerializeToString()
    np.testing.assert_array_equal(first.data, again.data)


def test_what_is_lost_is_noticed() -> None:
    """A third of the widths is less than there is: the judge says so."""
    one = case(0, 13, "flattened")
    assert one.error_at(0.3) > LIMIT
