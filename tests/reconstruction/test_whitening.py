"""Whitened coordinates: there and back is nothing, products stay, what is read gets alike in its leading directions."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest

from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.reconstruction.whitening import FLOOR, Coordinates, Whitening, whitening

BACKENDS = pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])


def slanted(columns: int) -> Any:
    """Rows whose variance falls by a factor of ten thousand from the first direction to the last."""
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.standard_normal((columns, columns)))[0]
    sizes = np.geomspace(1.0, 0.01, columns)
    return ((generator.standard_normal((12 * columns, columns)) * sizes) @ turn).astype(np.float32)


@BACKENDS
@pytest.mark.parametrize("columns", [3, 40, 300])
def test_there_and_back_is_nothing_and_products_stay(xp: Any, columns: int) -> None:
    rows = xp.asarray(slanted(columns))
    matrix = xp.asarray(np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32))
    coordinates = whitening([rows])
    np.testing.assert_allclose(
        to_numpy(coordinates.back(coordinates.into(matrix))), to_numpy(matrix), rtol=1e-4, atol=1e-5
    )
    # W x = W~ (P^-1 x): P^-1 is symmetric, so that it takes rows as it takes matrices
    np.testing.assert_allclose(
        to_numpy(coordinates.into(matrix) @ coordinates.back(rows).T), to_numpy(matrix @ rows.T), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("columns", [20, 300])
def test_the_leading_directions_get_alike(columns: int) -> None:
    rows = slanted(columns)
    before, after = (np.linalg.eigvalsh(r.T.astype(np.float64) @ r) for r in (rows, whitening([rows]).back(rows)))
    assert after[-1] <= 1.1 * max(FLOOR * before[-1], before[-32] if columns > 32 else before[0])


def test_what_never_moves_and_rows_of_nothing_are_left_as_they_are() -> None:
    matrix = np.ones((2, 4), dtype=np.float32)
    nothing = whitening([np.zeros((8, 4), dtype=np.float32)])
    np.testing.assert_allclose(nothing.into(matrix), matrix, rtol=1e-6)
    coordinates = Coordinates((nothing, None))
    assert coordinates.into([matrix, matrix])[1] is matrix


def test_slopes_by_what_is_moved_are_the_chain_rule() -> None:
    rows = slanted(6)
    own = whitening([rows])
    slope = np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32)
    moved = np.random.default_rng(3).standard_normal((3, 6)).astype(np.float32)
    change = np.random.default_rng(4).standard_normal((3, 6)).astype(np.float32)
    # f(W) = <slope, W> with W = W~ P^-1: along a change of W~
    along = float(np.sum(slope * (own.back(moved + change) - own.back(moved))))
    assert float(np.sum(Coordinates((own,)).slopes([slope])[0] * change)) == pytest.approx(along, rel=1e-3)


def test_blocks_beyond_what_is_needed_are_not_asked_for() -> None:
    def blocks() -> Any:
        yield slanted(10)
        raise AssertionError("one block of 12 rows per column is enough")

    assert isinstance(whitening(blocks()), Whitening)
