"""EigenRemove and minimum weight selection: what the thesis states of them, and running without samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from onnx import numpy_helper

from builders import topologies
from builders.commands import Ran
from builders.mlp import mlp
from builders.models import MODELS, Array, relative, run
from builders.surgery import sample
from pcns_onnx import InputError, NothingToShrinkError, shrink
from pcns_onnx.api.options import Options
from pcns_onnx.methods.data_free.low_rank_weights import by_norm, truncated

METHODS = pytest.mark.parametrize("method", ["eigenremove", "min-weight"])
CNN, MLP = MODELS / "digits_cnn.onnx", MODELS / "digits_mlp_leaky.onnx"
NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": lambda: onnx.load(MLP),
    "cnn": lambda: onnx.load(CNN),
    "residual": topologies.residual,
    "shuffle": topologies.shuffle,
    "grouped": lambda: topologies.grouped(2),
}


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


# -- the maths -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_a_matrix_is_cut_to_its_truncated_svd(shape: tuple[int, int], rng: np.random.Generator) -> None:
    matrix = rng.standard_normal(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    for ratio, rank in ((0.5, 4), (0.25, 2), (0.01, 1)):
        assert_allclose(truncated(matrix, 1, ratio), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-10)


def test_a_kernel_loses_at_most_what_both_channel_modes_lose(rng: np.random.Generator) -> None:
    tensor = rng.standard_normal((8, 9, 6))
    lost = float(((truncated(tensor.reshape(8, -1), 9, 0.5).reshape(tensor.shape) - tensor) ** 2).sum())
    tails = []
    for mode, rank in ((0, 4), (2, 3)):
        unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
        tails.append(float((np.linalg.svd(unfolded, compute_uv=False)[rank:] ** 2).sum()))
    assert max(tails) <= lost <= sum(tails)
    ranks = [np.linalg.matrix_rank(np.moveaxis(truncated(tensor.reshape(8, -1), 9, 0.5).reshape(tensor.shape), m, 0)
             .reshape(tensor.shape[m], -1)) for m in (0, 2)]  # fmt: skip
    assert ranks == [4, 3]


def test_a_kernel_of_low_rank_and_any_at_full_rank_stay_what_they_are(rng: np.random.Generator) -> None:
    low = np.einsum(
        "ka,atb,bc->ktc", rng.standard_normal((8, 2)), rng.standard_normal((2, 9, 2)), rng.standard_normal((2, 6))
    )
    assert_allclose(truncated(low.reshape(8, -1), 9, 0.34), low.reshape(8, -1), atol=1e-10)
    matrix = rng.standard_normal((8, 54))
    assert_array_equal(truncated(matrix, 9, 1.0), matrix)


def test_the_curve_is_what_slicing_loses(rng: np.random.Generator) -> None:
    whole = rng.standard_normal((5, 8))
    low = truncated(whole, 1, 0.6)
    found = by_norm(*((w * w).sum(axis=0) for w in (low, whole, whole - low)))
    for width in range(8):
        kept = np.zeros_like(whole)
        kept[:, found.order[:width]] = low[:, found.order[:width]]
        assert found.error[width] == pytest.approx(((whole - kept) ** 2).sum() / (whole**2).sum())
    assert found.error[8] == 0
    norms = np.linalg.norm(low, axis=0)[found.order]
    assert (np.diff(norms) <= 0).all()


# -- the methods -----------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_at_full_rank_eigenremove_is_minimum_weight_selection(net: str) -> None:
    model = NETS[net]()
    full = shrink(model, method="eigenremove", rank_ratio=1.0, width=0.5, multiple="1", batch=4, refine=0)
    least = shrink(model, method="min-weight", width=0.5, multiple="1", batch=4, refine=0)
    assert full.plan.groups == least.plan.groups
    a, b = weights(full.model), weights(least.model)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    onnx.checker.check_model(full.model, full_check=True)
    assert full.report.after.macs < full.report.before.macs


@METHODS
def test_neurons_that_nothing_reads_go_for_nothing(method: str) -> None:
    model, x = mlp(), np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    heard = np.arange(12, dtype=np.float32)[:, None] % 2  # every second neuron of the first layer
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * heard, "w1"))
    more: dict[str, Any] = {} if method == "min-weight" else {"rank_ratio": 1.0}
    small = shrink(model, method=method, width=0.5, include="g0", **more, refine=0)
    assert small.plan.groups["g0"].keep == [1, 3, 5, 7, 9, 11]
    assert small.plan.groups["g0"].error == pytest.approx(0, abs=1e-12)
    assert relative(run(model, x), run(small.model, x)) < 1e-6


def test_eigenremove_puts_the_low_rank_weights_in_the_place_of_both_sides() -> None:
    model = mlp(widths=(6, 12, 8, 3))
    small = weights(shrink(model, method="eigenremove", rank_ratio=0.5, width=0.5, include="g1", refine=0).model)
    whole = weights(model)
    keep = shrink(model, method="eigenremove", rank_ratio=0.5, width=0.5, include="g1", refine=0).plan.groups["g1"].keep
    assert_array_equal(small["w0"], whole["w0"])
    assert_allclose(small["w1"], truncated(whole["w1"].astype(np.float64), 1, 0.5)[:, keep], rtol=1e-4, atol=1e-6)
    assert_allclose(small["w2"], truncated(whole["w2"].astype(np.float64), 1, 0.5)[keep], rtol=1e-4, atol=1e-6)


@METHODS
def test_a_budget_is_met_and_its_plan_replays_to_the_same_bytes(method: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"rank_ratio": 0.6} if method == "eigenremove" else {}
    first = shrink(CNN, method=method, budget="macs=0.5", batch=4, plan_out=tmp_path / "plan.json", **more, refine=0)
    again = shrink(CNN, method=method, budget="macs=0.5", batch=4, **more, refine=0)
    replayed = shrink(CNN, plan=tmp_path / "plan.json", batch=4, refine=0)
    assert first.report.after.macs <= 0.5 * first.report.before.macs
    assert first.model.SerializeToString() == again.model.SerializeToString() == replayed.model.SerializeToString()
    assert json.loads((tmp_path / "plan.json").read_text()).get("rank_ratio") == more.get("rank_ratio")
    onnx.checker.check_model(first.model, full_check=True)


@METHODS
def test_a_refit_on_data_helps(method: str) -> None:
    x = np.load(MODELS / "digits_images.npz")["input"][:200]
    plain, solved = (
        shrink(CNN, x, method=method, width=0.5, refit=refit, holdout=0.2, refine=0).report for refit in (False, True)
    )
    assert solved.agreement.error < 0.5 * plain.agreement.error
    assert all(group.fits for group in solved.groups) and not any(group.fits for group in plain.groups)


def test_without_data_the_report_says_that_nothing_was_checked() -> None:
    report = shrink(MLP, method="min-weight", width=0.5, refine=0).report
    assert report.agreement.samples == 0 and report.agreement.outputs == [] and np.isnan(report.agreement.error)
    (warning,) = report.warnings
    assert warning.startswith("nothing was checked: there are no samples")
    labelled = shrink(MLP, method="min-weight", width=0.5, eval=MODELS / "digits_rows_test.npz", refine=0).report
    assert ["accuracy falls from" in text for text in labelled.warnings] == [True] and labelled.agreement.samples == 500
    given = shrink(MLP, MODELS / "digits_rows_test.npz", method="min-weight", width=0.5, refine=0).report
    assert given.agreement == labelled.agreement


def test_open_sizes_are_asked_for_and_taken() -> None:
    model = topologies.residual()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"s{axis}"
    with pytest.raises(InputError, match="input 'x' has open sizes: say them with --shape x="):
        shrink(model, method="min-weight", width=0.5, refine=0)
    small = shrink(model, method="min-weight", width=0.5, shape="x=1x3x6x6", batch=2, refine=0)
    assert run(small.model, sample(topologies.residual())).size


def test_what_has_no_outgoing_weights_is_left_alone() -> None:
    from builders import attention

    model = attention.separate()
    small = shrink(model, method="min-weight", width=0.5, multiple="1", batch=2, refine=0)
    reasons = {name: left.reason for left in small.report.left_alone for name in left.layers}
    assert "there are no outgoing weights to go by" in reasons["q"]
    with pytest.raises(NothingToShrinkError):
        shrink(model, method="min-weight", width=0.5, include="q", batch=2, refine=0)


# -- from the command line -------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp_tanh", "digits_mlp_leaky"])
def test_the_command_runs_without_data(method: str, name: str, run: Any, tmp_path: Path) -> None:
    done: Ran = run("shrink", MODELS / f"{name}.onnx", "--method", method, "--width", 0.5, "-o", "small.onnx")
    assert done.code == 0 and done.err.startswith("warning: nothing was checked")
    small = onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(small, full_check=True)
    said = json.loads(next(p.value for p in small.metadata_props if p.key == "pcns_onnx"))
    assert said["method"] == method and said.get("rank_ratio") == (0.75 if method == "eigenremove" else None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a ratio for another method": ({"method": "min-weight", "rank_ratio": 0.5}, "'min-weight' has none"),
    "a ratio for the default": ({"rank_ratio": 0.5, "data": MODELS / "digits_rows.npz"}, "'obs' has none"),
    "a ratio of nothing": ({"method": "eigenremove", "rank_ratio": 0.0}, "--rank-ratio 0 is out of range"),
    "a re-fit on nothing": ({"method": "eigenremove", "refit": True}, "--refit solves on samples"),
    "refinement without a re-fit": ({"method": "min-weight", "refine": 9}, "--refine comes after a re-fit"),
    "an order": ({"method": "eigenremove", "order": "descending"}, "choices of method pcns"),
    "a gate without samples": ({"method": "min-weight", "max_error": 0.1}, "--max-error is checked on samples"),
    "no samples": ({}, "method 'auto' looks at what neurons do: give samples with --data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_choices_that_do_not_go_together_are_refused(case: str) -> None:
    choices, line = REFUSED[case]
    choices = {"width": 0.5, **choices}
    data = choices.pop("data", None)
    with pytest.raises(InputError, match=line):
        shrink(MLP, data, **{"refine": 0, **choices})


def test_a_share_of_variance_needs_data() -> None:
    with pytest.raises(InputError, match="--variance looks at what neurons do, 'min-weight' does not"):
        shrink(MLP, method="min-weight", variance=0.99, refine=0)
    assert Options().goal.rank_ratio is None
