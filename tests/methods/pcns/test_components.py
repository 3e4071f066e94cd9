"""The identities of PCNS: components, what they miss, and layers that are rebuilt from them."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest

from builders.activations import SIGMAS, Parameter, sigma_of
from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.methods.pcns.activations import IDENTITY, Activation
from pcns_onnx.methods.pcns.components import RebuiltLayer, components_in, expand_components, neurons_for, width_curve
from pcns_onnx.numerics.arrays import to_numpy

Array = Any
BACKENDS = pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def outputs_of(seed: int, rows: int = 300, neurons: int = 7) -> Array:
    """A layer's outputs (rows, neurons), with a mean that varies."""
    return normal(seed, rows, neurons) @ normal(seed + 1, neurons, neurons) + normal(seed + 2, neurons)


def basis_of(t: Array, xp: Any = np) -> Basis:
    return Basis.of(xp.asarray(t.mean(0)), xp.asarray(np.cov(t.T, bias=True)))


def components_of(t: Array, basis: Basis, count: int) -> tuple[Array, Array]:
    """Eigenvectors over the batch (rows, count) and the mean row (rows,)."""
    mean = t.mean(1)
    values, vectors = to_numpy(basis.values)[:count], to_numpy(basis.vectors)[:, :count]
    return (t - mean[:, None]) @ vectors / np.sqrt(values), mean


@BACKENDS
def test_eigenvectors_over_the_batch_are_orthonormal(xp: Any) -> None:
    t = outputs_of(30)
    e, _ = components_of(t, basis_of(t, xp), 6)
    np.testing.assert_allclose(e.T @ e / len(t), np.eye(6), atol=1e-9)


@BACKENDS
def test_lambda_is_what_each_neuron_has_of_each_eigenvector(xp: Any) -> None:
    t = outputs_of(31)
    basis = basis_of(t, xp)
    e, mean = components_of(t, basis, 6)
    inner = (t - mean[:, None]).T @ e / len(t)
    loads = to_numpy(basis.vectors)[:, :6] * np.sqrt(to_numpy(basis.values)[:6])
    np.testing.assert_allclose(inner, loads, atol=1e-9)


def test_the_lambda_that_the_drafts_print_counts_the_mean_twice() -> None:
    """<TO_j|EV_i> holds <mean|EV_i> too: beside the mean row, that is there once too often in every neuron."""
    t = outputs_of(31)
    basis = basis_of(t)
    e, mean = components_of(t, basis, 6)
    printed = mean[:, None] + e @ (t.T @ e / len(t)).T
    np.testing.assert_allclose(printed - t, np.outer(e @ (e.T @ mean) / len(t), np.ones(7)), atol=1e-9)
    assert np.linalg.norm(printed - t) > 0.05 * np.linalg.norm(t)


@BACKENDS
def test_all_components_and_the_mean_rebuild_the_outputs(xp: Any) -> None:
    t = outputs_of(32)
    basis = basis_of(t, xp)
    e, mean = components_of(t, basis, 6)
    loads = to_numpy(basis.vectors)[:, :6] * np.sqrt(to_numpy(basis.values)[:6])
    np.testing.assert_allclose(e @ loads.T + mean[:, None], t, atol=1e-9)
    assert float(basis.values[6]) == pytest.approx(0.0, abs=1e-9)  # centring takes one dimension


@pytest.mark.parametrize("sigma", [IDENTITY, sigma_of("Relu", {})], ids=lambda s: str(s.name))
def test_the_curve_is_the_variance_that_the_components_miss(sigma: Activation) -> None:
    t = outputs_of(33)
    basis = basis_of(t)
    curve = width_curve(basis, sigma)
    centred = t - t.mean(1)[:, None]
    for width in range(1, 7):
        count = components_in(width, sigma)
        kept = basis.vectors[:, :count]
        rest = centred - centred @ kept @ kept.T
        assert curve[width] == pytest.approx((rest**2).sum() / (centred**2).sum(), abs=1e-9)
    assert curve[0] == 1.0 and curve[7] == 0.0 and (np.diff(curve) <= 0).all()


@pytest.mark.parametrize("sigma", [IDENTITY, sigma_of("Tanh", {}), sigma_of("Relu", {})], ids=lambda s: str(s.name))
@pytest.mark.parametrize("count", [0, 1, 5])
def test_components_fit_into_the_neurons_that_carry_them(sigma: Activation, count: int) -> None:
    width = neurons_for(count, sigma)
    assert components_in(width, sigma) == count
    assert width == 1 or components_in(width - 1, sigma) == count - 1


def test_the_number_of_components_reaches_the_variance() -> None:
    basis = Basis(np.array([6.0, 3.0, 0.9, 0.1, 0.0]), np.eye(5))
    assert [basis.components(share) for share in (0.5, 0.9, 0.95, 0.999, 1.0)] == [1, 2, 3, 4, 4]


@BACKENDS
def test_without_an_activation_a_planted_rank_needs_one_more_neuron(xp: Any) -> None:
    """t of rank 3, its mean row included, is rebuilt by 3 + 1 neurons; by fewer it is not."""
    x = normal(34, 200, 5)
    weight = normal(35, 5, 3) @ normal(36, 3, 8)
    t = x @ weight
    own = xp.asarray(np.hstack([weight.T, np.zeros((8, 1))]))
    errors = []
    for width in (4, 3):
        new = expand_components(xp.asarray(x), xp.asarray(t), own, basis_of(t, xp), IDENTITY, width)
        made = x @ to_numpy(new.matrix).T + to_numpy(new.bias)
        back = made @ to_numpy(new.projection).T + to_numpy(new.offset)
        errors.append(float(np.linalg.norm(back - t) / np.linalg.norm(t)))
    assert errors[0] < 1e-5 < 1e-2 < errors[1]


def rebuilt(xp: Any, sigma: Activation, width: int) -> tuple[float, RebuiltLayer]:
    """Relative error of the outputs when a layer of 6 is rebuilt with `width` neurons, and the new layer."""
    x = 0.7 * normal(37, 250, 4)
    weight = 0.3 * normal(38, 6, 5)
    t = sigma.forward(x @ weight[:, :4].T + weight[:, 4])
    new = expand_components(xp.asarray(x), xp.asarray(t), xp.asarray(weight), basis_of(t, xp), sigma, width)
    made = sigma.forward(x @ to_numpy(new.matrix).T + to_numpy(new.bias))
    back = made @ to_numpy(new.projection).T + to_numpy(new.offset)
    return float(np.linalg.norm(back - t) / np.linalg.norm(t - t.mean(0))), new


@BACKENDS
@SIGMAS
def test_at_full_width_a_layer_is_solved_back(xp: Any, op: str, attrs: dict[str, float], slope: Parameter) -> None:
    error, new = rebuilt(xp, sigma_of(op, attrs, slope), 6)
    assert error < 1e-6
    assert new.matrix.shape == (6, 4)


@SIGMAS
@pytest.mark.parametrize("width", [5, 3])
def test_a_rebuilt_layer_is_the_same_in_any_array_namespace(
    op: str, attrs: dict[str, float], slope: Parameter, width: int
) -> None:
    sigma = sigma_of(op, attrs, slope)
    (error, new), (_, other) = rebuilt(np, sigma, width), rebuilt(array_api_strict, sigma, width)
    assert error < 1.0
    assert len(new.errors) == len(new.plain_errors) == neurons_for(components_in(width, sigma), sigma)
    for field in ("matrix", "bias", "projection", "offset", "errors", "plain_errors"):
        found, expected = to_numpy(getattr(other, field)), getattr(new, field)
        np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-5, atol=1e-7, err_msg=field)


@pytest.mark.parametrize("op", ["LeakyRelu", "Relu"])
def test_minding_what_sigma_does_beats_plain_least_squares(op: str) -> None:
    _, new = rebuilt(np, sigma_of(op, {}), 5)
    assert np.linalg.norm(new.errors) < 0.7 * np.linalg.norm(new.plain_errors)
