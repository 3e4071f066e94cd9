"""Where boxes stand: below what leads to them, no two in one place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pcns_onnx.report.explore.layout import placed


def test_a_chain_is_a_line() -> None:
    assert placed(4, [(0, 1), (1, 2), (2, 3)]) == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]


def test_branches_stand_side_by_side_and_what_joins_them_below_the_longer() -> None:
    places = placed(5, [(0, 1), (0, 2), (2, 3), (1, 4), (3, 4)])
    assert [row for row, _ in places] == [0, 1, 1, 2, 3]
    assert places[1][1] == -places[2][1] != 0


def test_edges_that_lead_back_are_passed_over() -> None:
    assert placed(2, [(0, 1), (1, 0)]) == [(0, 0.0), (1, 0.0)]


def test_nothing_is_placed_of_nothing() -> None:
    assert placed(0, []) == []


@pytest.mark.parametrize("seed", range(5))
def test_edges_lead_down_and_boxes_do_not_overlap(seed: int) -> None:
    rng, count = np.random.default_rng(seed), 40
    edges = [(int(a), b) for b in range(1, count) for a in rng.integers(0, b, size=2)]
    places = placed(count, edges)
    assert all(places[a][0] < places[b][0] for a, b in edges)
    by_row: dict[int, list[float]] = {}
    for row, column in places:
        by_row.setdefault(row, []).append(column)
    for columns in by_row.values():
        assert all(b - a >= 1 - 1e-9 for a, b in pairwise(sorted(columns)))


def test_rows_are_those_of_depths_that_are_known() -> None:
    assert [row for row, _ in placed(4, [(0, 1), (0, 2), (0, 3)], depths=[0, 5, 5, 9])] == [0, 1, 1, 2]
