"""Numbers in few bits: what they stand for, and numbers put into the same form."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pcns_onnx.numerics.quantization import Quantized

Array = np.ndarray[Any, np.dtype[Any]]

TYPES = (np.int8, np.uint8, np.int16, ml_dtypes.int4, ml_dtypes.uint4)
FLOATS = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
FORMS = {"tensor": ((), 1, 0), "axis": ((10,), 1, 0), "blocks": ((3, 10), 0, 16)}
"""Shape of the scale of (40, 10), axis and size of blocks; the last block is shorter."""


def blank(dtype: Any, form: str, zero: int | None = None) -> Quantized:
    shape, axis, block = FORMS[form]
    stored_zero = None if zero is None else np.full(shape, zero).astype(dtype)
    return Quantized(np.zeros((40, 10)).astype(dtype), np.ones(shape, np.float32), stored_zero, axis, block)


def weights(rows: int = 40) -> Array:
    return np.random.default_rng(rows).standard_normal((rows, 10))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_numbers_are_half_a_step_off_at_most(dtype: Any, form: str) -> None:
    middle = 1 << (blank(dtype, form).bits - 1) if np.dtype(dtype).name.startswith("u") else None
    packed = blank(dtype, form, middle).like(weights(35))
    assert packed.q.shape == (35, 10) and packed.q.dtype == dtype
    assert packed.scale.dtype == np.float32 and packed.scale.ndim == len(FORMS[form][0])
    steps = np.repeat(packed.scale, 16, axis=0)[:35] if form == "blocks" else packed.scale
    clipped = 0.3 * np.abs(weights(35)).max() if packed.bits <= 4 else 0.0
    assert (np.abs(packed.value - weights(35)) <= 0.51 * steps + clipped).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_floats_in_eight_bits_keep_their_digits(dtype: Any, form: str) -> None:
    packed = blank(dtype, form).like(weights())
    assert packed.q.dtype == dtype and packed.zero is None
    assert np.linalg.norm(packed.value - weights()) < 0.08 * np.linalg.norm(weights())


def test_what_has_its_own_zero_everywhere_keeps_zero_exact() -> None:
    old = blank(np.uint8, "axis", 0)
    shifted = Quantized(old.q, old.scale, np.arange(10).astype(np.uint8), 1, 0)
    values = np.abs(weights()) + 1
    values[3] = 0
    packed = shifted.like(values)
    assert packed.zero is not None and packed.zero.shape == (10,)
    assert not packed.value[3].any()
    np.testing.assert_allclose(packed.value, values, atol=0.02)


def test_unsigned_numbers_without_a_zero_get_one_where_some_are_negative() -> None:
    old = blank(np.uint8, "tensor")
    assert old.like(np.abs(weights())).zero is None
    packed = old.like(weights())
    assert packed.zero is not None and packed.zero.dtype == np.uint8 and packed.zero.shape == ()
    np.testing.assert_allclose(packed.value, weights(), atol=0.02)


def test_a_block_of_zeros_stays_one() -> None:
    for dtype in (*TYPES[:1], *FLOATS):
        packed = blank(dtype, "blocks").like(np.zeros((40, 10)))
        assert not packed.value.any() and (packed.scale > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_places_are_taken_exactly(form: str) -> None:
    packed = blank(ml_dtypes.int4, form).like(weights())
    columns, rows = np.array([7, 7, 0]), np.arange(16, 40)
    taken = packed.take([(1, columns), (0, rows)])
    assert taken is not None
    np.testing.assert_array_equal(taken.value, packed.value[rows][:, columns])


def test_blocks_are_not_cut() -> None:
    packed = blank(ml_dtypes.int4, "blocks").like(weights())
    assert packed.take([(0, np.arange(8, 24))]) is None
    assert packed.take([(0, np.array([], dtype=np.int64))]) is None
    assert packed.take([(0, np.r_[32:40, 0:16])]) is None, "the short one is the last"
    rows = np.r_[16:32, 32:40]
    whole = packed.take([(0, rows)])
    assert whole is not None
    np.testing.assert_array_equal(whole.value, packed.value[rows])


def test_four_bits_miss_less_than_by_the_largest_alone() -> None:
    values = weights()
    plain = np.abs(values).max(axis=0) / 7
    missed = np.linalg.norm(np.clip(np.rint(values / plain), -8, 7) * plain - values)
    assert np.linalg.norm(blank(ml_dtypes.int4, "axis").like(values).value - values) < 0.98 * missed


def test_numbers_of_32_bits_stay_within_what_floats_hold() -> None:
    old = Quantized(np.zeros(5, np.int32), np.ones(5, np.float32), None, 0, 0)
    values = np.array([1e6, -3.25, 0, 1e-8, 7])
    np.testing.assert_allclose(old.like(values).value, values, rtol=1e-6)
