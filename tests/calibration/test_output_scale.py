"""Every channel of an output counts in its own scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from builders.chains import node
from builders.models import build
from pcns_onnx import InputError, shrink
from pcns_onnx.calibration.output_layout import OutputLayout, last_rows
from pcns_onnx.calibration.output_scale import FLOOR, OutputError, SpreadTally, channel_scales
from pcns_onnx.calibration.output_weight import OutputWeight, output_weights
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.last_layers import last_layers
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.canonical import Canonical

DRAW = np.random.default_rng(0)
SCALES = np.array([100.0, 100.0, 1.0, 1.0, 1e-3])


def shares(layout: OutputLayout, expected: np.ndarray, *models: np.ndarray) -> np.ndarray:
    """e² of each model, from three batches."""
    errors = OutputError(["y"], layout, len(models))
    for part in np.array_split(np.arange(len(expected)), 3):
        errors.expect({"y": expected[part]})
        for at, model in enumerate(models):
            errors.update({"y": expected[part]}, {"y": model[part]}, at)
    return errors.shares()


def disturbed(values: np.ndarray, channel: int, by: float) -> np.ndarray:
    other = values.copy()
    other[:, channel] += by * values.std(axis=0)[channel] * DRAW.standard_normal(values[:, channel].shape)
    return other


def test_an_error_counts_by_how_much_its_own_channel_varies() -> None:
    y = (DRAW.standard_normal((600, 5)) * SCALES + 3 * SCALES).astype(np.float32)
    found = shares(OutputLayout(), y, *(disturbed(y, c, 0.5) for c in range(5)))
    assert found == pytest.approx(0.25 / 5, rel=0.15)


def test_in_an_output_of_one_scale_it_is_the_centred_relative_error() -> None:
    y = DRAW.standard_normal((500, 1, 7)).astype(np.float32) + 4
    other = y + 0.1 * DRAW.standard_normal(y.shape).astype(np.float32)
    plain = ((y - other) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    assert shares(OutputLayout(), y, other)[0] == pytest.approx(plain, rel=0.05)


def test_a_score_that_never_rises_is_not_what_counts() -> None:
    """Rounding in the score of a class that no sample has is no error."""
    scores = DRAW.uniform(0, 1, (400, 3)).astype(np.float32)
    scores[:, 2] *= 1e-6
    noisy = scores.copy()
    noisy[:, 2] *= 2
    assert shares(OutputLayout(), scores, noisy)[0] < 1e-6


def test_a_channel_that_stands_still_counts_by_its_size() -> None:
    y = DRAW.standard_normal((300, 2)).astype(np.float32)
    y[:, 1] = 5
    off = y.copy()
    off[:, 1] *= 1.1
    assert shares(OutputLayout(), y, off)[0] == pytest.approx(0.01 / 2, rel=0.1)
    assert shares(OutputLayout(), np.zeros_like(y), np.zeros_like(y))[0] == 0


def test_the_floor_is_by_scale() -> None:
    found = channel_scales(np.array([100.0, 1.0, 0.5, 1e-2, 1e-9]))
    assert found[0] == 100
    assert found[1] == found[2] == pytest.approx((1.25 / 2) ** 0.5)  # classes are compared with each other
    assert found[3] == 1e-2  # a part of its own
    assert channel_scales(np.array([1.0, 0.2, 0.05]))[2] == FLOOR * 1.0


def test_a_channel_that_is_as_good_as_zero_has_no_scale_of_its_own() -> None:
    scales = channel_scales(np.array([1.0, 1e-4, 1e-33]))
    assert scales.tolist() == [1.0, 1e-4, FLOOR]
    assert channel_scales(np.array([0.0, 0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", [np.bool_, np.int64, np.str_])
def test_what_is_equal_or_not_is_counted(kind: type) -> None:
    y: np.ndarray = (np.arange(40).reshape(20, 2) % 2).astype(kind)
    other = y.copy()
    other[:5, 0] = y[1, 1] if kind is not np.bool_ else ~y[:5, 0]
    changed = (y != other).mean()
    assert shares(OutputLayout(), y, other)[0] == pytest.approx(changed)


@pytest.mark.parametrize(
    ("stated", "shape", "axis"),
    [
        ((None, 22, None), (2, 22, 90), 1),
        ((1, 4420, 2), (1, 4420, 2), 2),
        ((None, None, 12), (2, 5, 12), 2),
        ((None, 3, 32, 32), (2, 3, 32, 32), 1),
        ((None,), (4,), None),
        ((None, None, None), (2, 9, 4), 2),
    ],
)
def test_without_a_graph_channels_lie_along_the_shortest_stated_axis(
    stated: tuple[int | None, ...], shape: tuple[int, ...], axis: int | None
) -> None:
    ids, found = OutputLayout(shapes={"y": stated}).ids("y", shape)
    assert found == axis
    assert ids.size == (1 if axis is None else shape[axis])


def layout_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: tuple[str | int, ...]) -> OutputLayout:
    graph = Canonical.of(Graph.load(build(nodes, weights, x))).twin
    return OutputLayout.of(graph, build_dependency_graph(graph, {"x": [2, *map(int, x[1:])]}))


def test_channels_lie_where_the_last_layer_writes() -> None:
    """A text of 20 steps and 30 characters: the shorter axis is time."""
    w = DRAW.standard_normal((6, 30)).astype(np.float32)
    plain = layout_of([node("MatMul", "x w", "y")], {"w": w}, ("N", 20, 6))
    assert plain.ids("y", (2, 20, 30))[1] == 2
    soft = layout_of([node("MatMul", "x w", "s"), node("Softmax", "s", "y", axis=-1)], {"w": w}, ("N", 20, 6))
    assert soft.ids("y", (2, 20, 30))[1] == 2
    turned = layout_of(
        [node("MatMul", "x w", "s"), node("Transpose", "s", "y", perm=[0, 2, 1])], {"w": w}, ("N", 20, 6)
    )
    assert turned.ids("y", (2, 30, 20))[1] == 1


def test_places_that_one_channel_has_spread_over_count_as_one() -> None:
    """Conv and Flatten: the output has a place per position, and as many channels as the Conv."""
    w = DRAW.standard_normal((3, 2, 1, 1)).astype(np.float32)
    layout = layout_of([node("Conv", "x w", "c"), node("Flatten", "c", "y")], {"w": w}, ("N", 2, 4, 4))
    ids, axis = layout.ids("y", (5, 48))
    assert axis == 1
    assert len(np.unique(ids)) == 3
    tally = SpreadTally("y", layout)
    y = np.repeat(np.array([1.0, 10.0, 100.0]), 16) * DRAW.standard_normal((200, 48))
    tally.update(y.astype(np.float32))
    assert tally.scale().spread == pytest.approx([1, 10, 100], rel=0.05)
    assert tally.scale().first_places().tolist() == [0, 16, 32]


def test_places_that_no_layer_is_known_to_have_written_are_channels_of_their_own() -> None:
    layout = OutputLayout(labels={"y": np.array([[-1, -1, 5, 5, 7]])})
    ids, axis = layout.ids("y", (3, 5))
    assert axis == 1
    assert len(np.unique(ids)) == 4 and ids[0, 2] == ids[0, 3]


def two_branches(scale: float) -> onnx.ModelProto:
    """A trunk and two equal branches, the first `scale` times louder, side by side in one output."""
    draw = np.random.default_rng(1)
    sizes = {"t": (24, 32), "b1": (32, 32), "b2": (32, 4), "s1": (32, 32), "s2": (32, 4)}
    weights = {k: (draw.standard_normal(s) * (2 / s[0]) ** 0.5).astype(np.float32) for k, s in sizes.items()}
    weights["pixels"] = np.float32(scale)
    nodes = [
        node("Gemm", "x t", "h", name="trunk"), node("Relu", "h", "u"),
        node("Gemm", "u b1", "b", name="box1"), node("Relu", "b", "bu"), node("Gemm", "bu b2", "bo", name="box2"),
        node("Mul", "bo pixels", "boxes"),
        node("Gemm", "u s1", "s", name="score1"), node("Relu", "s", "su"), node("Gemm", "su s2", "so", name="score2"),
        node("Sigmoid", "so", "scores"), node("Concat", "boxes scores", "y", axis=1),
    ]  # fmt: skip
    return build(nodes, weights, ("N", 24))


def samples(count: int) -> np.ndarray:
    draw = np.random.default_rng(2)
    mix = draw.standard_normal((24, 24)) * (0.8 ** np.arange(24))[:, None]
    return (draw.standard_normal((count, 24)) @ mix).astype(np.float32)


def centred(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(axis=0)))


def outputs(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_a_quiet_part_of_an_output_is_kept_as_well_as_a_loud_one() -> None:
    model, x = two_branches(100.0), samples(1500)
    small = shrink(model, {"x": x[:1000]}, budget="macs=0.6", multiple=1, refine=0, threads=1).model
    a, b = (outputs(m, x[1000:]) for m in (model, small))
    loud, quiet = centred(a[:, :4], b[:, :4]), centred(a[:, 4:], b[:, 4:])
    assert quiet < 0.3
    assert quiet < 2 * loud


def test_what_the_user_weighs_more_is_kept_better() -> None:
    model, x = two_branches(1.0), samples(1500)

    def quiet(*weights: str) -> float:
        chosen = shrink(
            model, {"x": x[:1000]}, budget="macs=0.6", multiple=1, refine=0, threads=1, output_weight=weights
        )
        a, b = (outputs(m, x[1000:]) for m in (model, chosen.model))
        return centred(a[:, 4:], b[:, 4:])

    assert quiet("y[4:8]=100") < 0.8 * quiet() < 0.8 * quiet("y[0:4]=100")


def test_rows_of_the_last_layers_have_the_weights_of_what_they_write() -> None:
    graph = Graph.load(two_branches(1.0))
    dependencies = build_dependency_graph(graph, {"x": [2, 24]})
    assert last_layers(graph, dependencies) == {"box2", "score2"}
    weights = (OutputWeight("y", 5.0, 2, 6),)
    rows = last_rows(graph, dependencies, OutputLayout.of(graph, dependencies, weights))
    assert rows["box2"].tolist() == [1, 1, 5, 5]
    assert rows["score2"].tolist() == [5, 5, 1, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("y", "NAME=W"),
        ("y=", "NAME=W"),
        ("y=-1", "NAME=W"),
        ("y=nan", "NAME=W"),
        ("y=inf", "NAME=W"),
        ("y[3:3]=1", "is empty"),
        ("z=1", "no output"),
        ("y=0", "nothing that counts"),
    ],
)
def test_weights_that_say_nothing_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        output_weights([text], ["y"])


def test_channels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 8"):
        shrink(two_branches(1.0), {"x": samples(300)}, tmp_path / "o.onnx", budget="macs=0.6", output_weight="y[4:9]=2")
    assert not list(tmp_path.iterdir())


def test_the_sizes_of_a_single_sample_are_no_scales() -> None:
    logits = np.array([[-1.5, 0.0004, 2.0, -0.9]], dtype=np.float32)
    tally = SpreadTally("y", OutputLayout())
    tally.update(logits)
    scale = tally.scale()
    assert scale.scale.min() >= FLOOR * 0.9
    missed = scale.missed(logits, logits + 0.3)
    assert np.sqrt(scale.per_sample(missed)).item() < 2
