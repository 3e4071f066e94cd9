"""Every architecture in every form: what is superfluous goes, and the rest runs at other batches and lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from builders.models import Array, relative
from pcns_onnx import ShrinkResult, shrink
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine
from robustness.transformer_blocks import LENGTH, Net
from robustness.transformers import convnext, row, rows, samples

ROWS = [*rows(), ("ConvNeXt", "plain")]
OFTEN = {("BERT", "ort"), ("GPT-2", "onnx"), ("Llama", "ort"), ("Llama with a cache", "ort"), ("Qwen3", "onnx"),
         ("Whisper decoder", "ort"), ("Swin", "plain")}  # fmt: skip
"""Rows that run at every commit: each kind of attention once."""
EVERY = [pytest.param(*one, marks=[] if one in OFTEN else [pytest.mark.slow], id=" ".join(one)) for one in ROWS]


def made(name: str, form: str) -> tuple[onnx.ModelProto, Net]:
    return convnext() if name == "ConvNeXt" else row(name, form)


def outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return [np.asarray(y) for y in Engine().session(Program(model.SerializeToString())).run(feeds).values()]


def shrunk(model: onnx.ModelProto, net: Net, **choices: Any) -> ShrinkResult:
    data = samples(model, net, 600 if net.recipe.cache else 120)
    result = shrink(model, data, refine=0, **choices)
    Graph.load(result.model).check(full=True)
    return result


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_what_is_superfluous_goes_without_a_trace(name: str, form: str) -> None:
    model, net = made(name, form)
    small = shrunk(model, net, width=0.5, multiple=1).model
    is_open = "S" in {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    longer = LENGTH + 3 if is_open and net.recipe.positions != "relative" else LENGTH
    for count, length in ((3, LENGTH), (1, LENGTH), (2, longer)):
        feeds = samples(model, net, count, 5, length)
        before, after = outputs(model, feeds), outputs(small, feeds)
        assert [y.shape for y in before] == [y.shape for y in after]
        assert max(relative(a, b) for a, b in zip(before, after, strict=True)) < 1e-4


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_a_budget_is_kept(name: str, form: str) -> None:
    model, net = made(name, form)
    result = shrunk(model, net, budget="macs=0.6")
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    feeds = samples(model, net, 2, 5)
    if result.report.after.macs < 0.58 * result.report.before.macs or net.recipe.cache:
        limit = 0.1 if net.recipe.cache else 1e-4
        assert relative(outputs(model, feeds)[0], outputs(result.model, feeds)[0]) < limit
