"""A sample proves something once, and only if nothing has seen it."""

from __future__ import annotations

import numpy as np
import pytest

from pcns_onnx.data.fingerprints import SampleSummary
from pcns_onnx.evaluation.unseen import unseen
from pcns_onnx.numerics.confidence import ENOUGH, LEAST, quantile_bound, share_bound

FRESH = np.arange(100, 140, dtype=np.uint64)


def test_fresh_samples_all_count() -> None:
    verdict = unseen(SampleSummary(FRESH), [np.arange(100, dtype=np.uint64)])
    assert verdict.proving.all() and not verdict.notes


def test_samples_of_the_solve_and_repeats_do_not_count() -> None:
    checked = np.concatenate([FRESH, FRESH[:7], np.arange(5, dtype=np.uint64)])
    verdict = unseen(SampleSummary(checked), [np.arange(3, dtype=np.uint64), np.arange(3, 100, dtype=np.uint64)])
    assert verdict.proving.tolist() == [True] * 40 + [False] * 12
    first, second = verdict.notes
    assert first.startswith("5 of 52 samples") and second.startswith("7 of 52 samples")


def test_nothing_is_left_of_samples_that_were_all_seen() -> None:
    verdict = unseen(SampleSummary(FRESH), [FRESH])
    assert not verdict.proving.any() and verdict.notes[0].startswith("all 40 samples of the check")


@pytest.mark.parametrize("count", [1, LEAST - 1, LEAST])
def test_few_samples_are_said(count: int) -> None:
    assert bool(unseen(SampleSummary(FRESH[:count])).notes) is (count < LEAST)


def test_one_sample_proves_next_to_nothing() -> None:
    assert share_bound(0, 1) == pytest.approx(0.95) and share_bound(0, LEAST) == pytest.approx(0.139, abs=1e-3)
    assert quantile_bound(np.zeros(ENOUGH)) is not None and quantile_bound(np.zeros(ENOUGH - 1)) is None
