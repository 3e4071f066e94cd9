"""The benchmark's own numeric parts: a peer that is written wrongly would be beaten too easily."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pcns_onnx
from benchmarks.frontier_cases.counting import cost
from benchmarks.frontier_cases.interpolative import decompose
from benchmarks.frontier_cases.matching import UnreachableError, keep, least_pruned

MODELS = Path(__file__).parents[2] / "models"


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 6), st.integers(1, 4))
def test_planted_redundancy_is_decomposed_exactly(seed: int, rank: int, more: int, parts: int) -> None:
    draw = np.random.default_rng(seed)
    outputs = draw.standard_normal((60, rank)) @ draw.standard_normal((rank, rank + more))
    found = decompose(np.array_split(outputs, parts))
    kept, mixing = found.mixing(rank)
    assert list(kept) == sorted(set(kept)) and mixing.shape == (rank, rank + more)
    assert np.allclose(outputs[:, kept] @ mixing, outputs, atol=1e-6 * np.abs(outputs).max())
    assert (np.sort(found.accuracy)[::-1][rank:] < 1e-7).all()


def test_pivots_do_not_depend_on_how_the_rows_are_batched() -> None:
    outputs = np.random.default_rng(0).standard_normal((97, 12))
    whole, split = decompose([outputs]), decompose(np.array_split(outputs, 7))
    assert list(whole.pivots) == list(split.pivots)
    assert np.allclose(whole.mixing(5)[1], split.mixing(5)[1])


def test_dead_channels_are_never_divided_by() -> None:
    outputs = np.random.default_rng(0).standard_normal((50, 6))
    outputs[:, [1, 4]] = 0
    kept, mixing = decompose([outputs]).mixing(5)
    assert np.isfinite(mixing).all()
    assert np.allclose(outputs[:, kept] @ mixing, outputs)


@given(st.floats(0.05, 1.0), st.integers(1, 500))
def test_matched_macs_are_met_and_nearly_reached(target: float, width: int) -> None:
    def macs(amount: float) -> float:
        return max(1, width - int(amount * width)) / width

    if target < 1 / width:
        with pytest.raises(UnreachableError):
            least_pruned(macs, target)
        return
    left = macs(least_pruned(macs, target))
    assert left <= target
    assert left > target - 1 / width - 2**-10 or left == 1 / width


def test_a_peer_that_leaves_layers_whole_at_the_end_is_matched_all_the_same() -> None:
    assert least_pruned(lambda amount: 1 - amount if amount < 0.9 else 1.0, 0.5) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_best_channels_stay_and_one_of_every_layer(everywhere: bool) -> None:
    scores = [np.array([0.1, 0.9, 0.5, 0.7]), np.array([0.01, 0.02])]
    kept = keep(scores, 0.5, everywhere)
    assert [list(each) for each in kept] == ([[1, 2, 3], [1]] if everywhere else [[1, 3], [1]])


# Onnx's inference does not see how many steps a cell makes in these; no peer narrows cells anyway.
FEED_FORWARD = [path for path in sorted(MODELS.glob("*.onnx")) if path.stem not in ("digits_gru", "digits_lstm")]


@pytest.mark.parametrize("path", FEED_FORWARD, ids=lambda path: path.stem)
def test_everybody_is_counted_as_pcns_onnx_counts(path: Path) -> None:
    found = pcns_onnx.inspect(path)
    assert cost(onnx.load(path)) == (found.macs, found.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp_leaky", "digits_mlp_tanh"])
@pytest.mark.parametrize("norms", [False, True])
def test_a_network_rebuilt_in_torch_is_the_same_network(name: str, norms: bool) -> None:
    pytest.importorskip("torch")
    from benchmarks.frontier_cases.rebuild import to_onnx, to_torch

    samples = np.load(MODELS / f"{'digits_images' if name == 'digits_cnn' else 'digits_rows'}.npz")["input"][:64]
    model = onnx.load(MODELS / f"{name}.onnx")
    net = to_torch(model, samples if norms else None)
    assert np.allclose(outputs_of(to_onnx(net, net.module), samples), outputs_of(model, samples), atol=1e-4)
    assert net.macs() == cost(model).macs


def outputs_of(model: onnx.ModelProto, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: samples})[0]
    return outputs
