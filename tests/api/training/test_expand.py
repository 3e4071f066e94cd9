"""WeakExpand and zero-weight expansion: wider models that compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import helper, numpy_helper

from builders import attention, joins, norms
from builders import topologies as t
from builders.commands import Ran
from builders.mlp import mlp
from builders.models import MODELS, Array, build, relative, run
from builders.surgery import sample
from pcns_onnx import InputError, UnsupportedError, expand, inspect
from pcns_onnx.graph import Program
from pcns_onnx.rewrite.channels import layout
from pcns_onnx.runtime.engine import Engine

METHODS = pytest.mark.parametrize("method", ["weak", "zero"])
NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": lambda: onnx.load(MODELS / "digits_mlp_tanh.onnx"),
    "leaky mlp": lambda: onnx.load(MODELS / "digits_mlp_leaky.onnx"),
    "cnn": lambda: onnx.load(MODELS / "digits_cnn.onnx"),
    "residual": t.residual,
    "projection": t.projection,
    "slopes": t.slopes,
    "squeeze and excite": lambda: t.squeeze_excite("conv"),
    "depthwise": lambda: t.depthwise(2),
    "grouped": lambda: t.grouped(2),
    "whole blocks": lambda: t.grouped(8),
    "shuffle": t.shuffle,
    "split and shuffle": joins.shuffle,
    "dense": joins.dense,
    "unet": joins.unet,
    "norm that stays": lambda: norms.PASSED["batch norm in the way"].build(),
    "instance norm": lambda: norms.PASSED["instance norm"].build(),
    "group norm": lambda: norms.group_norm(4).build(),
}


def free(model: onnx.ModelProto) -> list[str]:
    """A layer of every group that can be widened."""
    return [group.writers[0] for group in inspect(model).groups if group.reason is None]


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def outputs_of(model: onnx.ModelProto, x: Array) -> Array:
    session = Engine().session(Program(model.SerializeToString()))
    return np.asarray(next(iter(session.run({session.inputs[0]: x}).values())))


# -- copies of classes -----------------------------------------------------------------------


def test_entries_of_a_class_that_lie_side_by_side_are_copied_as_a_whole() -> None:
    copies = np.array([2, 1, 0, 3, 1])  # the last answers for -1
    labels = np.array([0, 0, 1, 2, 3, -1, 0])
    index, number = layout(labels, copies)
    assert_array_equal(index, [0, 1, 0, 1, 2, 4, 4, 4, 5, 6, 6])
    assert_array_equal(number, [0, 0, 1, 1, 0, 0, 1, 2, 0, 0, 1])


def test_a_class_once_or_never_is_a_mask(rng: np.random.Generator) -> None:
    labels, copies = rng.integers(0, 9, 200), rng.integers(0, 2, 10)
    index, number = layout(labels, copies)
    assert_array_equal(index, np.flatnonzero(copies[labels]))
    assert not number.any()
    assert layout(labels[:0], copies)[0].shape == (0,)


# -- the function stays ----------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("by", [1.3, 2.0, 2.6])
@pytest.mark.parametrize("net", NETS)
def test_outputs_stay_what_they_were(net: str, by: float, method: str) -> None:
    model = NETS[net]()
    x = sample(model)
    for name in free(model):
        wide = expand(model, layer=name, by=by, method=method, batch=2)
        onnx.checker.check_model(wide.model, full_check=True)
        assert relative(outputs_of(model, x), outputs_of(wide.model, x)) < 1e-6
        (group,) = wide.report.groups
        assert group.after == round(by * group.before) > group.before
        assert wide.report.after.parameters > wide.report.before.parameters
    assert free(model)


@METHODS
def test_all_layers_at_once_and_once_more(method: str) -> None:
    model, x = onnx.load(MODELS / "digits_cnn.onnx"), np.load(MODELS / "digits_images_test.npz")["input"]
    wide = expand(model, layer="/conv*", by=1.5, method=method)
    assert [(g.before, g.after) for g in wide.report.groups] == [(32, 48), (64, 96), (64, 96), (128, 192)]
    wider = expand(wide.model, layer=["/conv1/Conv", "/conv3/Conv"], by=1.25, method=method, data=x[:50])
    assert not wider.report.on_noise and wide.report.on_noise
    before, after = (outputs_of(m, x) for m in (model, wider.model))
    assert relative(before, after) < 2e-6
    assert (
        wide.model.SerializeToString() == expand(model, layer="/conv*", by=1.5, method=method).model.SerializeToString()
    )


# -- who is split, and how -------------------------------------------------------------------


def test_the_strongest_are_split_first_into_equal_shares() -> None:
    model = mlp(widths=(6, 4, 3))
    old = weights(model)
    new = weights(expand(model, layer="g0", by=1.5).model)
    strong = np.argsort(-old["w1"].mean(axis=1))[:2]
    counts = np.array([2 if i in strong else 1 for i in range(4)])
    where = np.repeat(np.arange(4), counts)
    assert_array_equal(new["w0"], old["w0"][:, where])
    assert_array_equal(new["b0"], old["b0"][where])
    assert_allclose(new["w1"], (old["w1"] / counts[:, None])[where], rtol=1e-6)


def test_at_three_times_the_size_each_is_split_in_thirds() -> None:
    model = mlp(widths=(6, 4, 3))
    wide = expand(model, layer="g0", by=3)
    assert wide.report.groups[0].split == 4
    assert_allclose(weights(wide.model)["w1"], np.repeat(weights(model)["w1"] / 3, 3, axis=0), rtol=1e-6)


def test_new_neurons_of_zero_expansion_have_no_weights_and_the_others_keep_theirs() -> None:
    model = mlp(widths=(6, 4, 3))
    old, new = weights(model), weights(expand(model, layer="g0", by=1.5, method="zero").model)
    empty = ~new["w0"].any(axis=0)
    assert empty.sum() == 2 and not new["b0"][empty].any() and not new["w1"][empty].any()
    for name, kept in (("w0", new["w0"][:, ~empty]), ("b0", new["b0"][~empty]), ("w1", new["w1"][~empty])):
        assert_array_equal(kept, old[name])


def test_sharing_out_on_the_way_in_too_would_change_the_function() -> None:
    """Listing 6.2 divides whichever side it is given; behind tanh, halves of a halved input are not the whole."""
    model = mlp(widths=(6, 4, 3))
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    letter = expand(model, layer="g0", by=2).model
    for tensor in letter.graph.initializer:
        if tensor.name in ("w0", "b0"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))
    assert relative(run(model, x), run(letter, x)) > 1e-2


# -- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "choices", "line"),
    [
        (mlp(), {"layer": "g2"}, "'g2' cannot be widened: it feeds the model's output"),
        (mlp(), {"layer": "nobody"}, "'nobody' matches no layer"),
        (mlp(), {"layer": "g0", "by": 1.0}, "--by 1.0 is out of range: it is a factor above 1"),
        (mlp(), {"layer": "g0", "by": float("nan")}, "--by nan is out of range"),
        (mlp(), {"layer": "g0", "by": 1.01}, "'g0' would keep its 12 channels: give a larger factor"),
        (mlp(), {"layer": "g0", "method": "strong"}, "unknown method 'strong': choose one of weak, zero"),
        (attention.separate(), {"layer": "q"}, "'q' cannot be widened: a product of two computed tensors reads it"),
        (norms.MIXED["layer norm"][0].build(), {"layer": "h"}, "normalises over several channels"),
    ],
    ids=["the last", "no such", "no factor", "no number", "too little", "no such method", "attention", "a norm"],
)
def test_refusals_are_one_line(model: onnx.ModelProto, choices: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        expand(model, **choices)


def test_a_glob_takes_what_can_be_widened_and_says_what_cannot() -> None:
    wide = expand(mlp(), layer="*")
    assert [group.name for group in wide.report.groups] == ["g0", "g1"]
    assert wide.report.warnings == ["'g2' cannot be widened: it feeds the model's output 'y'"]


def test_a_function_that_would_change_is_not_written(tmp_path: Path) -> None:
    """Every second channel from the end: new channels come in at other places."""
    drawn = np.random.default_rng(0).standard_normal
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="h"),
        helper.make_node("Slice", ["h", "from", "to", "axes", "steps"], ["s"]),
        helper.make_node("Gemm", ["s", "v"], ["y"], name="y"),
    ]
    stored = {"w": drawn((5, 8)).astype(np.float32), "v": drawn((4, 3)).astype(np.float32)}
    numbers = {"from": [-1], "to": [-9], "axes": [1], "steps": [-2]}
    model = build(nodes, {**stored, **{k: np.array(v, np.int64) for k, v in numbers.items()}}, ("N", 5))
    with pytest.raises((InputError, UnsupportedError), match=r"cannot be widened|cannot run") as refused:
        expand(model, tmp_path / "wide.onnx", layer="h", by=1.5, method="zero")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


# -- from the command line -------------------------------------------------------------------


@METHODS
def test_the_command(method: str, run: Any, tmp_path: Path) -> None:
    model = MODELS / "digits_mlp_tanh.onnx"
    done: Ran = run("expand", model, "--layer", "/fc1/Gemm", "--by", 1.25, "--method", method, "-o", "wide.onnx")
    assert (done.code, done.err) == (0, "")
    assert "samples of noise" in done.out and done.out.endswith("wrote wide.onnx\n")
    wide, x = onnx.load(tmp_path / "wide.onnx"), np.load(MODELS / "digits_rows_test.npz")["input"]
    assert relative(outputs_of(onnx.load(model), x), outputs_of(wide, x)) < 1e-6
    said = json.loads(next(p.value for p in wide.metadata_props if p.key == "pcns_onnx"))
    assert said["method"] == method and len(said["widths"]) == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("--layer", "/fc3/Gemm", "-o", "wide.onnx"), "'/fc3/Gemm' cannot be widened: it feeds the model's output"),
        (("-o", "wide.onnx"), "Missing option '--layer'"),
        (("--layer", "/fc1/Gemm", "-o", "absent/wide.onnx"), "there is no folder 'absent'"),
    ],
    ids=["the last", "no layer", "no folder"],
)
def test_the_command_refuses_in_one_line(argv: tuple[str, ...], line: str, run: Any, tmp_path: Path) -> None:
    done: Ran = run("expand", MODELS / "digits_mlp_tanh.onnx", *argv)
    assert done.code == 2 and line in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
