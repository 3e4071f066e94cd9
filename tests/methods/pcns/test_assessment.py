"""Is PCNS worth running, and on how many samples? Answers before anything is changed, and proofs afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

from builders.models import MODELS, Array, build, relative, run
from pcns_onnx import InputError, inspect, shrink
from pcns_onnx.cli.main import cli
from pcns_onnx.methods.pcns.activations import IDENTITY, Activation, activation
from pcns_onnx.methods.pcns.batch_size import SIZES, Draw, draws, probability
from pcns_onnx.numerics.confidence import quantile_bound, share_bound
from pcns_onnx.report.schema import Inspection

LEAKY, ROWS = MODELS / "digits_mlp_leaky.onnx", MODELS / "digits_rows.npz"


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def leaky_net(x: Array, width: int = 12) -> tuple[Any, Array]:
    """A net of one hidden layer, and that layer's outputs for x."""
    w, b, v = normal(1, x.shape[1], width), normal(2, width), normal(3, width, 4)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["s"], name="one"),
        helper.make_node("LeakyRelu", ["s"], ["t"], alpha=0.1),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    s = x @ w + b
    return build(nodes, {"w": w, "b": b, "v": v}, ("N", x.shape[1])), np.where(s > 0, s, 0.1 * s)


# -- 3.1: the eigenvalues, before anything is changed ------------------------------------------


def test_the_assessment_has_the_eigenvalues_of_the_transposed_outputs() -> None:
    """Those of an eigen-decomposition that was never streamed: of T itself, centred across neurons."""
    x = normal(4, 200, 6)
    model, t = leaky_net(x)
    (assessment,) = inspect(model, x).pcns
    centred = t.astype(np.float64) - t.mean(axis=1, keepdims=True)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    np.testing.assert_allclose(assessment.eigenvalues, values / values.sum(), atol=1e-6)
    assert (assessment.name, assessment.width, assessment.inputs, assessment.reason) == ("one", 12, 6, None)
    for share, count in assessment.eigenvectors.items():
        assert np.cumsum(values)[count - 1] >= float(share) * values.sum() * (1 - 1e-6)
        assert count == 1 or np.cumsum(values)[count - 2] < float(share) * values.sum()
        assert assessment.neurons is not None and assessment.neurons[share] == min(count + 1, 12)


def test_data_of_known_rank_has_that_many_eigenvectors() -> None:
    """Rank 3 behind a layer without an activation: 3 directions, and the mean row costs or saves at most one."""
    x = normal(5, 300, 3) @ normal(6, 3, 9)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    model = build(nodes, {"w": normal(7, 9, 16), "v": normal(8, 16, 2)}, ("N", 9))
    found = inspect(model, x, variance=1 - 1e-6)
    assert found.pcns[0].eigenvectors["0.999999"] == 3
    assert found.layers[0].dimensions is not None and found.layers[0].dimensions["0.9999"] <= 3


def test_the_width_that_shrink_makes_was_foretold() -> None:
    foretold = {layer.name: layer.neurons for layer in inspect(LEAKY, ROWS, variance=0.97, samples=400).pcns}
    made = shrink(LEAKY, ROWS, variance=0.97, samples=400, holdout=0.0, method="pcns", multiple=1).plan.groups
    assert {name: entry.width for name, entry in made.items()} == {n: w["0.97"] for n, w in foretold.items() if w}


def test_what_pcns_cannot_rebuild_says_why() -> None:
    found = inspect(MODELS / "digits_cnn.onnx", MODELS / "digits_images.npz", samples=100)
    assert {layer.reason for layer in found.pcns} == {None}
    w = {"w": normal(1, 5, 7), "v": normal(2, 7, 2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mish", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    (layer,) = inspect(build(nodes, w, ("N", 5), opset=18), normal(3, 50, 5)).pcns
    assert layer.reason is not None and "Mish" in layer.reason and layer.neurons is None


# -- section 6: other layers around it -----------------------------------------------------------


def test_batch_norm_and_dropout_are_as_if_they_were_not_there() -> None:
    """BN is folded into the layer before it and Dropout does nothing at inference: PCNS finds the same network."""
    x, rng = normal(12, 60, 3, 6, 6), np.random.default_rng(13)
    w, b, v = normal(14, 8, 3, 3, 3), normal(15, 8), normal(16, 4, 8, 3, 3)
    scale, shift, mean, spread = (rng.uniform(0.5, 1.5, 8).astype(np.float32) for _ in range(4))
    last = helper.make_node("Conv", ["t", "v"], ["y"])
    leaky = helper.make_node("LeakyRelu", ["s"], ["a"], alpha=0.1)
    normed = build(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["h"]),
            helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["s"], epsilon=1e-5),
            leaky,
            helper.make_node("Dropout", ["a"], ["t"]),
            last,
        ],
        {"w": w, "b": b, "v": v, "scale": scale, "shift": shift, "mean": mean, "var": spread},
        ("N", 3, 6, 6),
    )
    factor = scale / np.sqrt(spread + np.float32(1e-5))
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["s"]), leaky, helper.make_node("Identity", ["a"], ["t"]), last]
    folded = {"w": w * factor[:, None, None, None], "b": (b - mean) * factor + shift, "v": v}
    plain = build(nodes, folded, ("N", 3, 6, 6))
    made = [run(shrink(model, x, width=0.5, method="pcns", multiple=1).model, x) for model in (normed, plain)]
    assert relative(made[0], made[1]) < 1e-4
    assert relative(run(normed, x), made[0]) > 1e-3  # it was narrowed


# -- 3.2: batch size ---------------------------------------------------------------------------


def drawn(sigma: Activation, rank: int | None = None, count: int = 4, seed: int = 0) -> list[Draw]:
    """Draws on a layer of 10 neurons with 8 inputs (of a rank, if it is given)."""
    x = normal(9, 400, 8) if rank is None else normal(9, 400, rank) @ normal(10, rank, 8)
    weight = normal(11, 10, 9).astype(np.float64)
    t = sigma.forward(x @ weight[:, :8].T + weight[:, 8])
    return list(draws(x, t, weight, sigma, 0.9999, count, (seed,)))


def leaky() -> Activation:
    found = activation("LeakyRelu", {"alpha": 0.1})
    assert found is not None
    return found


def test_batches_of_every_size_are_drawn_as_long_as_there_are_rows() -> None:
    assert {d.rows for d in drawn(leaky())} == {round(10 * s) for s in SIZES if 10 * s <= 300}
    assert len(drawn(leaky(), count=3)) == 3 * len({d.rows for d in drawn(leaky())})


def test_without_an_activation_nothing_is_missed_anywhere() -> None:
    """Rank 3: a batch that spans it is as good as all samples."""
    assert max(d.new_error for d in drawn(IDENTITY, rank=3) if d.rows >= 10) < 0.02
    assert all(d.neurons <= 5 for d in drawn(IDENTITY, rank=3))


def test_a_small_batch_is_learnt_by_heart() -> None:
    found = drawn(leaky(), count=8)
    small, large = ([d for d in found if d.rows == rows] for rows in (5, 200))
    gap = [float(np.median([d.new_error - d.batch_error for d in some])) for some in (small, large)]
    assert gap[0] > 3 * abs(gap[1])
    assert np.median([d.new_error for d in small]) > np.median([d.new_error for d in large])


def test_draws_depend_on_the_seed_alone() -> None:
    assert drawn(leaky()) == drawn(leaky()) != drawn(leaky(), seed=1)


def test_the_probability_is_a_share_of_the_draws_that_looked_good() -> None:
    found = [Draw(10, 3, 0.1, 0.2), Draw(10, 3, 0.1, 0.4), Draw(10, 3, 0.5, 0.1), Draw(20, 3, 0.1, 0.1)]
    assert probability(found, 10, 0.3, 0.1) == 0.5
    assert probability(found, 10, 0.3, 0.6) == pytest.approx(2 / 3)
    assert probability(found, 20, 0.3, 0.05) is None
    assert probability(found, 10, 1.0, 1.0) == 1.0


def test_inspect_prints_trials_and_only_where_they_are_asked_for(tmp_path: Path) -> None:
    x = normal(4, 300, 6)
    model, _ = leaky_net(x)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    np.save(tmp_path / "x.npy", x)
    base = ["inspect", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npy"), "--variance", "0.95"]
    plain, tried = (CliRunner().invoke(cli, [*base, *more]) for more in ([], ["--trials", "2"]))
    assert plain.exit_code == tried.exit_code == 0
    assert "pcns on batches of" in tried.output and "pcns on batches of" not in plain.output
    assert "95 %" in plain.output and "rows/inputs" in tried.output
    none = CliRunner().invoke(cli, [*base, "--trials", "2", "--exclude", "one"])
    assert "pcns on batches of" not in none.output
    said = CliRunner().invoke(cli, [*base, "--trials", "2", "--json"])
    (layer,) = msgspec.json.decode(said.output, type=Inspection).pcns
    assert [trial.rows for trial in layer.trials] == [6, 12, 24, 60, 120]
    assert all(trial.seen_error >= 0 and trial.new_error <= trial.worst_new_error for trial in layer.trials)


def test_a_number_of_trials_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="--trials 0 is too small"):
        inspect(LEAKY, ROWS, trials=0)


# -- what held-out samples prove ---------------------------------------------------------------


@pytest.mark.parametrize(("count", "of"), [(0, 59), (0, 1), (3, 40), (17, 500), (499, 500)])
def test_at_the_bound_so_few_hits_would_be_unlikely(count: int, of: int) -> None:
    """Clopper and Pearson's definition: P(Binomial(n, bound) <= k) is 5 %."""
    from scipy.stats import binom

    bound = share_bound(count, of)
    assert count / of < bound < 1
    assert binom.cdf(count, of, bound) == pytest.approx(0.05, rel=1e-6)


def test_where_everything_was_hit_nothing_is_proved() -> None:
    assert share_bound(7, 7) == 1.0


def test_59_samples_prove_the_first_quantile() -> None:
    assert quantile_bound(np.arange(58.0)) is None and quantile_bound(np.zeros(0)) is None
    assert quantile_bound(np.arange(59.0)) == 58.0


def test_bounds_hold_in_19_of_20_worlds() -> None:
    """Many held-out sets from a world that is known: the bounds are wrong in about 5 % of them, not more."""
    rng = np.random.default_rng(0)
    wrong = [0, 0]
    for _ in range(2000):
        values = rng.exponential(size=100)
        bound = quantile_bound(values)
        assert bound is not None
        wrong[0] += bool(bound < -np.log(0.05))
        wrong[1] += share_bound(int((values > 2.0).sum()), 100) < float(np.exp(-2.0))
    assert 0 < wrong[0] / 2000 < 0.065 and 0 < wrong[1] / 2000 < 0.065


def test_only_samples_that_were_held_out_prove_anything() -> None:
    kept = shrink(LEAKY, ROWS, width=0.5, samples=800, holdout=0.25).report.agreement.outputs[0]
    assert kept.argmax_bound is not None and kept.argmax_agreement is not None and kept.error_bound is not None
    assert 1 - kept.argmax_agreement < kept.argmax_bound < 1
    assert kept.error_bound > (kept.relative_error or 0)
    seen = shrink(LEAKY, ROWS, width=0.5, samples=800, holdout=0.0).report.agreement.outputs[0]
    assert seen.argmax_bound is None and seen.error_bound is None


def test_the_bound_holds_on_data_that_was_never_touched() -> None:
    """The drop of accuracy on the test file is within what the held-out rows proved."""
    small = shrink(LEAKY, ROWS, width=0.4, method="pcns", holdout=0.3)
    fresh = shrink(LEAKY, ROWS, width=0.4, method="pcns", holdout=0.3, eval=MODELS / "digits_rows_test.npz")
    bound = small.report.agreement.outputs[0].argmax_bound
    drop = fresh.report.agreement.drop
    assert bound is not None and drop is not None and drop <= 100 * bound


def test_the_report_shows_each_eigenvectors_least_squares(tmp_path: Path) -> None:
    """3.4: the L2 distance of the generated eigenvectors from those that were wanted."""
    out = str(tmp_path / "small.onnx")
    base = ["shrink", str(LEAKY), "--data", str(ROWS), "--samples", "400", "--width", "0.3", "-o", out]
    said = {m: CliRunner().invoke(cli, [*base, "--method", m]).output for m in ("pcns", "obs")}
    assert "eigenvectors: median, worst" in said["pcns"] and "eigenvectors: median" not in said["obs"]
    assert all("of new samples (95 % confidence)" in text for text in said.values())
