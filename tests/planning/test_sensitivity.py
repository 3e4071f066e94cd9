"""Probing: what a group's loss does to the outputs is what is measured there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from builders.chains import node
from builders.free_shapes import SPELLINGS, encoder, ids
from builders.importance import WIDTH, branches, looked, rows
from builders.models import build, relative
from builders.outputs import early
from builders.topologies import residual, several
from pcns_onnx import shrink
from pcns_onnx.graph import Program
from pcns_onnx.ops import Heads
from pcns_onnx.planning.sensitivity import LEVELS, SAMPLES, probe_samples
from pcns_onnx.runtime.engine import Engine


def test_a_group_that_the_outputs_do_not_feel_has_no_error() -> None:
    _, found = looked(branches(1.0, 1e-4), rows())
    assert found.curves["b"][1:].max() < 1e-6
    assert found.curves["a"][WIDTH // 4] > 0.01
    # its own reader feels it all the same
    assert found.rankings["b"].error[WIDTH // 4] > 0.01


def test_the_louder_branch_is_the_dearer_one() -> None:
    louder, quieter = (looked(branches(1.0, quiet), rows())[1].curves["b"] for quiet in (0.5, 0.1))
    inner = slice(1, WIDTH)
    assert (louder[inner] > quieter[inner]).all()
    same = looked(branches(1.0, 0.1), rows(), probes=False)[1]
    assert same.curves["b"] == pytest.approx(same.rankings["b"].error)


@pytest.mark.parametrize("model", [branches(1.0, 0.3), residual(), several("Max")], ids=["sum", "residual", "max"])
def test_curves_fall_with_the_width_to_nothing(model: onnx.ModelProto) -> None:
    shape = [d.dim_value or 60 for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    problem, found = looked(model, x)
    for group in problem.groups:
        curve, ranking = found.curves[group.name], found.rankings[group.name]
        assert curve.shape == (group.width + 1,)
        assert np.isfinite(curve).all() and (curve >= 0).all()
        assert curve[-1] == 0
        # as its own error falls, and where that stands still so does this
        order = np.argsort(ranking.error, kind="stable")
        assert (np.diff(curve[order]) >= -1e-12).all()


def test_the_error_at_a_probed_width_is_that_of_the_narrowed_model() -> None:
    """One reader, and it is the output: its own curve is exact, and the probe must find the same."""
    draw = np.random.default_rng(2)
    weights = {"W0": draw.standard_normal((6, WIDTH)), "W1": draw.standard_normal((WIDTH, 4))}
    nodes = [node("Gemm", "x W0", "h", name="g"), node("Tanh", "h"), node("Gemm", "m W1", "y")]
    model = build(nodes, {name: value.astype(np.float32) for name, value in weights.items()}, ("N", 6))
    _, found = looked(model, rows(2000))
    own, outputs = found.rankings["g"].error, found.curves["g"]
    probed = [int(np.flatnonzero(own[:WIDTH] >= level)[-1]) for level in LEVELS if (own[:WIDTH] >= level).any()]
    assert probed
    assert outputs[probed] == pytest.approx(own[probed], rel=0.25)


def test_the_same_seed_probes_alike() -> None:
    one, two = (looked(branches(1.0, 0.3), rows(), seed=3)[1].curves for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("count", [1, 10, 100, 5000])
@pytest.mark.parametrize("groups", [1, 10, 300])
def test_probing_takes_few_samples_and_never_more_than_there_are(count: int, groups: int) -> None:
    found = probe_samples(count, groups)
    assert 1 <= found <= count
    assert found == count or SAMPLES[0] <= found <= SAMPLES[1]
    assert found >= probe_samples(count, 2 * groups)


# -- where the graph is cut --------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["width", "whole"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_cut_goes_through_shape_arithmetic(spelling: str, heads: Heads) -> None:
    """Target shapes that layers share are made in front of the first cut; narrowed ones are made anew behind it."""
    model = encoder(spelling, mask=spelling.startswith("Shape"))
    result = shrink(model, {"ids": ids(60)}, budget="macs=0.75", heads=heads, multiple="1", refine=0, threads=1)
    assert any(plan.width < plan.of for plan in result.plan.groups.values())
    for count, length in ((1, 7), (5, 3)):
        feeds = {"ids": ids(count, length, seed=1)}
        a, b = (Engine().session(Program(m.SerializeToString())).run(feeds)["x2"] for m in (model, result.model))
        assert a.shape == b.shape and 0 < relative(a, b) < 0.5


def test_outputs_that_are_finished_in_front_of_a_cut_cost_nothing() -> None:
    """The curve of a group says what the outputs behind it lose, out of all outputs."""
    problem, found = looked(early(), rows(200)[:, :5])
    last = found.curves["h1"]
    alone = looked(with_one_output(early(), "late"), rows(200)[:, :5])[1].curves["h1"]
    assert last == pytest.approx(alone / len(problem.graph.outputs), rel=0.3)  # on other samples


def with_one_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    kept = next(output for output in model.graph.output if output.name == name)
    del model.graph.output[:]
    model.graph.output.append(kept)
    return model
