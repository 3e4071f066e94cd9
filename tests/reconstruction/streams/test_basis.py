"""The basis of a stream is that of what its norms make of it."""

from __future__ import annotations

import numpy as np
import pytest

from pcns_onnx.calibration.live_rows import LivePlaces
from pcns_onnx.reconstruction.streams.basis import StreamBasis, StreamObserver
from pcns_onnx.runtime.samples import Positions


def observed(x: np.ndarray, centres: bool) -> StreamObserver:
    observer = StreamObserver(["x"], x.shape[-1], centres, Positions(1 << 20, len(x), (0,)), LivePlaces())
    observer.update(0, [{"x": x}])
    return observer


@pytest.mark.parametrize("centres", [False, True])
def test_every_row_counts_by_its_direction(centres: bool) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3, 6)) + 2.0
    moment = observed(x, centres).moments["x"]
    louder = observed(x * np.random.default_rng(1).uniform(0.1, 100, (50, 3, 1)), centres).moments["x"]
    assert np.allclose(moment, louder) and np.isclose(np.trace(moment), 150 * 6)
    assert np.allclose(moment @ np.ones(6), 0) == centres


def test_the_first_axes_hold_most_and_it_is_said_what_the_others_hold() -> None:
    spread = np.array([4.0, 3.0, 2.0, 1e-4])
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))[0]
    basis = StreamBasis.of(turn @ np.diag(spread) @ turn.T)
    assert np.allclose(basis.axes.T @ basis.axes, np.eye(4))
    assert np.allclose(np.abs(basis.axes.T @ turn), np.eye(4), atol=1e-6)
    assert np.isclose(basis.lost(3), 1e-4 / spread.sum()) and basis.lost(4) == 0.0


def test_shards_add_up() -> None:
    x = np.random.default_rng(3).standard_normal((8, 2, 5))
    first, second = observed(x[:4], False), observed(x[4:], False)
    first.merge(second)
    assert np.allclose(first.moments["x"], observed(x, False).moments["x"]) and first.rows["x"] == 16
