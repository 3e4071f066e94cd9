"""F1 of detections: every layout, with boxes that are planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pcns_onnx.errors import InputError
from pcns_onnx.metrics import Ssd, Yolo, ssd, yolo
from pcns_onnx.metrics.boxes import overlaps
from pcns_onnx.metrics.decisions import DecisionMetric

Array = NDArray[Any]
Outputs = dict[str, Array]

SIDE = 64
CELLS = [(stride, x, y) for stride in (8, 16, 32) for y in range(SIDE // stride) for x in range(SIDE // stride)]
"""The grid of a picture of 64 by 64 pixels: 84 anchors, finest first."""
IMAGES = 3
CLASSES = 4
PER_IMAGE = 5
FOUND = IMAGES * PER_IMAGE


def logit(shares: Array) -> Array:
    return np.asarray(np.log(shares / (1 - shares)))


def planted(seed: int = 0, moved: float = 0.0) -> tuple[Array, Array]:
    """Boxes (images, anchors, 4) as middle and sides, and scores (images, anchors, classes): five stand out in each.

    `moved`: all boxes to the right by so many of their widths.
    """
    rng = np.random.default_rng(seed)
    boxes = np.empty((IMAGES, len(CELLS), 4))
    for n, (stride, x, y) in enumerate(CELLS):
        boxes[:, n, :2] = (x + 0.5) * stride, (y + 0.5) * stride
        boxes[:, n, 2:] = stride * rng.uniform(0.6, 0.9, (IMAGES, 2))
    scores = rng.uniform(0.01, 0.1, (IMAGES, len(CELLS), CLASSES))
    for image in range(IMAGES):
        for anchor in rng.choice(SIDE * SIDE // 64, PER_IMAGE, replace=False):
            scores[image, anchor, rng.integers(CLASSES)] = rng.uniform(0.6, 0.95)
    boxes[..., 0] += moved * boxes[..., 2]
    return boxes, scores


def corners(boxes: Array) -> Array:
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def version_8(boxes: Array, scores: Array) -> Outputs:
    return {"output0": np.concatenate([boxes, scores], axis=2).transpose(0, 2, 1).astype(np.float32)}


def version_5(boxes: Array, scores: Array) -> Outputs:
    best = scores.max(axis=2, keepdims=True)
    return {"output": np.concatenate([boxes, best, scores / best], axis=2).astype(np.float32)}


def yolox(boxes: Array, scores: Array) -> Outputs:
    strides, x, y = np.array(CELLS).T[:, :, None]
    raw = np.concatenate([boxes[..., :2] / strides - np.concatenate([x, y], 1), np.log(boxes[..., 2:] / strides)], 2)
    return {"output": np.concatenate([raw, version_5(boxes, scores)["output"][..., 4:]], axis=2).astype(np.float32)}


def suppressed(boxes: Array, scores: Array) -> Outputs:
    rows = [corners(boxes), scores.max(axis=2, keepdims=True), scores.argmax(axis=2)[..., None]]
    return {"output0": np.concatenate(rows, axis=2).astype(np.float32)}


def with_masks(boxes: Array, scores: Array) -> Outputs:
    both = np.concatenate([boxes, scores, np.full((*boxes.shape[:2], 32), 3.0)], axis=2)
    return {"output0": both.transpose(0, 2, 1), "output1": np.zeros((IMAGES, 32, 16, 16))}


def softmax_scores(boxes: Array, scores: Array) -> Outputs:
    background = 1 - scores.sum(axis=2, keepdims=True) / 2
    shares = np.concatenate([background, scores], axis=2)
    return {"boxes": corners(boxes) / SIDE, "scores": shares / shares.sum(axis=2, keepdims=True)}


def softmax_logits(boxes: Array, scores: Array) -> Outputs:
    found = softmax_scores(boxes, scores)
    return {"loc": boxes / SIDE, "conf": np.log(found["scores"]) + 2}


def sigmoid_scores(boxes: Array, scores: Array) -> Outputs:
    return {"a": scores, "b": corners(boxes)}


def tensorflow(boxes: Array, scores: Array) -> Outputs:
    return {
        "detection_anchor_indices": np.zeros(scores.shape[:2]),
        "detection_boxes": corners(boxes)[..., [1, 0, 3, 2]],
        "detection_classes": scores.argmax(axis=2).astype(np.float32),
        "detection_scores": scores.max(axis=2),
        "num_detections": np.full(IMAGES, len(CELLS), np.float32),
    }


def torchvision(boxes: Array, scores: Array) -> Outputs:
    return {"boxes": corners(boxes)[0], "labels": scores[0].argmax(axis=1), "scores": scores[0].max(axis=1)}


def offsets(boxes: Array, scores: Array) -> Outputs:
    """Relative to anchors that are not known, with landmarks beside: the raw heads of RetinaFace."""
    strides, x, y = np.array(CELLS).T[:, :, None]
    middles = (boxes[..., :2] - (np.concatenate([x, y], 1) + 0.5) * strides) / strides / 0.1
    raw = np.concatenate([middles, np.log(boxes[..., 2:] / strides) / 0.2], axis=2)
    return {
        "landms": np.zeros((IMAGES, len(CELLS), 10)) - 1,
        "bbox": raw,
        "conf": softmax_scores(boxes, scores)["scores"],
    }


def no_background(head: Callable[[Array, Array], Outputs]) -> tuple[DecisionMetric, Callable[[Array, Array], Outputs]]:
    return Ssd(background=False), head


LAYOUTS: dict[str, tuple[DecisionMetric, Callable[[Array, Array], Outputs]]] = {
    "version 8": (yolo, version_8),
    "version 5": (yolo, version_5),
    "YOLOX on its grid": (yolo, yolox),
    "suppressed": (yolo, suppressed),
    "masks beside": (yolo, with_masks),
    "key points behind": (Yolo(classes=CLASSES), lambda b, s: {"o": with_masks(b, s)["output0"]}),
    "logits": (yolo, lambda b, s: version_8(b, logit(s))),
    "softmax": (ssd, softmax_scores),
    "softmax, the other way round": (ssd, lambda b, s: dict(reversed(softmax_scores(b, s).items()))),
    "softmax logits, middles and sides": (ssd, softmax_logits),
    "sigmoid": no_background(sigmoid_scores),
    "sigmoid logits": no_background(lambda b, s: {"a": logit(s), "b": corners(b)}),
    "TensorFlow": (ssd, tensorflow),
    "torchvision": (ssd, torchvision),
    "offsets": (ssd, offsets),
}

each_layout = pytest.mark.parametrize(("metric", "head"), LAYOUTS.values(), ids=LAYOUTS.keys())


@each_layout
def test_a_model_finds_what_it_finds_itself(metric: DecisionMetric, head: Callable[..., Outputs]) -> None:
    outputs = head(*planted())
    assert metric(outputs, reference=outputs) == 100


@each_layout
def test_boxes_that_move_are_no_longer_found(metric: DecisionMetric, head: Callable[..., Outputs]) -> None:
    """Moved by a tenth of its width a box overlaps itself by 0.9 / 1.1; by half of it, 0.5 / 1.5."""
    whole = head(*planted())
    assert metric(head(*planted(moved=0.1)), reference=whole) == 100
    assert metric(head(*planted(moved=0.5)), reference=whole) == 0


@each_layout
def test_lost_boxes_cost_recall_and_new_ones_precision(metric: DecisionMetric, head: Callable[..., Outputs]) -> None:
    boxes, scores = planted()
    fewer, stands_out = scores.copy(), scores.max(axis=2) > 0.25
    lost = [(image, np.flatnonzero(stands_out[image])[0]) for image in range(IMAGES)]
    for image, anchor in lost:
        fewer[image, anchor] = 0.05
    expected = 100 * 2 * 4 / (4 + 5)
    assert metric(head(boxes, fewer), reference=head(boxes, scores)) == pytest.approx(expected)
    assert metric(head(boxes, scores), reference=head(boxes, fewer)) == pytest.approx(expected)


@each_layout
def test_another_class_is_another_box(metric: DecisionMetric, head: Callable[..., Outputs]) -> None:
    boxes, scores = planted()
    assert metric(head(boxes, scores[..., ::-1]), reference=head(boxes, scores)) == 0


@each_layout
def test_the_order_of_anchors_plays_no_part(metric: DecisionMetric, head: Callable[..., Outputs]) -> None:
    if head in (yolox, offsets):
        pytest.skip("there the order of anchors says where they are")
    order = np.random.default_rng(1).permutation(len(CELLS))
    boxes, scores = planted()
    other = [array + 0.02 * np.random.default_rng(n).random(array.shape) for n, array in enumerate((boxes, scores))]
    shuffled = metric(head(*(array[:, order] for array in other)), reference=head(boxes[:, order], scores[:, order]))
    assert shuffled == metric(head(*other), reference=head(boxes, scores)) > 0


@each_layout
def test_nothing_found_is_no_score(metric: DecisionMetric, head: Callable[..., Outputs]) -> None:
    boxes, scores = planted()
    nothing = head(boxes, scores.clip(max=0.05))
    assert np.isnan(metric(nothing, reference=nothing))
    assert metric(nothing, reference=head(boxes, scores)) == 0


@pytest.mark.parametrize("metric", [yolo, Yolo(threshold=0.7)], ids=["0.25", "0.7"])
def test_all_batches_count_as_one(metric: Yolo) -> None:
    """F1 is no mean: images without detections have no say, and the layout of the first batch holds."""
    boxes, scores = planted()
    scores[1] = 0.05
    other = scores.copy()
    other[0, scores[0].max(axis=1) > 0.9] = 0.02
    reference, outputs = version_8(boxes, scores)["output0"], version_8(boxes, other)["output0"]
    counted = Yolo(threshold=metric.threshold)
    for n in range(IMAGES):
        counted.update({"o": outputs[n : n + 1]}, None, reference={"o": reference[n : n + 1]}, size=1)
    assert counted.compute() == metric({"o": outputs}, reference={"o": reference})


def test_a_model_gone_wrong_is_read_as_the_original_is() -> None:
    reference = version_8(*planted())
    assert yolo({"output0": reference["output0"] * 0 - 7}, reference=reference) == 0


def test_boxes_on_the_grid_are_known_by_a_single_side_below_zero() -> None:
    """Most cells of some models say sides of more than a cell: read as pixels, such boxes have no area."""
    boxes, scores = planted(3)
    large = boxes * np.array([1, 1, 2, 2])
    large[0, 7, 2] = boxes[0, 7, 2]
    outputs, metric = yolox(large, scores), Yolo()
    metric.update(outputs, None, reference=outputs, size=IMAGES)
    assert metric.compute() == 100.0
    assert metric._counts[0] == IMAGES * PER_IMAGE


def test_overlapping_boxes_of_a_class_are_one() -> None:
    """Two anchors on one thing are one detection, whichever of them is the better one; of two classes they are two."""
    box = np.array([[[20.0, 20, 10, 10], [21, 20, 10, 10], [50, 50, 10, 10]]]).repeat(9, axis=1)
    scores = np.zeros((1, 27, 2))
    scores[0, :2, 0] = 0.9, 0.8
    scores[0, 2:, 1] = 0.001
    swapped = scores.copy()
    swapped[0, :2, 0] = 0.8, 0.9
    assert yolo(version_8(box, swapped), reference=version_8(box, scores)) == 100
    two = scores.copy()
    two[0, 1] = 0.0, 0.8
    assert yolo(version_8(box, two), reference=version_8(box, scores)) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("metric", "outputs", "message"),
    [
        (yolo, {"y": np.zeros((2, 10))}, r"^metric yolo: no output looks like a YOLO's: .*; there are 'y' \[2, 10\]$"),
        (yolo, {"a": np.zeros((1, 3, 8, 8, 85), np.float32)}, "^metric yolo: no output looks like"),
        (yolo, {"a": np.zeros((1, 4, 80), np.float32)}, "^metric yolo: no output looks like"),
        (ssd, {"boxes": np.zeros((2, 10, 4))}, "^metric ssd: no output looks like boxes"),
        (
            ssd,
            {"boxes": np.zeros((2, 10, 4)), "scores": np.zeros((2, 9, 2))},
            "^metric ssd: no output looks like boxes",
        ),
    ],
)
def test_other_heads_are_refused_in_a_line(metric: DecisionMetric, outputs: Outputs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metric(outputs, reference=outputs)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(0, 20)] * 2), min_size=1, max_size=6))
def test_overlap_is_a_share_symmetric_and_one_with_itself(sides: list[tuple[float, ...]]) -> None:
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in sides])
    shared = overlaps(boxes, boxes)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert shared.min() >= 0 and shared.max() <= 1 + 1e-9
    assert np.allclose(shared, shared.T)
    assert np.allclose(shared.diagonal()[areas > 1e-6], 1)
