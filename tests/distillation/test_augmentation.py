"""Images are seen otherwise only where they are images, and text is never mirrored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from scipy import ndimage

from builders.models import build
from pcns_onnx import InputError
from pcns_onnx.data.batch import Batch
from pcns_onnx.distillation.augmentation import Augmentation, augmentation_of
from pcns_onnx.graph import Graph

Array = NDArray[Any]


def on_images(channels: int, ends: str = "classes", side: int = 16) -> Graph:
    rng = np.random.default_rng(0)
    weights = {"k": rng.standard_normal((4, channels, 3, 3)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["x", "k"], ["h"], pads=[1, 1, 1, 1])]
    if ends == "classes":
        nodes += [helper.make_node("GlobalAveragePool", ["h"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    elif ends == "line of text":
        weights["s"] = np.array([0, 4, -1])
        nodes += [
            helper.make_node("Reshape", ["h", "s"], ["r"]),
            helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
            helper.make_node("Softmax", ["t"], ["y"], axis=2),
        ]
    else:
        nodes += [helper.make_node("Relu", ["h"], ["y"])]
    return Graph.load(build(nodes, weights, ["N", channels, side, side]))


def on_rows(width: int) -> Graph:
    weights = {"w": np.ones((width, 3), dtype=np.float32)}
    return Graph.load(build([helper.make_node("MatMul", ["x", "w"], ["y"])], weights, ["N", width]))


def batch(*shape: int, smooth: bool = False) -> Batch:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    if smooth:
        side = int(shape[1] ** 0.5)
        images = ndimage.gaussian_filter(values.reshape(-1, side, side), (0, 2, 2))
        values = images.reshape(shape)
    return Batch({"x": values}, None, shape[0])


@pytest.mark.parametrize(
    ("graph", "samples", "expected"),
    [
        (on_images(3), batch(8, 3, 16, 16), "mirror"),
        (on_images(3, "maps"), batch(8, 3, 16, 16), "mirror"),
        (on_images(3, side=8), batch(8, 3, 8, 8), "none"),
        (on_images(1), batch(8, 1, 16, 16), "shift"),
        (on_images(1, "maps"), batch(8, 1, 16, 16), "none"),
        (on_rows(400), batch(60, 400, smooth=True), "shift"),
        (on_rows(400), batch(60, 400), "none"),
        (on_rows(399), batch(60, 399), "none"),
    ],
)
def test_by_itself_only_what_cannot_be_wrong(graph: Graph, samples: Batch, expected: str) -> None:
    assert augmentation_of("auto", graph, [samples]).kind == expected


def test_text_is_not_mirrored() -> None:
    chosen = augmentation_of("auto", on_images(3, "line of text"), [batch(4, 3, 16, 16)])
    assert chosen.kind == "none" and "text" in chosen.why


@pytest.mark.parametrize(("width", "expected"), [(28, "mirror"), (48, "none")])
def test_images_far_wider_than_high_are_lines(width: int, expected: str) -> None:
    """A classifier of text's direction has neither a recurrent layer nor a sequence of classes."""
    found = augmentation_of("auto", on_images(3), [batch(4, 3, 16, width)])
    assert found.kind == expected
    assert augmentation_of("mirror", on_images(3), [batch(4, 3, 16, width)]).kind == "mirror"


def test_what_is_asked_for_is_done_or_refused() -> None:
    assert augmentation_of("none", on_images(3), [batch(4, 3, 16, 16)]).kind == "none"
    assert augmentation_of("shift", on_images(3), [batch(4, 3, 16, 16)]).inputs == {"x": (2, 3)}
    assert augmentation_of("shift", on_rows(400), [batch(9, 400)]).inputs == {"x": 20}
    with pytest.raises(InputError, match="mirror needs images"):
        augmentation_of("mirror", on_rows(400), [batch(9, 400)])
    with pytest.raises(InputError, match="shift needs images"):
        augmentation_of("shift", on_rows(399), [batch(9, 399)])


def test_a_mirror_mirrors_and_a_shift_shifts() -> None:
    samples = batch(3, 3, 16, 16)
    x = samples.feeds["x"]
    mirror = Augmentation("mirror", {"x": (2, 3)}, "")
    seen = mirror.apply(samples, np.array([[0, 1], [0, 0], [0, 1]])).feeds["x"]
    assert np.array_equal(seen[0], x[0, :, :, ::-1]) and np.array_equal(seen[1], x[1])
    shift = Augmentation("shift", {"x": (2, 3)}, "")
    moved = shift.apply(samples, np.array([[2, -1], [0, 0], [0, 1]])).feeds["x"]
    assert np.array_equal(moved[0][:, 2:, :-1], x[0][:, :-2, 1:]) and np.array_equal(moved[1], x[1])
    assert np.array_equal(moved[0][:, 0], moved[0][:, 1])  # the edge is repeated
    assert np.array_equal(samples.feeds["x"], x)
    drawn = shift.draw(np.random.default_rng(0), 500)
    assert set(drawn.reshape(-1)) == {-2, -1, 0, 1, 2}
    row = Augmentation("shift", {"x": 16}, "").apply(Batch({"x": x[:, 0].reshape(3, -1)}, None, 3), drawn[:3])
    assert np.array_equal(row.feeds["x"].reshape(3, 16, 16), shift.apply(samples, drawn[:3]).feeds["x"][:, 0])


def test_a_layer_that_remembers_reads_in_order() -> None:
    weights = {
        "w": np.ones((1, 8, 48), dtype=np.float32),
        "r": np.ones((1, 8, 2), dtype=np.float32),
        "s": np.array([0, 0, -1]),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["q"]),
        helper.make_node("LSTM", ["q", "w", "r"], ["y"], hidden_size=2),
    ]
    model = build(nodes, weights, ["N", 3, 16, 16])
    assert augmentation_of("auto", Graph.load(model), [batch(4, 3, 16, 16)]).kind == "none"
