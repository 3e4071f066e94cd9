"""Samples are told apart by what a model is fed, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pcns_onnx.data.batch import Batch
from pcns_onnx.data.columns import Array
from pcns_onnx.data.fingerprints import SampleSummary, in_sketch, sketch, summarize


def drawn(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3, 2)).astype(np.float32)


def of(*batches: dict[str, Array]) -> SampleSummary:
    return summarize(Batch(feeds, None, len(next(iter(feeds.values())))) for feeds in batches)


def test_a_sample_has_the_same_hash_wherever_it_stands() -> None:
    x = drawn(10)
    whole, cut = of({"x": x}), of({"x": x[:3]}, {"x": x[3:]})
    np.testing.assert_array_equal(whole.hashes, cut.hashes)
    np.testing.assert_array_equal(of({"x": x[::-1]}).hashes, whole.hashes[::-1])
    assert whole.digest == cut.digest != of({"x": x[::-1]}).digest
    assert (whole.count, whole.distinct) == (10, 10)


def test_what_differs_in_one_input_or_bit_is_another_sample() -> None:
    x, mask = drawn(4), np.ones((4, 3), np.int64)
    other = mask.copy()
    other[2, 1] = 0
    differs = of({"x": x, "mask": mask}).hashes != of({"mask": other, "x": x}).hashes
    assert differs.tolist() == [False, False, True, False]
    assert not set(of({"x": x}).hashes) & set(of({"x": x.astype(np.float64)}).hashes)
    assert not set(of({"x": x}).hashes) & set(of({"x": x.reshape(4, 2, 3)}).hashes)


def test_repeats_count_once() -> None:
    assert of({"x": np.repeat(drawn(3), 20, axis=0)}).distinct == 3


def test_inputs_that_never_change_are_named() -> None:
    x = drawn(5)
    summary = of(
        {"x": x[:3], "state": np.zeros((3, 4), np.float32), "gain": np.full((3, 1), 2, np.float32),
         "mask": np.ones((3, 4), np.int64)},
        {"x": x[3:], "state": np.zeros((2, 4), np.float32), "gain": np.full((2, 1), 2, np.float32),
         "mask": np.ones((2, 4), np.int64)},
    )  # fmt: skip
    assert summary.constant == ("state", "gain") and summary.zero == ("state",) and summary.inputs == 4


def test_texts_and_settings_of_a_whole_batch_can_be_hashed() -> None:
    texts = np.array([["a"], ["b"], ["a"]], dtype=object)
    feeds = {"x": texts, "scale": np.full(2, 3.0, np.float32)}
    summary = summarize([Batch(feeds, None, 3, axes={"scale": None})])
    assert summary.hashes[0] == summary.hashes[2] != summary.hashes[1]


def test_a_sketch_knows_its_smallest_hashes() -> None:
    hashes = of({"x": drawn(200)}).hashes
    small, whole = sketch(hashes, 8), sketch(hashes, 1000)
    assert in_sketch(small, hashes).sum() == 8 and in_sketch(whole, hashes).all()
    assert not in_sketch(whole, of({"x": drawn(200, seed=1)}).hashes).any()
    assert not in_sketch(sketch(hashes[:0], 8), hashes).any()
    with pytest.raises(ValueError, match=r".*"):
        in_sketch("no sketch", hashes)


def test_samples_lie_along_the_axis_of_each_input() -> None:
    x, state = drawn(6), np.random.default_rng(1).standard_normal((2, 6, 5)).astype(np.float32)
    state[:, 4], x[4] = state[:, 1], x[1]
    scales = np.ones(3, np.float32)
    feeds, axes = {"x": x, "state": state, "scales": scales}, {"x": 0, "state": 1, "scales": None}
    whole = Batch(feeds, None, 6, axes=axes)
    summary = summarize([whole], {"scales"})
    assert (summary.count, summary.distinct, summary.inputs, summary.constant) == (6, 5, 2, ())
    assert summarize([whole]).constant == ("scales",)
    cut = summarize([whole.rows(slice(0, 4)), whole.rows(slice(4, 6))])
    np.testing.assert_array_equal(cut.hashes, summary.hashes)
    still = {**feeds, "state": np.repeat(state[:, :1], 6, axis=1)}
    assert summarize([Batch(still, None, 6, axes=axes)], {"scales"}).constant == ("state",)
