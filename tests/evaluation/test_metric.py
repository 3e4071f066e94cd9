"""What a metric may be, what it is given, and gates on a small detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from builders.detector import SIZE, images
from pcns_onnx import GateError, InputError, compare, shrink
from pcns_onnx.evaluation.metric import Score, load_metric
from pcns_onnx.metrics import Yolo, yolo

Array = NDArray[Any]
Outputs = dict[str, Array]
PLACES = SIZE * SIZE
NAME = "pcns_onnx.metrics:yolo"


class Largest:
    """As torchmetrics: counts batch by batch and has the last word."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, outputs: Outputs, labels: Array | None) -> None:
        self.values.append(float(outputs["y"].max()))

    def compute(self) -> float:
        return max(self.values)


def scored(metric: Any, *batches: Array) -> float:
    score = Score(metric)
    for batch in batches:
        score.add({"y": batch}, None, {"y": batch + 1}, len(batch))
    return score.value


def test_a_function_is_averaged_by_size() -> None:
    assert scored(lambda outputs, labels: outputs["y"].mean(), np.zeros(3), np.ones(1)) == 0.25


def test_who_names_the_reference_gets_it() -> None:
    assert scored(lambda outputs, labels, reference: (reference["y"] - outputs["y"]).mean(), np.zeros(3)) == 1
    assert scored(lambda outputs, labels, *, size, reference: size, np.zeros(3), np.zeros(3)) == 3
    assert scored(lambda outputs, labels, threshold=7: threshold, np.zeros(3)) == 7


@pytest.mark.parametrize("metric", [Largest, Largest()], ids=["a class", "an object"])
def test_an_object_counts_anew_for_every_model(metric: Any) -> None:
    assert scored(metric, np.ones(3), np.zeros(2)) == 1
    assert scored(metric, np.zeros(3)) == 0


def test_objects_are_metrics_by_name() -> None:
    assert load_metric("pcns_onnx.metrics:yolo") is yolo
    assert load_metric("pcns_onnx.metrics:Yolo") is Yolo
    own = Largest()
    assert load_metric(own) is own


@pytest.mark.parametrize("name", ["update", "compute"])
def test_what_fails_inside_is_said_in_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Largest, *args: Any) -> float:
        raise KeyError("nobody")

    monkeypatch.setattr(Largest, name, fails)
    with pytest.raises(InputError, match=r"^the metric failed: KeyError: 'nobody'$"):
        scored(Largest, np.ones(3))


def detector() -> onnx.ModelProto:
    """A YOLO in miniature, (N, 4 + 3, PLACES): every channel of its body is there twice, but for a thousandth."""
    rng = np.random.default_rng(3)

    def twice(*shape: int) -> Array:
        half = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        return np.concatenate([half, 1.5 * half + 1e-3 * rng.standard_normal(shape)])

    row, column = np.divmod(np.arange(PLACES), SIZE)
    offset = np.zeros((1, 7, PLACES))
    offset[0, :4] = column, row, np.full(PLACES, 2), np.full(PLACES, 2)
    stored = {
        "w1": twice(8, 3, 3, 3), "b1": np.repeat([0.1, 0.15], 8),
        "w2": twice(8, 16, 3, 3), "b2": np.repeat([0.1, 0.15], 8),
        "w3": rng.normal(0, 0.4, (7, 16, 1, 1)), "b3": np.array([0, 0, 0, 0, -1, -1, -1]), "offset": offset,
    }  # fmt: skip
    weights = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "c1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "c2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], "c3"),
        helper.make_node("Reshape", ["c3", "shape"], ["flat"]),
        helper.make_node("Sigmoid", ["flat"], ["shares"]),
        helper.make_node("Add", ["shares", "offset"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 7, PLACES])],
        [*weights, numpy_helper.from_array(np.array([0, 7, PLACES]), "shape")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", [1, 64])
def test_a_gate_on_detections_without_a_label(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "small.onnx"
    result = shrink(
        detector(),
        images(80),
        path,
        width=0.5,
        metric=NAME,
        max_drop=2,
        batch=batch,
        threads=1,
        refine=0,
    )
    agreement = result.report.agreement
    assert agreement.score == "metric" and agreement.score_a == 100
    assert agreement.score_b is not None and 98 <= agreement.score_b <= 100
    assert path.exists()


def test_a_gate_on_detections_that_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    with pytest.raises(GateError, match=r"^gate failed: max-drop [\d.]+ exceeds 2"):
        shrink(detector(), images(40), path, width=0.1, metric=NAME, max_drop=2, threads=1, refine=0)
    assert not path.exists()


def test_a_metric_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"^metric ssd: no output looks like boxes .* there are 'y' \[\d+, 7, 256\]$"):
        shrink(detector(), images(40), width=0.5, metric="pcns_onnx.metrics:ssd", threads=1)


def test_where_nothing_is_found_no_gate_passes() -> None:
    """NaN is no agreement: the report says so."""
    model, nothing = detector(), Yolo(threshold=2.0)
    report = compare(model, model, images(8), metric=nothing, threads=1)
    assert report.agreement.score_a is not None and np.isnan(report.agreement.score_a)
    assert any(text.startswith("the metric is no number") for text in report.warnings)
    with pytest.raises(GateError, match="max-drop nan exceeds 5"):
        compare(model, model, images(8), metric=nothing, max_drop=5, threads=1)
