"""Residual streams are found where all that writes and reads them is linear, and refused with a reason elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.streams import decoder
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.streams.search import find_streams
from pcns_onnx.dependency.streams.stream import Streams
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.canonical import Canonical
from robustness.transformer_blocks import Net
from robustness.transformers import samples


def found_in(model: onnx.ModelProto, net: Net) -> Streams:
    twin = Canonical.of(Graph.load(model)).twin
    shapes = {name: value.shape for name, value in samples(model, net, 2).items()}
    return find_streams(twin, build_dependency_graph(twin, shapes))


def test_a_stream_runs_from_its_tables_to_the_head() -> None:
    (stream,) = found_in(*decoder("Llama", "onnx")).streams
    assert (stream.name, stream.width, stream.centres) == ("table", 64, False)
    blocks = ("layer0", "layer1")
    assert stream.writers.keys() == {f"{block}.{part}" for block in blocks for part in ("attention.o", "ffn.down")}
    parts = ("attention.q", "attention.k", "attention.v", "ffn.up", "ffn.gate")
    assert stream.readers.keys() == {"lm_head", *(f"{block}.{part}" for block in blocks for part in parts)}
    assert len(stream.norms) == 5 and not stream.ends and not stream.entries


def test_what_an_encoder_hands_over_is_no_part_of_the_decoders_stream() -> None:
    (stream,) = found_in(*decoder("Whisper decoder", "plain")).streams
    assert {"layer0.cross.q", "layer0.ffn.up"} <= stream.readers.keys()
    assert "layer0.cross.k" not in stream.readers


def test_norms_behind_the_sums_are_refused() -> None:
    streams = found_in(*decoder("BERT", "ort"))
    assert not streams.streams and any("post-norm" in reason for reason in streams.refused.values())


def behind(op: str, *others: str, domain: str = "") -> Callable[[onnx.ModelProto, str], None]:
    """Put a node on a tensor, and let it be one more output of the model."""

    def put(model: onnx.ModelProto, tensor: str) -> None:
        model.graph.node.append(helper.make_node(op, [tensor, *others], ["more"], domain=domain, name="more"))
        model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", None, 64]))

    return put


def last_sum(model: onnx.ModelProto) -> str:
    return next(str(node.input[0]) for node in model.graph.node if node.name == "last_norm")


def last_normed(model: onnx.ModelProto) -> str:
    return next(str(node.output[0]) for node in model.graph.node if node.name == "last_norm")


REFUSED = {
    "a nonlinear function of it": ("GPT-2", behind("Relu"), last_sum, "Relu 'more' does not treat its channels alike"),
    "one of what a norm makes": ("GPT-2", behind("Softmax"), last_normed, "does not treat its channels alike behind"),
    "a norm that gives its statistics": ("GPT-2", behind("LpNormalization"), last_sum, "LpNormalization 'more'"),
    "its mean is shown": ("GPT-2", behind("Identity"), last_sum, "with the mean of its channels"),
    "a gate made of it": ("Llama", behind("Sigmoid"), last_normed, "Sigmoid 'more'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_mixes_it_not_linearly_is_a_reason(case: str) -> None:
    name, put, where, reason = REFUSED[case]
    model, net = decoder(name, "onnx")
    put(model, where(model))
    streams = found_in(model, net)
    assert not streams.streams and reason in streams.refused["table"]


def test_part_of_its_channels_is_a_reason() -> None:
    model, net = decoder("Llama", "onnx")
    tensor = last_normed(model)
    for name, value in (("start", [0]), ("stop", [32]), ("axis", [2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    model.graph.node.append(helper.make_node("Slice", [tensor, "start", "stop", "axis"], ["half"], name="half"))
    model.graph.output.append(helper.make_tensor_value_info("half", TensorProto.FLOAT, ["N", None, 32]))
    assert "Slice 'half'" in found_in(model, net).refused["table"]


def test_without_residual_sums_there_is_no_stream() -> None:
    model, net = decoder("Llama", "onnx", layers=0)
    assert not found_in(model, net).streams and not found_in(model, net).refused
