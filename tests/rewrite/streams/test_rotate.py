"""A stream in another basis: whole it is the model that it was, in every form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from builders.models import Array, relative
from builders.streams import decoder, tied, with_norms_in_pieces, with_skip_norms
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.streams.search import find_streams
from pcns_onnx.graph import Graph, Program
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.streams.rotate import rotate_stream
from pcns_onnx.runtime.engine import Engine
from robustness.transformer_blocks import LENGTH, Net
from robustness.transformers import rows, samples

Made = tuple[onnx.ModelProto, Net]
PRE_NORM = [(name, form) for name, form in rows() if name != "BERT"]


def outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return [np.asarray(y) for y in Engine().session(Program(model.SerializeToString())).run(feeds).values()]


def rotated(model: onnx.ModelProto, net: Net, width: int) -> Graph:
    """The model with a random basis for its stream, of which the first axes are kept."""
    form = Canonical.of(Graph.load(model))
    shapes = {name: value.shape for name, value in samples(model, net, 2).items()}
    streams = find_streams(form.twin, build_dependency_graph(form.twin, shapes))
    assert not streams.refused
    (stream,) = streams.streams
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((stream.width, stream.width)))[0]
    typed, added = explicit_biases(rotate_stream(form.typed, stream, basis[:, :width]))
    small = emit(replace(form, typed=typed, twin=typed.as_float32(), added=form.added + added), ())
    small.check(full=True)
    return small


def is_exact(model: onnx.ModelProto, net: Net) -> Graph:
    whole = rotated(model, net, 64)
    is_open = "S" in {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    longer = LENGTH + 2 if is_open and net.recipe.positions != "relative" else LENGTH
    for count, length in ((2, LENGTH), (1, longer)):
        feeds = samples(model, net, count, 5, length)
        pairs = zip(outputs(model, feeds), outputs(whole.proto, feeds), strict=True)
        assert max(relative(a, b) for a, b in pairs) < 1e-5
    return whole


@pytest.mark.parametrize(("name", "form"), PRE_NORM, ids=[" ".join(one) for one in PRE_NORM])
def test_all_axes_are_the_model_that_it_was(name: str, form: str) -> None:
    is_exact(*decoder(name, form))


def in_skip_norms(name: str) -> Made:
    model, net = decoder(name, "ort")
    return with_skip_norms(model), net


def in_pieces() -> Made:
    model, net = decoder("GPT-2", "plain")
    return with_norms_in_pieces(model), net


def tied_behind(name: str, form: str, **choices: object) -> Made:
    model, net = decoder(name, form)
    return tied(model, **choices), net  # type: ignore[arg-type]


FORMS: dict[str, tuple[Callable[[], Made], int]] = {
    "SkipLayerNormalization": (lambda: in_skip_norms("GPT-2"), 0),
    "SkipSimplifiedLayerNormalization": (lambda: in_skip_norms("Gemma"), 0),
    "LayerNormalization in pieces": (in_pieces, 0),
    "tied, a scale per channel": (lambda: tied_behind("Llama", "plain"), 64 * 64),
    "tied, one scale": (lambda: tied_behind("Llama", "onnx", scale=np.full(64, 1.5)), 1),
    "tied, mean taken away": (lambda: tied_behind("GPT-2", "onnx"), 40 * 64),
    "tied, rows without mean": (lambda: tied_behind("GPT-2", "onnx", centred=True), 64 * 64),
}


@pytest.mark.parametrize("form", FORMS)
def test_so_they_are_in_every_form_of_norms_and_heads(form: str) -> None:
    """And a table that is the head, too, stays one where it can: all that is added is what is said here."""
    make, more = FORMS[form]
    model, net = make()
    whole = is_exact(model, net)
    beside = 5 * 64 + 4 * 64 + net.recipe.hidden * 4  # biases that norms leave behind, less what they had
    assert whole.parameters <= Graph.load(model).parameters + more + beside
    if more not in (0, 40 * 64):
        assert sum(tensor.name.startswith("table") for tensor in whole.proto.graph.initializer) == 1


@pytest.mark.parametrize("opset", [23, 17])
def test_a_layer_norm_becomes_one_of_squares(opset: int) -> None:
    """RMSNormalization where there is one; else its pieces, which onnxruntime fuses."""
    model, net = decoder("GPT-2", "onnx" if opset == 23 else "plain")
    operators = [node.op for node in rotated(model, net, 40).nodes]
    assert "LayerNormalization" not in operators
    assert operators.count("RMSNormalization") == (5 if opset == 23 else 0)
    assert operators.count("ReduceMean") == (0 if opset == 23 else 5)
