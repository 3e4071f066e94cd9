"""Padding is cut off and samples are sorted, and nothing is lost by it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.padded import sentences
from pcns_onnx.data.batch import Batch
from pcns_onnx.data.padding import Padding, PositionAxes, arranged

AXES = {"input_ids": (1,), "attention_mask": (1,)}


def whole(count: int, width: int, *, left: bool = False) -> Batch:
    return Batch(sentences(count, width, left=left), np.arange(count), count)


def padding_of(batch: Batch, *, left: bool = True, right: bool = True) -> Padding:
    return Padding("attention_mask", AXES, left, right, (batch, batch))


def tokens(batch: Batch) -> list[list[int]]:
    pairs = zip(batch.feeds["input_ids"], batch.feeds["attention_mask"], strict=True)
    return [[int(i) for i, m in zip(ids, mask, strict=True) if m] for ids, mask in pairs]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 17), st.booleans(), st.integers(1, 25))
def test_every_sample_comes_once_with_all_that_counts(count: int, size: int, left: bool, run: int) -> None:
    batch = whole(count, 16, left=left)
    pieces = [batch.rows(slice(at, at + run)) for at in range(0, count, run)]
    out = list(arranged(pieces, padding_of(batch), size))
    before = tokens(batch)
    orders = [piece.order for piece in out if piece.order is not None]
    assert sorted(np.concatenate(orders).tolist()) == list(range(count))
    for piece, order in zip(out, orders, strict=True):
        assert tokens(piece) == [before[i] for i in order]
        assert piece.labels is not None and piece.labels.tolist() == order.tolist()
        longest = max(len(before[i]) for i in order)
        assert {array.shape[1] for array in piece.feeds.values()} == {longest}
    assert sum(piece.size == size for piece in out) == count // size
    lengths = [sorted(len(before[i]) for i in order) for order in orders]
    lengths.sort()
    assert all(a[-1] <= b[0] for a, b in pairwise(lengths))


def test_what_has_nothing_that_counts_is_left_whole() -> None:
    batch = whole(6, 16)
    batch.feeds["attention_mask"][2] = 0
    assert padding_of(batch).cut(batch) is batch


@pytest.mark.parametrize(("left", "right"), [(True, False), (False, True), (False, False)])
def test_only_the_ends_are_cut_that_may_be(left: bool, right: bool) -> None:
    for side in (False, True):
        batch = whole(8, 20, left=side)
        cut = padding_of(batch, left=left, right=right).cut(batch)
        allowed = left if side else right
        assert (cut.feeds["input_ids"].shape[1] < 20) == allowed
        assert tokens(cut) == tokens(batch)


def test_tensors_of_any_layout_give_what_counts() -> None:
    live = np.array([[1, 1, 0], [1, 0, 0]], dtype=bool)
    values = np.arange(2 * 4 * 3 * 5, dtype=np.float32).reshape(2, 4, 3, 5)
    only = PositionAxes(0, 2).only(values, live)
    np.testing.assert_array_equal(only, np.stack([values[0, :, :1], values[0, :, 1:2], values[1, :, :1]]))
    swapped = PositionAxes(2, 0).only(np.moveaxis(values, (0, 2), (2, 0)), live)
    np.testing.assert_array_equal(np.moveaxis(swapped, (2, 0), (0, 2)), only)
    flat = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(PositionAxes(0, None).only(flat, live), flat[[0, 1, 3]])
    filled = PositionAxes(0, 2).filled(values, live)
    assert filled[0, :, 2].max() == filled[1, :, 1:].max() == 0
    np.testing.assert_array_equal(filled[0, :, :2], values[0, :, :2])
