"""Texts read greedily from CTC heads, whichever way their axes lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pcns_onnx.errors import InputError
from pcns_onnx.metrics import Ctc, ctc
from pcns_onnx.metrics.texts import edit_distance

Array = NDArray[Any]
STEPS = 24
CLASSES = 9
WORDS = ["12234", "5", "78178"]


def steps_of(words: list[str], blank: int = 0) -> Array:
    """What a head says at every step: each symbol twice, with blanks between; (words, steps)."""
    steps = np.full((len(words), STEPS), blank)
    for row, word in zip(steps, words, strict=True):
        for place, symbol in enumerate(word):
            row[4 * place + 1 : 4 * place + 3] = int(symbol) - (blank > 0)
    return steps


def scores(words: list[str], blank: int = 0, seed: int = 0) -> Array:
    """Scores (words, steps, classes)."""
    noise = np.random.default_rng(seed).uniform(0, 0.4, (len(words), STEPS, CLASSES))
    return noise + np.eye(CLASSES)[steps_of(words, blank)]


def expected(a: list[str], b: list[str]) -> float:
    edits = sum(edit_distance([*map(ord, x)], [*map(ord, y)]) for x, y in zip(a, b, strict=True))
    return 100 * (1 - edits / sum(max(len(x), len(y)) for x, y in zip(a, b, strict=True)))


OTHER = ["12334", "", "7818"]


@pytest.mark.parametrize("blank", [0, CLASSES - 1], ids=["blank first", "blank last"])
@pytest.mark.parametrize(
    "form",
    [
        lambda s: s,
        lambda s: s.transpose(1, 0, 2),
        lambda s: s[:, None],
        lambda s: s[:, :, None],
        lambda s: s.argmax(axis=2),
    ],
    ids=["batch first", "time first", "a height of 1", "a width of 1", "classes"],
)
def test_texts_are_compared_symbol_by_symbol(blank: int, form: Any) -> None:
    a, b = form(scores(WORDS, blank)), form(scores(OTHER, blank, seed=1))
    assert ctc({"y": a}, reference={"y": a}, size=3) == 100
    assert ctc({"y": b}, reference={"y": a}, size=3) == pytest.approx(expected(WORDS, OTHER))
    assert 0 < expected(WORDS, OTHER) < 100


def test_noise_that_changes_no_text_costs_nothing() -> None:
    assert ctc({"y": scores(WORDS, seed=5)}, reference={"y": scores(WORDS)}, size=3) == 100


def test_one_sample_at_a_time_gives_the_same() -> None:
    counted = Ctc()
    for a, b in zip(scores(WORDS), scores(OTHER), strict=True):
        counted.update({"y": b[:, None]}, None, reference={"y": a[:, None]}, size=1)
    assert counted.compute() == pytest.approx(expected(WORDS, OTHER))


def test_nothing_read_is_no_score() -> None:
    nothing = {"y": scores(["", ""])}
    assert np.isnan(ctc(nothing, reference=nothing, size=2))
    assert ctc({"y": scores(["", ""])}, reference={"y": scores(["1", "2"])}, size=2) == 0


def test_a_blank_can_be_told() -> None:
    a = {"y": scores(["1111", "2222"])}
    assert Ctc(blank=5)(a, reference=a, size=2) == 100


def test_other_heads_are_refused_in_a_line() -> None:
    outputs = {"y": np.zeros((2, 10))}
    with pytest.raises(InputError, match=r"^metric ctc: no output looks like a CTC head's: .*'y' \[2, 10\]$"):
        ctc(outputs, reference=outputs)


@settings(deadline=None, max_examples=60)
@given(*[st.lists(st.integers(0, 3), max_size=7)] * 3)
def test_the_edit_distance_is_a_distance(a: list[int], b: list[int], c: list[int]) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= edit_distance(a, c) + edit_distance(c, b)
    assert edit_distance(c + a, c + b) == edit_distance(a, b)
