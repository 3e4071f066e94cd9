"""Outputs as long as their samples, without an axis of channels that would be the same in all: a tag per letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array
from pcns_onnx import compare, quantize, shrink

RNG = np.random.default_rng(0)
LETTERS, WIDTH, TAGS = 20, 16, 3


def tagger(form: str) -> onnx.ModelProto:
    """Letters (1, S) through a Conv over time: S scores, or rows of tags whose number is not stated."""
    node = helper.make_node
    stored = {
        "table": RNG.standard_normal((LETTERS, 8)), "w1": RNG.standard_normal((WIDTH, 8, 3)) / 5,
        "b1": RNG.standard_normal(WIDTH), "w2": RNG.standard_normal((1 if form == "scores" else TAGS, WIDTH, 1)) / 4,
    }  # fmt: skip
    nodes = [
        node("Gather", ["table", "x"], ["e"]), node("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
        node("Conv", ["t", "w1", "b1"], ["c"], pads=[1, 1]), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "w2"], ["s"]), node("Reshape", ["s", "shape"], ["y"]),
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    shape: list[int] = {"scores": [-1], "a row": [1, -1], "rows": [1, -1, TAGS]}[form]
    tensors.append(numpy_helper.from_array(np.array(shape), "shape"))
    graph = helper.make_graph(
        nodes, form, [helper.make_tensor_value_info("x", TensorProto.INT64, [1, "S"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"D{axis}" for axis in range(len(shape))])], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def words(seed: int = 0) -> Iterator[dict[str, Array]]:
    """60 words, of 2 to 25 letters."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        yield {"x": rng.integers(0, LETTERS, (1, int(rng.integers(2, 26))))}


@pytest.mark.parametrize("form", ["scores", "a row", "rows"])
def test_a_tag_per_letter_is_compared_whatever_the_length(form: str, tmp_path: Path) -> None:
    model = tagger(form)
    result = shrink(model, list(words()), width=0.5, refine=0, threads=1)
    (output,) = result.report.agreement.outputs
    assert output.relative_error is not None and 0 < output.relative_error < 1
    again = compare(model, result.model, list(words(1)), threads=1).agreement
    assert again.samples == 60 and 0 < again.error < 1
    lowered = quantize(model, list(words()), threads=1)
    assert 0 < lowered.report.agreement.error < 0.2
    same = compare(model, model, list(words(2)), threads=1).agreement
    assert same.error == 0
