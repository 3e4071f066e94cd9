"""The figures of a comparison against the same figures worked out in NumPy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.data.dataset import open_data
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.agreement import Agreement, compare_outputs
from pcns_onnx.evaluation.metric import Metric, load_metric
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

Array = NDArray[Any]
Outputs = Mapping[str, Array]
ROWS = 23
X = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 3, ROWS)


def scores(seed: int, classes: int = 3) -> Array:
    """A weight (4, classes)."""
    return np.random.default_rng(seed).standard_normal((4, classes)).astype(np.float32)


def model(*heads: tuple[str, Array, Sequence[onnx.NodeProto], int]) -> Graph:
    """x (N, 4) @ weight, then nodes from `<name>0` to `name`: one output of a given type per head."""
    nodes: list[onnx.NodeProto] = []
    for name, _, then, _ in heads:
        nodes.append(helper.make_node("MatMul", ["x", f"w_{name}"], [f"{name}0"]))
        nodes += [*then] or [helper.make_node("Identity", [f"{name}0"], [name])]
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, kind, ["N", "K"]) for name, _, _, kind in heads],
        [numpy_helper.from_array(weight, f"w_{name}") for name, weight, _, _ in heads],
    )
    return Graph.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def plain(weight: Array, name: str = "y") -> Graph:
    """One output of floats."""
    return model((name, weight, (), TensorProto.FLOAT))


def converted(weight: Array, kind: int) -> Graph:
    """One output, cast to another type."""
    return model(("y", weight, [helper.make_node("Cast", ["y0"], ["y"], to=kind)], kind))


def compared(
    a: Graph, b: Graph, *, labels: Array | None = None, metric: Metric | None = None, batch: int = 5
) -> Agreement:
    arrays = {"x": X} if labels is None else {"x": X, "labels": labels}
    samples = Samples(open_data(arrays, a.inputs), batch)
    return compare_outputs(Engine(), a, b, samples, metric, Progress())


def centred(a: Array, b: Array) -> float:
    """|a - b| as a share of how a varies."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(axis=0)))


def cosines(a: Array, b: Array) -> Array:
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_figures_of_a_classifier(batch: int) -> None:
    a, b = scores(1), scores(1) + 0.4 * scores(2)
    found = compared(plain(a), plain(b), labels=LABELS, batch=batch)
    left, right = (X.astype(np.float64) @ w for w in (a, b))
    (output,) = found.outputs
    assert found.samples == ROWS
    assert output.name == "y"
    assert output.relative_error == pytest.approx(centred(left, right), rel=1e-4) == found.error
    assert output.cosine == pytest.approx(cosines(left, right).mean(), rel=1e-5)
    assert output.argmax_agreement == pytest.approx((left.argmax(1) == right.argmax(1)).mean())
    assert found.score == "accuracy"
    assert found.score_a == pytest.approx(100 * (left.argmax(1) == LABELS).mean())
    assert found.score_b == pytest.approx(100 * (right.argmax(1) == LABELS).mean())
    assert found.drop == pytest.approx(100 * ((left.argmax(1) == LABELS).mean() - (right.argmax(1) == LABELS).mean()))
    assert found.drop


def test_a_model_agrees_with_itself() -> None:
    found = compared(plain(scores(1)), plain(scores(1)), labels=LABELS)
    assert found.outputs[0].relative_error == 0 == found.drop
    assert found.outputs[0].cosine == pytest.approx(1)
    assert found.outputs[0].argmax_agreement == 1


def test_the_error_is_that_of_the_worst_output() -> None:
    def two(second: Array) -> Graph:
        return model(("y", scores(1), (), TensorProto.FLOAT), ("z", second, (), TensorProto.FLOAT))

    found = compared(two(scores(2, 5)), two(scores(3, 5)))
    assert [o.name for o in found.outputs] == ["y", "z"]
    assert found.outputs[0].relative_error == 0
    assert (
        found.error
        == found.outputs[1].relative_error
        == pytest.approx(centred(X @ scores(2, 5), X @ scores(3, 5)), rel=1e-4)
    )


@pytest.mark.parametrize(
    ("a", "b", "error", "cosine"),
    [(0, 0, 0.0, None), (0, 1, None, 0.0), (1, 0, centred(X @ scores(1), 0 * X @ scores(1)), 0.0)],
    ids=["both", "the original's", "the other's"],
)
def test_outputs_of_zeros(a: float, b: float, error: float | None, cosine: float | None) -> None:
    (output,) = compared(plain(np.float32(a) * scores(1)), plain(np.float32(b) * scores(1))).outputs
    assert output.relative_error == (None if error is None else pytest.approx(error, rel=1e-4))
    assert output.cosine == cosine


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL])
def test_outputs_of_integers_have_no_arg_max(kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    a, b = 3 * np.abs(scores(1)), 3 * np.abs(scores(2))
    x = np.abs(X)
    samples = Samples(open_data({"x": x, "labels": LABELS}, plain(a).inputs), 5)
    found = compare_outputs(Engine(), converted(a, kind), converted(b, kind), samples, None, Progress())
    left, right = ((x @ w).astype(dtype).astype(np.float64) for w in (a, b))
    differs = float(np.mean(left != right)) ** 0.5  # indices and truth values are equal or not
    error = centred(left, right) if kind == TensorProto.UINT8 else differs
    assert found.outputs[0].relative_error == pytest.approx(error, rel=1e-4)
    assert found.outputs[0].argmax_agreement is None
    assert (found.score, found.score_a, found.drop) == (None, None, None)


def test_outputs_of_half_precision_are_classes_too() -> None:
    found = compared(converted(scores(1), TensorProto.FLOAT16), converted(scores(1), TensorProto.FLOAT16))
    assert found.outputs[0].argmax_agreement == 1


def test_the_largest_number_of_an_embedding_is_no_class() -> None:
    def embedding(weight: Array) -> Graph:
        return model(("y", weight, [helper.make_node("LpNormalization", ["y0"], ["y"])], TensorProto.FLOAT))

    (output,) = compared(embedding(scores(1)), embedding(scores(1) + 0.4 * scores(2))).outputs
    assert output.argmax_agreement is None and output.flips is None
    left, right = (X @ w for w in (scores(1), scores(1) + 0.4 * scores(2)))
    assert output.cosine == pytest.approx(cosines(left, right).mean(), rel=1e-4)


def test_outputs_of_text_are_compared_by_equality() -> None:
    a, b = (converted(np.round(scores(seed)), TensorProto.STRING) for seed in (1, 2))
    same, other = compared(a, a).outputs[0], compared(a, b).outputs[0]
    assert same.relative_error == 0 and same.cosine == pytest.approx(1) and same.argmax_agreement is None
    assert 0 < (other.relative_error or 0) <= 1


@pytest.mark.parametrize(
    ("labels", "score"),
    [(LABELS, "accuracy"), (LABELS[:, None], "accuracy"), (np.eye(3, dtype=np.int64)[LABELS], None), (None, None)],
    ids=["flat", "a column", "one per class", "none"],
)
def test_accuracy_needs_one_label_per_sample(labels: Array | None, score: str | None) -> None:
    found = compared(plain(scores(1)), plain(scores(2)), labels=labels)
    assert found.score == score
    assert (found.drop is None) == (score is None)
    if score:
        assert found.score_b == pytest.approx(100 * ((X @ scores(2)).argmax(1) == LABELS).mean())


def test_accuracy_needs_one_row_per_sample() -> None:
    shape = helper.make_node("Constant", [], ["s"], value_ints=[-1, 6])

    def paired(seed: int) -> Graph:
        joined = [shape, helper.make_node("Reshape", ["y0", "s"], ["y"])]
        return model(("y", scores(seed, 6), joined, TensorProto.FLOAT))

    def doubled(seed: int) -> Graph:
        half = helper.make_node("Constant", [], ["s"], value_ints=[-1, 3])
        return model(("y", scores(seed, 6), [half, helper.make_node("Reshape", ["y0", "s"], ["y"])], TensorProto.FLOAT))

    assert compared(paired(1), paired(2), labels=LABELS).score == "accuracy"
    found = compared(doubled(1), doubled(2), labels=LABELS)
    assert found.score is None and found.drop is None and found.outputs[0].argmax_agreement is not None


def test_accuracy_is_of_the_first_output_with_classes() -> None:
    def two(last: Array) -> Graph:
        return model(("size", scores(9, 1), (), TensorProto.FLOAT), ("y", last, (), TensorProto.FLOAT))

    found = compared(two(scores(1)), two(scores(2)), labels=LABELS)
    assert found.outputs[0].argmax_agreement is None
    assert found.score_a == pytest.approx(100 * ((X @ scores(1)).argmax(1) == LABELS).mean())


def test_a_metric_is_averaged_by_the_size_of_the_batches() -> None:
    def first_score(outputs: Outputs, labels: Array | None) -> float:
        assert labels is not None and len(labels) == len(outputs["y"])
        return float(outputs["y"][:, 0].mean())

    found = compared(plain(scores(1)), plain(scores(2)), labels=LABELS, metric=first_score, batch=10)
    assert found.score == "metric"
    assert found.score_a == pytest.approx((X @ scores(1))[:, 0].mean(), abs=1e-5)
    assert found.score_b == pytest.approx((X @ scores(2))[:, 0].mean(), abs=1e-5)


def test_a_metric_needs_no_labels() -> None:
    found = compared(plain(scores(1)), plain(scores(2)), metric=lambda outputs, labels: float(labels is None))
    assert (found.score_a, found.score_b, found.drop) == (1, 1, 0)


def test_a_metric_that_fails_is_an_input_error() -> None:
    def fails(outputs: Outputs, labels: Array | None) -> float:
        return float(outputs["nobody"].mean())

    with pytest.raises(InputError, match=r"^the metric failed: KeyError: 'nobody'$"):
        compared(plain(scores(1)), plain(scores(2)), metric=fails)


def test_outputs_of_different_names_or_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"^the models have different outputs: \['y'\] and \['z'\]$"):
        compared(plain(scores(1)), plain(scores(1), "z"))
    with pytest.raises(InputError, match=r"^output 'y' has shape \(5, 3\) in one model and \(5, 4\) in the other$"):
        compared(plain(scores(1)), plain(scores(1, 4)))


def test_no_whole_batch_is_no_comparison() -> None:
    graph = plain(scores(1))
    with pytest.raises(InputError, match=r"^there is no sample to verify on"):
        compare_outputs(Engine(), graph, graph, Samples(open_data(X, graph.inputs), 64, True), None, Progress())


def test_a_metric_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scores_for_verify.py").write_text("def one(outputs, labels):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = load_metric("scores_for_verify:one")
    assert callable(found) and found({}, None) == 1
    assert load_metric(found) is found
    assert load_metric(None) is None
