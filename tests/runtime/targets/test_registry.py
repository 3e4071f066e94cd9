"""The targets: names, and multiples by kind and number of channels."""

from __future__ import annotations

import pytest

from pcns_onnx.runtime.targets.registry import CHOICES, ONNXRUNTIME, TARGETS, Multiples, target_named


def test_every_choice_is_a_record() -> None:
    assert {target_named(name).name for name in CHOICES} == set(TARGETS)
    for name in ("auto", "cpu", "cuda"):
        assert target_named(name) is ONNXRUNTIME
    for target in TARGETS.values():
        assert bool(target.install) == (target is not ONNXRUNTIME)


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [("Conv", 1, 1), ("Conv", 31, 1), ("Conv", 32, 8), ("ConvTranspose", 200, 16), ("Gemm", 200, 1), ("MatMul", 4, 1)],
)
def test_multiples_go_by_kind_and_channels(kind: str, channels: int, expected: int) -> None:
    assert Multiples(conv=((1, 1), (32, 8), (64, 16))).at(kind, channels) == expected


def test_multiples_are_of_whole_blocks() -> None:
    for target in TARGETS.values():
        for rows in (target.multiples.conv, target.multiples.other):
            assert rows[0][0] == 1 and list(rows) == sorted(rows)
            assert all(step in (1, 4, 8, 16) for _, step in rows)
