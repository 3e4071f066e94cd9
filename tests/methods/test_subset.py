"""What the methods promise, against brute force: the curves, the order, the identities of PCNS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from pcns_onnx.calibration.group_inputs import in_own_scale
from pcns_onnx.calibration.ranking import Rank, Ranking, ReaderStats, mixing
from pcns_onnx.methods.subset import interpolative, obs
from pcns_onnx.numerics.arrays import to_numpy

Array = Any
BACKENDS = pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
RANKS = pytest.mark.parametrize(
    "rank", [obs.rank_by_surgeon, interpolative.rank_by_pivots], ids=["obs", "interpolative"]
)
QUICK = settings(max_examples=12, deadline=None)
MANY = 10**9  # rows: the damping is then its least


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices are faster on one."""
    with threadpool_limits(1):
        yield


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def problem(seed: int, channels: int, taps: int = 1, outputs: int = 5, rows: int = 400) -> tuple[Array, Array]:
    """Correlated inputs x (rows, channels*taps), centred, and a reader V (outputs, channels*taps)."""
    n = channels * taps
    mix = normal(seed, n, n) * np.exp(0.7 * normal(seed + 1, n))
    x = normal(seed + 2, rows, n) @ mix
    return x - x.mean(0), normal(seed + 3, outputs, n)


def reading(
    x: Array, v: Array, taps: int = 1, xp: Any = np, rows: int = MANY, places: Array | None = None
) -> ReaderStats:
    return ReaderStats(xp.asarray(x.T @ x / len(x)), xp.asarray(v), taps, rows, places)


def columns(channels: Array, taps: int) -> Array:
    return (np.asarray(channels)[:, None] * taps + np.arange(taps)).reshape(-1)


def lost(x: Array, v: Array, taps: int, keep: Array) -> float:
    """Share of the reader's output variance missed by least squares from the kept channels."""
    y = x @ v.T
    kept = x[:, columns(keep, taps)]
    rest = y - kept @ np.linalg.lstsq(kept, y, rcond=None)[0] if len(keep) else y
    return float((rest * rest).sum() / (y * y).sum())


Problems = Sequence[tuple[Array, Array, int]]


def several(seed: int, channels: int, taps: Sequence[int]) -> Problems:
    return [(*problem(seed + 10 * i, channels, t), t) for i, t in enumerate(taps)]


def rank_all(rank: Rank, problems: Problems, xp: Any = np) -> Ranking:
    (channels,) = {x.shape[1] // taps for x, _, taps in problems}
    return rank([reading(x, v, taps, xp) for x, v, taps in problems], channels)


def lost_all(problems: Problems, keep: Array) -> float:
    return float(np.mean([lost(x, v, taps, keep) for x, v, taps in problems]))


# -- readings --------------------------------------------------------------------------------


@BACKENDS
@pytest.mark.parametrize("taps", [1, 3])
def test_a_reading_knows_its_channels(xp: Any, taps: int) -> None:
    x, v = problem(0, 6, taps)
    seen = reading(x, v, taps, xp)
    assert seen.channels == 6
    assert seen.output_variance() == pytest.approx(float(np.var(x @ v.T, axis=0).sum()))
    split = x.reshape(len(x), 6, taps)
    expected = np.mean([np.cov(split[:, :, t].T, bias=True) for t in range(taps)], axis=0)
    np.testing.assert_allclose(to_numpy(seen.channel_covariance()), expected, rtol=1e-10, atol=1e-10)
    energy = (v.reshape(len(v), 6, taps) ** 2).sum((0, 2))
    np.testing.assert_allclose(to_numpy(seen.channel_energy()), energy, rtol=1e-12)


@BACKENDS
def test_mixing_is_least_squares_from_the_kept_channels(xp: Any) -> None:
    x, _ = problem(1, 7)
    keep = np.array([1, 2, 5], dtype=np.int64)
    mix = to_numpy(mixing(xp.asarray(x.T @ x / len(x)), keep))
    np.testing.assert_allclose(mix, np.linalg.lstsq(x[:, keep], x, rcond=None)[0].T, atol=1e-6)
    np.testing.assert_allclose(mix[keep], np.eye(3), atol=1e-6)


def test_mixing_keeps_copies_where_rows_are_fewer_than_channels() -> None:
    """Eight rows tell nothing of sixteen channels, but that each stands there twice."""
    x = np.repeat(normal(3, 8, 16), 2, axis=1) * np.tile([1.0, -3.0], 16)
    keep = np.arange(0, 32, 2)
    expected = np.repeat(np.eye(16), 2, axis=0) * np.tile([1.0, -3.0], 16)[:, None]
    np.testing.assert_allclose(mixing(np.cov(x.T), keep), expected, rtol=1e-6)
    assert np.array_equal(mixing(np.cov(x.T), np.arange(32)), np.eye(32)), "what is kept is itself"


def test_mixing_is_as_good_for_weak_channels() -> None:
    x = normal(4, 60, 6)
    x[:, 4:] = x[:, :2] @ [[1, 2], [3, -1]]
    x[:, [0, 1]] *= 1e-6
    mix = mixing(np.cov(x.T), np.array([0, 1, 2, 3]))
    np.testing.assert_allclose(mix[4:, :2], [[1e6, 3e6], [2e6, -1e6]], rtol=1e-6)
    np.testing.assert_allclose(mix[:2], np.eye(4)[:2])


# -- what is exact ---------------------------------------------------------------------------


def ranked(x: Array, v: Array, taps: int = 1, values: int | None = None, rank: Rank = obs.rank_by_surgeon) -> Ranking:
    x = x - x.mean(0)
    return rank([ReaderStats(x.T @ x / len(x), v, taps, len(x), values=values)], len(x.T) // taps)


def exact(ranking: Ranking, width: int) -> bool:
    """Whether the curve is zero down to this width and not below."""
    return bool((ranking.error[width:] == 0).all()) and ranking.error[width - 1] > 0


@RANKS
def test_copies_go_first_where_samples_are_fewer_than_columns(rank: Rank) -> None:
    """Eight channels twice, 36 positions each, 40 samples: a Conv that is read through Flatten."""
    x, v = np.repeat(normal(1, 40, 8, 36), 2, axis=1).reshape(40, -1), normal(2, 5, 16 * 36)
    ranking = ranked(x, v, 36, values=40 * 36, rank=rank)
    assert sorted(ranking.keep(8) // 2) == list(range(8))
    assert exact(ranking, 8)


@RANKS
def test_a_rank_that_is_that_of_the_rows_says_nothing(rank: Rank) -> None:
    x, v = normal(3, 12, 32), normal(4, 5, 32)
    assert (ranked(x, v).error[:-1] > 0).all()
    x[:, 16:] = x[:, :16]
    ranking = ranked(x, v, rank=rank)
    assert sorted(ranking.keep(16) % 16) == list(range(16)), "copies are copies all the same"
    assert (ranking.error[16:] == 0).all()


@pytest.mark.parametrize("taps", [1, 9])
def test_combinations_go_first(taps: int) -> None:
    x, v = normal(5, 200, 12, taps), normal(6, 5, 12 * taps)
    x[:, 8:] = np.einsum("rct,cd->rdt", x[:, :8], normal(7, 8, 4))
    ranking = ranked(x.reshape(200, -1), v, taps)
    assert exact(ranking, 8)
    assert lost(x.reshape(200, -1) - x.reshape(200, -1).mean(0), v, taps, ranking.keep(8)) < 1e-12


def test_what_holds_at_some_taps_only_is_no_copy() -> None:
    x, v = normal(8, 300, 6, 4), normal(9, 5, 24)
    x[:, 3:, :3] = x[:, :3, :3]
    assert (ranked(x.reshape(300, -1), v, 4).error[:-1] > 0).all()


def test_a_weak_pair_is_not_taken_for_a_copy() -> None:
    """It reaches less of the output than the damping hides, and still both of it must not go."""
    x, v = np.repeat(normal(10, 30, 6), 2, axis=1), normal(11, 5, 12)
    x[:, 10:] *= 3e-5
    ranking = ranked(x, v)
    assert sorted(ranking.keep(6) // 2) == list(range(6))
    assert (ranking.error[6:] == 0).all()


def test_the_surest_go_first() -> None:
    """Of copies, multiples, what nobody reads, sums and constants, the constants are the last that go."""
    x, v = normal(12, 200, 9), normal(13, 5, 9)
    x[:, 4], x[:, 5], x[:, 7], x[:, 8] = x[:, 0], 2 * x[:, 1], x[:, 2] + x[:, 3], 1.0
    v[:, 6] = 0
    ranking = ranked(x, v)
    goes = ranking.order[4:][::-1].tolist()
    assert goes[0] == 4
    assert goes[1] in (1, 5)
    assert goes[2] == 6
    assert goes[3] in (2, 3, 7)
    assert goes[4] == 8
    assert exact(ranking, 4)


@pytest.mark.parametrize(("fires", "width"), [(1, 6), (2, 5)])
def test_what_fires_once_is_no_multiple_of_what_fires_then(fires: int, width: int) -> None:
    x, v = normal(17, 60, 6), normal(18, 5, 6)
    x[:, 4:] = 0
    x[7 : 7 + 2 * fires : 2, 4:] = [1.0, 3.0]
    changes = (x[1:] != x[:-1]).sum(0) * 1.0
    stats = ReaderStats(np.cov(x.T), v, 1, 60, changes=changes)
    ranking = obs.rank_by_surgeon([stats], 6)
    assert exact(ranking, width)


@RANKS
def test_copies_go_first_in_any_scale_of_the_rows_that_read_them(rank: Rank) -> None:
    """Boxes beside scores: four channels that only small rows read go by their own size, copies whatever the size."""
    half = normal(18, 100, 8) - normal(18, 100, 8).mean(0)
    x, v = np.repeat(half, 2, axis=1), normal(19, 6, 16)
    v[:3, 8:], v[3:, :8] = 0, 0
    v[3:] *= 1e-7
    plain = reading(x, v, rows=100)
    scaled = in_own_scale(plain, np.ones(6))
    for read in (plain, scaled):
        ranking = rank([read], 16)
        assert (ranking.error[8:] == 0).all()
    assert sorted(ranking.keep(8) // 2) == list(range(8)), "what only small rows read is heard, too"
    assert exact(ranking, 8)


def test_readers_must_agree_on_what_is_exact() -> None:
    """What is a copy for one reader is none for another."""
    x, v, w = normal(14, 200, 6), normal(15, 5, 6), normal(16, 5, 6)
    same = x.copy()
    same[:, 3:] = same[:, :3]
    ranking = obs.rank_by_surgeon([reading(same, v, rows=200), reading(x, w, rows=200)], 6)
    assert (ranking.error[:-1] > 0).all()


def test_mixing_from_channels_that_are_all_constant_is_finite() -> None:
    mix = mixing(np.zeros((3, 3)), np.array([0, 2], dtype=np.int64))
    np.testing.assert_array_equal(mix, [[1, 0], [0, 0], [0, 1]])


def test_what_is_kept_is_nested_and_ascending() -> None:
    ranking = Ranking(np.array([3, 0, 2, 1], dtype=np.int64), np.linspace(1, 0, 5))
    assert [ranking.keep(m).tolist() for m in (1, 2, 4)] == [[3], [0, 3], [0, 1, 2, 3]]


def test_channels_that_must_stay_lead_the_others() -> None:
    ranking = Ranking(np.array([3, 0, 2, 1], dtype=np.int64), np.linspace(1, 0, 5))
    led = ranking.led_by([2, 1])
    assert (led.order.tolist(), led.least, ranking.least) == ([2, 1, 3, 0], 2, 1)
    np.testing.assert_array_equal(led.error, [1, 0.75, 1, 0.75, 0])  # at 2 the best is not in, at 3 the second
    np.testing.assert_array_equal(ranking.led_by([3]).error, ranking.error)


# -- subsets ---------------------------------------------------------------------------------

READERS = pytest.mark.parametrize("taps", [(1,), (3,), (1, 1), (1, 4)], ids=str)


@BACKENDS
@READERS
@given(seed=st.integers(0, 999))
@QUICK
def test_the_curve_of_obs_is_the_least_squares_residual(xp: Any, taps: Sequence[int], seed: int) -> None:
    problems = several(seed, 6, taps)
    ranking = rank_all(obs.rank_by_surgeon, problems, xp)
    assert sorted(ranking.order) == list(range(6))
    expected = [lost_all(problems, ranking.order[:m]) for m in range(1, 7)]
    np.testing.assert_allclose(ranking.error[1:], expected, atol=2e-4)
    assert ranking.error[0] == 1.0 and ranking.error[6] == 0.0
    assert (np.diff(ranking.error) <= 0).all()


@READERS
def test_obs_removes_the_cheapest_at_every_step(taps: Sequence[int]) -> None:
    problems = several(5, 6, taps)
    order = rank_all(obs.rank_by_surgeon, problems).order
    for left in range(6, 1, -1):
        kept = order[:left]
        costs = {int(g): lost_all(problems, kept[kept != g]) for g in kept}
        assert costs[int(order[left - 1])] <= min(costs.values()) * (1 + 1e-4)


PARTS = [np.array([0, 1, 2, 3, 4]), np.arange(7), np.array([2, 6]), np.array([3, 4, 5])]
"""Places of a group of 7 that four readers take."""


def partial(seed: int) -> list[tuple[Array, Array, int, Array]]:
    """Four problems on some of the 7 channels of a group each."""
    taps = (1, 1, 3, 2)
    return [(*problem(seed + 10 * i, len(p), t), t, p) for i, (p, t) in enumerate(zip(PARTS, taps, strict=True))]


@BACKENDS
@given(seed=st.integers(0, 999))
@QUICK
def test_readers_of_some_channels_lose_only_these(xp: Any, seed: int) -> None:
    """The mean over all readers of what each of them misses; one that is left with nothing misses all."""
    problems = partial(seed)
    ranking = obs.rank_by_surgeon([reading(x, v, t, xp, places=p) for x, v, t, p in problems], 7)
    assert sorted(ranking.order) == list(range(7))
    for width in range(2, 8):
        kept = np.sort(ranking.order[:width])
        missed = [lost(x, v, t, np.flatnonzero(np.isin(p, kept))) for x, v, t, p in problems]
        assert ranking.error[width] == pytest.approx(np.mean(missed), abs=3e-4)
    assert ranking.error[0] == 1.0 and ranking.error[7] == 0.0


@RANKS
def test_readers_of_some_channels_are_the_same_in_any_array_namespace(rank: Rank) -> None:
    host, strict = (rank([reading(x, v, t, xp, places=p) for x, v, t, p in partial(3)], 7)
                    for xp in (np, array_api_strict))  # fmt: skip
    np.testing.assert_array_equal(host.order, strict.order)
    np.testing.assert_allclose(host.error, strict.error, atol=1e-9)


def test_places_of_all_channels_say_nothing_new() -> None:
    problems = several(5, 6, (1, 3))
    plain, placed = (
        obs.rank_by_surgeon([reading(x, v, t, places=p) for x, v, t in problems], 6) for p in (None, np.arange(6))
    )
    np.testing.assert_array_equal(plain.order, placed.order)
    np.testing.assert_allclose(plain.error, placed.error)


@BACKENDS
def test_the_curve_of_the_interpolative_subset_is_its_residual_trace(xp: Any) -> None:
    (x, v, _) = problems = (*problem(6, 7), 1)
    ranking = rank_all(interpolative.rank_by_pivots, [problems], xp)
    weighted = x * np.sqrt((v * v).sum(0))
    for m in range(1, 8):
        kept = weighted[:, ranking.order[:m]]
        rest = weighted - kept @ np.linalg.lstsq(kept, weighted, rcond=None)[0]
        assert ranking.error[m] == pytest.approx((rest**2).sum() / (weighted**2).sum(), abs=1e-9)


@RANKS
@READERS
def test_subsets_are_the_same_in_any_array_namespace(rank: Rank, taps: Sequence[int]) -> None:
    problems = several(7, 8, taps)
    host, strict = rank_all(rank, problems), rank_all(rank, problems, array_api_strict)
    np.testing.assert_array_equal(host.order, strict.order)
    np.testing.assert_allclose(host.error, strict.error, atol=1e-9)


@RANKS
@pytest.mark.parametrize("taps", [1, 4])
def test_what_is_redundant_goes_first_and_for_nothing(rank: Rank, taps: int) -> None:
    """A copy, a scaled copy, a sum, a dead and an unread channel beside five that are needed."""
    x, v = problem(8, 10, taps)
    split, weights = x.reshape(len(x), 10, taps), v.reshape(len(v), 10, taps)
    split[:, 1], split[:, 3] = split[:, 0], -2.5 * split[:, 2]
    split[:, 5] = split[:, 4] + split[:, 6]
    split[:, 7], weights[:, 8] = 0.0, 0.0
    ranking = rank([reading(split.reshape(len(x), -1), weights.reshape(len(v), -1), taps)], 10)
    assert ranking.error[5] < 1e-5 < 1e-4 < ranking.error[4]
    assert lost(split.reshape(len(x), -1), weights.reshape(len(v), -1), taps, ranking.order[:5]) < 1e-9


@RANKS
def test_copies_go_first_whoever_reads_them(rank: Rank) -> None:
    """Two readers use a channel and its copy differently; a third sees some of the channels at another size."""
    (x, v), (_, w) = problem(8, 8), problem(60, 8)
    x[:, 4:] = x[:, :4]
    part = np.array([0, 1, 4, 5])
    readings = [reading(x, v), reading(np.tanh(x) * 30, w), reading(x[:, part], v[:, part], places=part)]
    ranking = rank(readings, 8)
    assert sorted(ranking.order[:4] % 4) == [0, 1, 2, 3]
    assert ranking.error[4] < 1e-5 < 1e-3 < ranking.error[3]


@RANKS
def test_a_ranking_does_not_change_what_it_reads(rank: Rank) -> None:
    x, v = problem(9, 6, 2)
    seen = reading(x, v, 2)
    covariance, matrix = seen.covariance.copy(), seen.matrix.copy()
    rank([seen], 6)
    np.testing.assert_array_equal(seen.covariance, covariance)
    np.testing.assert_array_equal(seen.matrix, matrix)


@RANKS
def test_readers_that_see_nothing_are_ranked_all_the_same(rank: Rank) -> None:
    ranking = rank([ReaderStats(np.zeros((4, 4)), np.zeros((2, 4)), 1, 100)], 4)
    assert sorted(ranking.order) == [0, 1, 2, 3]
    assert np.isfinite(ranking.error).all()


def test_obs_loses_less_than_other_subsets() -> None:
    generator = np.random.default_rng(10)
    shares: dict[str, list[float]] = {"obs": [], "interpolative": [], "random": []}
    for seed in range(20):
        x, v = problem(100 + 7 * seed, 16)
        seen = reading(x, v)
        shares["obs"].append(lost(x, v, 1, obs.rank_by_surgeon([seen], 16).order[:8]))
        shares["interpolative"].append(lost(x, v, 1, interpolative.rank_by_pivots([seen], 16).order[:8]))
        shares["random"].append(lost(x, v, 1, generator.choice(16, 8, replace=False)))
    mean = {name: float(np.mean(values)) for name, values in shares.items()}
    assert mean["obs"] <= mean["interpolative"] < mean["random"]
    assert mean["obs"] < 0.7 * mean["random"]


@pytest.mark.parametrize("taps", [(4,), (1, 4)], ids=str)
def test_blocks_agree_with_one_by_one(taps: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    channels = 130
    problems = [(*problem(20 + i, channels, t, outputs=24, rows=1200), t) for i, t in enumerate(taps)]
    assert channels * max(taps) > obs._SMALL
    blocks = rank_all(obs.rank_by_surgeon, problems)
    monkeypatch.setattr(obs, "_SMALL", 10**9)
    single = rank_all(obs.rank_by_surgeon, problems)
    assert sorted(blocks.order) == list(range(channels))
    np.testing.assert_allclose(blocks.error, single.error, rtol=0.02, atol=1e-4)
    assert len(set(blocks.order[:65]) & set(single.order[:65])) >= 60
    for width in (30, 65):
        assert lost_all(problems, blocks.order[:width]) == pytest.approx(blocks.error[width], rel=0.02)
