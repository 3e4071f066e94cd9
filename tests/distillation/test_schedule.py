"""How long, in what steps, at what rate."""

from __future__ import annotations

import pytest

from pcns_onnx.distillation.schedule import LEAST, MOST, POINTS, TURNS, Schedule, is_lost, peak_rates, suitable


def test_small_models_are_shown_more_and_large_ones_less() -> None:
    lengths = [suitable(macs // 2, macs, 10**6, unknown=False) for macs in (10**5, 4 * 10**7, 10**10)]
    assert lengths == [MOST, 25000, LEAST]
    assert suitable(0, 0, 10**6, unknown=True) == 24_000


@pytest.mark.parametrize("samples", [1, 7, 50])
def test_few_samples_are_not_shown_for_ever(samples: int) -> None:
    assert suitable(1000, 2000, samples, unknown=False) == suitable(0, 0, samples, unknown=True) == TURNS * samples


def test_short_runs_take_smaller_steps() -> None:
    assert [Schedule.of(n, None).batch for n in (100, 6_000, 240_000)] == [16, 30, 64]
    assert Schedule.of(100, 128).batch == 128


@pytest.mark.parametrize("updates", [1, 16, 700, 24_000])
def test_the_rate_rises_then_falls_to_nothing(updates: int) -> None:
    plan = Schedule.of(updates, None)
    factors = [plan.factor(step) for step in range(plan.steps)]
    assert all(0 < factor <= 1 for factor in factors)
    if plan.steps > 100:
        assert factors[0] < 0.2 < 0.95 < max(factors) and factors[-1] < 0.001
    assert plan.points[-1] == plan.steps and len(plan.points) == min(POINTS, plan.steps)
    assert plan.factor(plan.steps // 2, since=plan.steps // 2) <= plan.factor(plan.steps // 2)


def test_a_rate_follows_the_size_of_its_tensor_and_zeros_move_too() -> None:
    rates = peak_rates({"w": 0.05, "tiny": 1e-5, "bias": 0.0})
    assert rates["w"] == pytest.approx(5e-4)
    assert rates["bias"] == rates["tiny"] == pytest.approx(0.01 * 0.02 * 0.025005, rel=1e-3)
    scaled = peak_rates({"w": 50.0, "tiny": 1e-2, "bias": 0.0})
    assert scaled == pytest.approx({name: 1000 * rate for name, rate in rates.items()})


def test_a_run_is_lost_where_it_says_less_than_it_did_by_far() -> None:
    assert is_lost(float("nan"), 0.1) and is_lost(float("inf"), 0.1) and is_lost(0.31, 0.1)
    assert not is_lost(0.17, 0.1) and not is_lost(0.04, 0.001)


def test_models_with_attention_go_several_times_through_their_samples() -> None:
    lengths = [suitable(10**9, 10**9, samples, unknown=False, attends=True) for samples in (1000, 4000, 10**6)]
    assert lengths == [LEAST, 20_000, 40_000]
    assert suitable(10**5, 10**5, 10**6, unknown=False, attends=True) == MOST


def test_models_with_attention_move_no_tensor_faster_than_a_matrix() -> None:
    sizes = {"a": 0.05, "b": 0.06, "c": 0.2, "gain": 0.9, "bias": 0.0}
    plain, calm = peak_rates(sizes), peak_rates(sizes, ["a", "b", "c"])
    assert calm["a"] == pytest.approx(plain["a"] / 3)
    assert calm["b"] == calm["c"] == calm["gain"] == pytest.approx(plain["b"] / 3) == pytest.approx(2e-4)
    assert 0 < calm["bias"] < calm["a"]
    twice = peak_rates({name: 2 * size for name, size in sizes.items()}, ["a", "b", "c"])
    assert twice == pytest.approx({name: 2 * rate for name, rate in calm.items()})
