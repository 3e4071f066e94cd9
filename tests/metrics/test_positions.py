"""Masks and tags: counted position by position."""

from __future__ import annotations

import numpy as np
import pytest

from pcns_onnx.errors import InputError
from pcns_onnx.metrics import Mask, Tags, mask, tags

P = np.random.default_rng(0).uniform(0, 1, (4, 1, 6, 6))
Q = np.random.default_rng(1).uniform(0, 1, (4, 1, 6, 6))


def test_a_mask_is_judged_by_f1() -> None:
    a, b = P > 0.5, Q > 0.5
    assert mask({"y": P}, reference={"y": P}) == 100
    assert mask({"y": Q}, reference={"y": P}) == pytest.approx(200 * (a & b).sum() / (a.sum() + b.sum()))
    assert mask({"y": np.log(Q / (1 - Q))}, reference={"y": np.log(P / (1 - P))}) == mask({"y": Q}, reference={"y": P})
    assert mask({"y": P * 0}, reference={"y": P}) == 0
    assert np.isnan(mask({"y": P * 0}, reference={"y": P * 0}))


def test_a_mask_of_one_output_or_of_all() -> None:
    reference = {"y": P, "z": P, "n": np.arange(4)}
    assert Mask(output="z")(reference | {"y": Q}, reference=reference) == 100
    assert mask(reference | {"y": Q}, reference=reference) < 100
    assert Mask(threshold=2.0, output="y")(reference, reference=reference) != 100
    two = {"y": np.stack([Q, P], axis=-1)}
    assert Mask(column=1)(two, reference={"y": np.stack([P, P], axis=-1)}) == 100
    with pytest.raises(InputError, match=r"^metric mask: no output looks like scores"):
        mask({"n": np.arange(4)}, reference={"n": np.arange(4)})


def test_tags_are_counted_at_every_position() -> None:
    a, b = (np.random.default_rng(seed).standard_normal((3, 7, 5)) for seed in (0, 1))
    share = 100 * (a.argmax(-1) == b.argmax(-1)).mean()
    assert tags({"y": a}, reference={"y": a}) == 100
    assert tags({"y": b}, reference={"y": a}) == pytest.approx(share)
    turned = [array.transpose(0, 2, 1) for array in (a, b)]
    assert Tags(axis=1)({"y": turned[1]}, reference={"y": turned[0]}) == pytest.approx(share)
    with pytest.raises(InputError, match=r"^metric tags: no output looks like scores of two or more classes"):
        tags({"y": P[..., :1]}, reference={"y": P[..., :1]})


def test_batches_add_up() -> None:
    for metric in (Mask(), Tags()):
        whole = metric({"y": Q}, reference={"y": P})
        for row in range(4):
            metric.update({"y": Q[row : row + 1]}, None, reference={"y": P[row : row + 1]}, size=1)
        assert metric.compute() == pytest.approx(whole)
