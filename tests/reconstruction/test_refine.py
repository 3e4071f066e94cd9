"""Refinement: its gradient is one, it never does harm, and it finds what least squares cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.chains import node
from builders.layer_pairs import MODELS
from builders.models import Array, build, relative, run
from builders.pieces import Hidden, cast, disturbed
from pcns_onnx import InputError, ShrinkResult, shrink
from pcns_onnx.numerics.arrays import namespace_of, to_numpy
from pcns_onnx.numerics.ridge import VALID
from pcns_onnx.reconstruction.nonlinearity import Nonlinearity
from pcns_onnx.reconstruction.refine import ENOUGH, Pair, Weights, refine
from pcns_onnx.reconstruction.windows import Piece

Sigma = Callable[[Any], Any]


def smooth(rows: Any) -> Any:
    """An activation in the arrays' own type."""
    return namespace_of(rows).tanh(rows)


def kinked(rows: Any) -> Any:
    xp = namespace_of(rows)
    return xp.where(rows > 0, rows, 0.1 * rows)


def straight(rows: Any) -> Any:
    return rows


def gradient_along(pair: Pair, weights: Weights, piece: Piece, direction: Weights) -> tuple[float, float]:
    """How half the error changes along a direction: by the gradient, and by a central difference."""
    step = 1e-6

    def error(sign: int) -> float:
        moved = (w + sign * step * d for w, d in zip(weights.all, direction.all, strict=True))
        return 0.5 * pair.error(Weights(*moved), [piece])

    found = pair.gradient(weights, piece)
    told = sum(float(np.sum(g * d)) for g, d in zip(found, direction.all, strict=True))
    return told, (error(1) - error(-1)) / (2 * step)


@pytest.mark.parametrize("sigma", [smooth, straight], ids=["tanh", "identity"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_gradient_is_the_central_difference(model: onnx.ModelProto, sigma: Sigma) -> None:
    hidden = Hidden.of(model)
    piece = cast(hidden.windows(hidden.samples(4), 12)[0], np.float64)
    weights = disturbed(hidden.weights, 0.3, dtype=np.float64)
    draw = np.random.default_rng(1)
    for at in range(4):
        parts: list[Array] = [np.zeros(part.shape) for part in weights.all]
        parts[at] = draw.standard_normal(parts[at].shape)
        told, measured = gradient_along(Pair(Nonlinearity(sigma)), weights, piece, Weights(*parts))
        assert told == pytest.approx(measured, rel=1e-4)
        assert measured != 0


def test_a_channel_that_is_not_read_has_no_gradient() -> None:
    hidden = Hidden.of(MODELS["conv2d stride"])
    piece = hidden.windows(hidden.samples(4))[0]
    weights = hidden.weights
    v = weights.v.copy().reshape(len(weights.v), -1, len(weights.w))
    v[:, :, 2] = 0
    w, b, _, _ = Pair(Nonlinearity(kinked)).gradient(replace(weights, v=v.reshape(weights.v.shape)), piece)
    assert not w[2].any() and b[2] == 0
    assert w[[0, 1, 3]].all()


@pytest.mark.parametrize("name", ["gemm", "conv2d stride", "max pool padded", "transposed, padded and dilated"])
def test_it_runs_on_other_arrays(name: str) -> None:
    hidden = Hidden.of(MODELS[name])
    pieces = hidden.windows(hidden.samples(80), 6, batches=2)
    start = disturbed(hidden.weights, 0.2)
    xp = array_api_strict
    theirs = [replace(piece, x=xp.asarray(piece.x), y=xp.asarray(piece.y)) for piece in pieces]
    begin = Weights(*(xp.asarray(part) for part in start.all))
    for mine, other in zip(
        Pair(Nonlinearity(kinked)).gradient(start, pieces[0]),
        Pair(Nonlinearity(kinked)).gradient(begin, theirs[0]),
        strict=True,
    ):
        np.testing.assert_allclose(mine, to_numpy(other), rtol=1e-3, atol=1e-3)
    ours, same = (refine(p, w, Nonlinearity(kinked), 10, (0,)) for p, w in ((pieces, start), (theirs, begin)))
    assert same.before == pytest.approx(ours.before, rel=1e-4)
    assert same.after == pytest.approx(ours.after, rel=0.05)
    assert same.after < same.before


# -- what it does to the error ---------------------------------------------------------------


def kept_aside(pieces: list[Piece]) -> list[Piece]:
    return [piece.split(len(piece.x) // VALID)[0] for piece in pieces]


def spread(pieces: list[Piece]) -> float:
    rows = np.concatenate([piece.y.reshape(-1, piece.y.shape[2]) for piece in pieces])
    return float(np.sum((rows - rows.mean(axis=0)) ** 2))


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["gemm", "conv2d", "max pool padded"]), st.integers(0, 99), st.floats(0, 3), st.integers(0, 20))
def test_never_worse_on_samples_kept_aside(name: str, seed: int, amount: float, steps: int) -> None:
    hidden = Hidden.of(MODELS[name])
    pieces = hidden.windows(hidden.samples(16, seed), 6, batches=2)
    start = disturbed(hidden.weights, amount, seed)
    found = refine(pieces, start, Nonlinearity(kinked), steps, (seed,))
    assert found.after <= found.before
    aside = kept_aside(pieces)
    for weights, told in ((start, found.before), (found.weights, found.after)):
        assert told == pytest.approx(Pair(Nonlinearity(kinked)).error(weights, aside) / spread(aside), rel=1e-4)
    again = refine(pieces, start, Nonlinearity(kinked), steps, (seed,))
    assert all(np.array_equal(a, b) for a, b in zip(found.weights.all, again.weights.all, strict=True))


def test_what_fits_already_is_left_as_it_is() -> None:
    hidden = Hidden.of(MODELS["conv2d"])
    found = refine(hidden.windows(hidden.samples(16), 9), hidden.weights, Nonlinearity(hidden.sigma), 50, (0,))
    assert found.before == found.after < ENOUGH
    assert all(np.array_equal(a, b) for a, b in zip(found.weights.all, hidden.weights.all, strict=True))


def test_from_a_disturbed_start_most_of_the_way_is_found_back() -> None:
    hidden = Hidden.of(MODELS["gemm"])
    pieces = hidden.windows(hidden.samples(400), batches=4)
    found = refine(pieces, disturbed(hidden.weights, 0.1), Nonlinearity(hidden.sigma), 300, (0,))
    assert found.after < 0.1 * found.before


def test_samples_that_cannot_be_parted_change_nothing() -> None:
    hidden = Hidden.of(MODELS["gemm"])
    start = disturbed(hidden.weights, 0.3)
    found = refine(hidden.windows(hidden.samples(1)), start, Nonlinearity(hidden.sigma), 50, (0,))
    assert found.weights is start and np.isnan(found.before)


# -- in the re-fit ---------------------------------------------------------------------------


def twice(apart: float) -> onnx.ModelProto:
    """Hidden neurons in pairs, `apart` from each other, both read with equal weights."""
    draw = np.random.default_rng(3)
    w, b, v = draw.standard_normal((6, 8)), draw.standard_normal(8), draw.standard_normal((8, 4))
    shift = apart * draw.standard_normal(w.shape)
    weights = {
        "W0": np.concatenate([w + shift, w - shift], axis=1),
        "b0": np.concatenate([b, b]),
        "W1": np.concatenate([v, v], axis=0),
        "b1": draw.standard_normal(4),
    }
    nodes = [node("Gemm", "x W0 b0", "h", name="g0"), node("Relu", "h"), node("Gemm", "m W1 b1", "y", name="g1")]
    return build(nodes, {name: value.astype(np.float32) for name, value in weights.items()}, ("N", 6))


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)


def weights_of(model: onnx.ModelProto) -> dict[str, bytes]:
    return {item.name: onnx.numpy_helper.to_array(item).tobytes() for item in model.graph.initializer}


def test_where_half_is_planted_to_be_superfluous_refinement_changes_nothing() -> None:
    model = twice(0)
    plain, refined = (shrink(model, rows(300), width=0.5, refine=steps) for steps in (0, 100))
    (group,) = refined.report.groups
    assert group.refined["g0"].before == group.refined["g0"].after < ENOUGH
    assert not plain.report.groups[0].refined
    assert weights_of(plain.model) == weights_of(refined.model)
    assert relative(run(model, rows(50, 1)), run(refined.model, rows(50, 1))) < 1e-4


def test_neurons_move_to_where_they_stand_for_two() -> None:
    """Of each pair the best single neuron lies in between: no choice and no reader alone can do that."""
    model, new = twice(0.4), rows(2000, 1)
    plain, refined = (shrink(model, rows(1500), width=0.5, refine=steps) for steps in (0, 300))
    losses = [relative(run(model, new), run(result.model, new)) for result in (plain, refined)]
    assert losses[1] < 0.8 * losses[0]
    told = refined.report.groups[0].refined["g0"]
    assert told.after < told.before


def deep() -> onnx.ModelProto:
    """Three hidden layers, a pool among them."""
    draw = np.random.default_rng(4)
    shapes = {"W0": (8, 3, 3, 3), "W1": (12, 8, 3, 3), "W2": (10, 12, 3, 3), "W3": (10, 4)}
    weights = {
        name: (draw.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    nodes = [
        node("Conv", "x W0", "a", name="c0", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b W1", "c", name="c1", pads=[1] * 4),
        node("Relu", "c", "d"),
        node("MaxPool", "d", "e", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "e W2", "f", name="c2"),
        node("Relu", "f", "g"),
        node("Flatten", "g", "h"),
        node("Gemm", "h W3", "y", name="g3"),
    ]
    return build(nodes, weights, ("N", 3, 6, 6))


def test_the_same_seed_gives_the_same_bytes() -> None:
    x = np.random.default_rng(0).standard_normal((100, 3, 6, 6)).astype(np.float32)
    first, second, other = (shrink(deep(), x, width=0.5, multiple="1", refine=12, seed=seed) for seed in (1, 1, 2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert weights_of(first.model) != weights_of(other.model)
    found = {name: info for group in first.report.groups for name, info in group.refined.items()}
    assert set(found) == {"c0", "c1", "c2"}
    assert all(info.after <= info.before for info in found.values())


def test_no_steps_are_the_plain_refit() -> None:
    x = np.random.default_rng(0).standard_normal((100, 3, 6, 6)).astype(np.float32)
    plain, refined = (shrink(deep(), x, width=0.5, multiple="1", refine=steps) for steps in (0, 25))
    assert not any(group.refined for group in plain.report.groups)
    assert plain.plan.groups == refined.plan.groups
    assert weights_of(plain.model) != weights_of(refined.model)


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"refine": -1}, "--refine -1 is too small: it must be at least 0"),
        ({"refine": 2**31}, "--refine 2147483648 is too large"),
        ({"refine": 2.5}, "--refine 2.5 is not understood: it must be a whole number"),
        ({"refine": "9"}, "--refine '9' is not understood: it must be a whole number"),
        ({"refine": 5, "method": "pcns"}, "--refine goes on from neurons that were kept: 'pcns' makes new ones"),
        ({"refine": 5, "method": "min-weight"}, "--refine comes after a re-fit"),
    ],
)
def test_what_cannot_be_refined_is_refused(choices: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}"):
        shrink(twice(0.1), rows(60), width=0.5, **choices)


def test_no_refinement_goes_with_every_method() -> None:
    for method in ("pcns", "min-weight", "interpolative"):
        assert shrink(twice(0.1), rows(60), width=0.5, method=method, refine=0).report.after.macs


# -- how much of it ----------------------------------------------------------------------------

DIGITS = Path(__file__).parents[2] / "models"


def with_effort(effort: str, **choices: Any) -> ShrinkResult:
    return shrink(DIGITS / "digits_cnn.onnx", DIGITS / "digits_images.npz", width=0.25, effort=effort, **choices)


def test_more_effort_takes_more_steps_and_misses_no_more() -> None:
    steps, missed = dict[str, int](), dict[str, float]()
    for effort in ("low", "normal", "high"):
        report = with_effort(effort).report
        assert ("refine" in report.stages) == (effort != "low")
        refined = [info for group in report.groups for info in group.refined.values()]
        steps[effort] = sum(info.steps for info in refined)
        missed[effort] = sum(info.after for info in refined)
    assert steps["low"] == 0 < steps["normal"] < steps["high"]
    assert missed["high"] < missed["normal"]


def test_steps_that_are_asked_for_override_the_effort() -> None:
    one, other = (with_effort(effort, refine=0).model.graph for effort in ("low", "high"))
    assert one.SerializeToString() == other.SerializeToString()
