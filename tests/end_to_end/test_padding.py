"""Padding counts for nothing: not in what is solved, not in what is chosen, not in what is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from builders import fed
from builders.commands import Ran
from builders.models import Array
from builders.padded import Encoder, sentences
from pcns_onnx import compare, shrink

CHOICES: dict[str, Any] = {"width": 0.7, "multiple": 1, "refine": 10, "threads": 1, "heads": "width"}
COUNT = 120


def weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def unpadded(data: Mapping[str, Array]) -> Callable[[], Iterator[dict[str, Array]]]:
    """The same sentences, each as long as it is."""

    def feeds() -> Iterator[dict[str, Array]]:
        for at, mask in enumerate(data["attention_mask"]):
            yield {name: array[at : at + 1, mask != 0] for name, array in data.items()}

    return feeds


def missed(model: onnx.ModelProto, small: onnx.ModelProto) -> float:
    """Relative error of the states of new sentences, where they count."""
    data = sentences(200, 16, seed=9)
    live = data["attention_mask"] != 0
    a, b = (fed.run(each, data)["states"][live] for each in (model, small))
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(0)))


@pytest.mark.parametrize("left", [False, True])
def test_columns_that_are_padding_in_all_samples_change_no_byte(left: bool) -> None:
    model = Encoder().model
    first, wider, again = (shrink(model, sentences(COUNT, n, left=left), **CHOICES).model for n in (13, 40, 13))
    assert first.SerializeToString() == again.SerializeToString() == wider.SerializeToString()


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT])
def test_a_mask_of_any_type_gives_the_same_weights(kind: int) -> None:
    expected = weights(shrink(Encoder().model, sentences(COUNT, 16), **CHOICES).model)
    found = weights(shrink(Encoder(dtype=kind).model, sentences(COUNT, 16, kind), **CHOICES).model)
    assert found == expected


@pytest.mark.parametrize("encoder", [Encoder(), Encoder(positions=64), Encoder(flat=True)])
def test_padded_sentences_serve_as_well_as_unpadded_ones(encoder: Encoder) -> None:
    data = sentences(COUNT, 64)
    free = Encoder(flat=encoder.flat).model
    ideal = shrink(free, unpadded(data), **CHOICES).model
    padded = shrink(encoder.model, data, **CHOICES).model
    for value in [*padded.graph.input, *padded.graph.output]:
        for axis in [d for d in value.type.tensor_type.shape.dim if d.dim_value == 64]:
            axis.dim_param = "sequence"
    assert missed(free, padded) < 1.1 * missed(free, ideal) + 1e-4


@pytest.mark.parametrize("encoder", [Encoder(), Encoder(positions=64), Encoder(flat=True), Encoder(kernel=True)])
def test_the_report_does_not_depend_on_how_much_padding_there_is(encoder: Encoder) -> None:
    """Errors are of what counts: shares of how much that varies, whatever stands beside it."""
    narrow, wide = Encoder(**{**vars(encoder), "positions": "sequence"}), encoder
    short, long = sentences(COUNT, 13), sentences(COUNT, 64)
    small = shrink(narrow.model, short, **CHOICES).model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(small)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == "sequence" and wide.positions == 64:
                axis.Clear()
                axis.dim_value = 64
    a = compare(narrow.model, small, short, threads=1).agreement
    b = compare(wide.model, fixed, long, threads=1).agreement
    for first, second in zip(a.outputs, b.outputs, strict=True):
        assert first.relative_error == pytest.approx(second.relative_error, rel=1e-4)
        assert first.cosine == pytest.approx(second.cosine, abs=1e-6)
        assert [w.sample for w in first.worst] == [w.sample for w in second.worst]
        assert [w.error for w in first.worst] == pytest.approx([w.error for w in second.worst], rel=1e-3)


def test_masked_tokens_that_matter_are_left_in_and_told() -> None:
    encoder = Encoder(attends=True)
    report = shrink(encoder.model, sentences(COUNT, 16), **CHOICES).report
    assert [w for w in report.warnings if w.startswith("padding counts like all else")]
    ignored = shrink(Encoder(attends=True, name="shown").model, sentences(COUNT, 16, name="shown"), **CHOICES).report
    assert report.agreement.outputs == ignored.agreement.outputs


def test_labels_and_metrics_are_told_of_samples_in_their_order() -> None:
    """The embedding of each sentence comes back with its own label, whatever batch it was run in."""
    encoder, data = Encoder(outputs=("embedding",)), sentences(COUNT, 32)
    embedding = fed.run(encoder.model, data)["embedding"]
    data["labels"] = embedding.argmax(axis=1)
    seen: list[Array] = []

    def metric(outputs: Mapping[str, Array], labels: Array, reference: Mapping[str, Array]) -> float:
        seen.append(reference["embedding"])
        return 100 * float((outputs["embedding"].argmax(axis=1) == labels).mean())

    small = shrink(encoder.model, data, **CHOICES, batch=16).model
    plain = compare(encoder.model, small, data, threads=1, batch=16).agreement
    scored = compare(encoder.model, small, data, threads=1, batch=16, metric=metric).agreement
    assert plain.score_a == scored.score_a == 100.0
    assert plain.score_b == pytest.approx(scored.score_b)
    np.testing.assert_allclose(np.concatenate(seen[-2 * -(-COUNT // 16) :: 2]), embedding, atol=1e-5)


def test_a_metric_sees_positions_as_they_were_fed() -> None:
    data, shapes = sentences(40, 24), set[tuple[int, ...]]()

    def metric(outputs: Mapping[str, Array], labels: Array | None) -> float:
        shapes.add(outputs["states"].shape[1:])
        return 0.0

    compare(Encoder().model, Encoder().model, data, threads=1, metric=metric)
    assert shapes == {(24, 16)}


def test_the_mask_can_be_named(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    onnx.save(Encoder(name="shown").model, model)
    feeds: dict[str, Any] = sentences(COUNT, 16, name="shown")
    np.savez(data, **feeds)
    out = tmp_path / "o.onnx"
    said = "what 'shown' masks does not count"
    command = ("shrink", model, "--data", data, "--width", "0.7", "--refine", "0", "--threads", "1", "-o", out)
    ran = run(*command, "--mask", "shown")
    assert ran.code == 0 and said in ran.err + ran.out
    assert said not in "".join((again := run(*command)).err + again.out)
    refused = run(*command[:-1], tmp_path / "p.onnx", "--mask", "input_ids")
    assert refused.code != 0 and not (tmp_path / "p.onnx").exists()
    assert "--mask 'input_ids' holds other values than 0 and 1" in refused.err


def test_refinement_sees_sentences_of_all_lengths() -> None:
    data = sentences(COUNT, 40)
    padded = shrink(Encoder().model, data, **CHOICES).report
    free = shrink(Encoder().model, unpadded(data), **CHOICES).report
    rows = int(data["attention_mask"].sum())
    for report in (padded, free):
        (refined,) = [one for group in report.groups for one in group.refined.values()]
        assert 0.6 * rows < refined.rows < rows and refined.steps


def test_workers_leave_the_same_out() -> None:
    pytest.importorskip("distributed")
    model, more = Encoder().model, [dict[str, Any](batch=8), dict[str, Any](batch=8, workers=2)]
    here, there = (shrink(model, sentences(COUNT, 16), **CHOICES, **own).model for own in more)
    assert missed(model, there) == pytest.approx(missed(model, here), rel=0.05)
