"""What is not solved for stays as it is, is listed with the reason, and the model shrinks around it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from builders.chains import C, ints, node, random
from builders.contract import surveyed
from builders.intact import SHRUNK, WIDE, Case
from builders.models import relative, run
from pcns_onnx import inspect, shrink
from pcns_onnx.graph import Graph
from pcns_onnx.ops.normalization import SEVERAL


@pytest.mark.parametrize("name", SHRUNK)
def test_the_rest_is_shrunk_around_it(name: str) -> None:
    case = SHRUNK[name]
    model = case.build()
    x = np.random.default_rng(0).standard_normal((60, 4, 5)).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1", refine=0)
    assert {group: plan.width for group, plan in result.plan.groups.items()} == {"a": WIDE // 2, "d": WIDE // 2}
    reasons = {name: item.reason for item in result.report.left_alone for name in item.layers}
    assert reasons[case.name] == case.reason
    if case.name != "h":
        assert "h" in reasons
    onnx.checker.check_model(result.model)
    assert np.isfinite(run(result.model, x)).all()
    before = {t.name: t for t in model.graph.initializer}
    after = {t.name: t for t in result.model.graph.initializer}
    assert all(after[key].SerializeToString() == before[key].SerializeToString() for key in case.weights)
    assert [f.name for f in result.model.functions] == [f.name for f in case.functions]
    assert [t.values.name for t in result.model.graph.sparse_initializer] == [t.values.name for t in case.sparse]


@pytest.mark.parametrize("name", SHRUNK)
def test_at_full_width_of_what_is_superfluous_nothing_is_lost(name: str) -> None:
    """Half of the channels that may go are copies of the others."""
    model = SHRUNK[name].build()
    for tensor in model.graph.initializer:
        if tensor.name in ("A", "a1", "D"):
            value = numpy_helper.to_array(tensor).copy()
            value[..., WIDE // 2 :] = value[..., : WIDE // 2]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    x = np.random.default_rng(0).standard_normal((60, 4, 5)).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1", refine=0)
    loose = 0.02 if "quantised" in name or "integer" in name else 1e-3
    assert relative(run(model, x), run(result.model, x)) < loose


@pytest.mark.parametrize("name", SHRUNK)
def test_it_is_listed_with_its_cost(name: str) -> None:
    case = SHRUNK[name]
    x = np.random.default_rng(0).standard_normal((8, 4, 5)).astype(np.float32)
    rows = {row.name: row for row in inspect(case.build(), x).layers}
    assert rows[case.name].reason == case.reason
    if case.macs is not None:
        assert rows[case.name].macs == case.macs
    assert rows["a"].reason is None and rows["d"].reason is None


LAYOUT = "LSTM 'r' has its samples in front (layout 1), which onnxruntime does not run"


def test_a_batch_first_recurrent_layer_is_known_too() -> None:
    """Which onnxruntime's CPU does not run."""
    middle = [node("LSTM", "h W R", "r", hidden_size=3, layout=1), node("Reshape", "r shape", "m")]
    weights = {"W": random(1, 12, C), "R": random(1, 12, 3), "shape": ints(0, 4, 3)}
    _, dependencies = surveyed(Case(middle, weights, "r", "", 3).build())
    assert {g.name: g.frozen for g in dependencies.groups}["h"] == LAYOUT
    assert [(u.name, u.macs, u.width) for u in dependencies.unsolved] == [("r", 4 * 12 * (C + 3), 3)]


def test_another_domain_that_nothing_here_runs() -> None:
    middle = [node("Fancy", "h W", "m", domain="my.ops")]
    _, dependencies = surveyed(Case(middle, {"W": random(C, C)}, "m", "", domains=("my.ops",)).build())
    frozen = {group.name: group.frozen for group in dependencies.groups}
    assert frozen["h"] == "my.ops.Fancy 'm' is not understood" and frozen["a"] is None
    first = dependencies.unsolved[0]
    assert (first.name, first.reason, first.parameters) == ("m", "my.ops.Fancy 'm' is not understood", C * C)


@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_onnxruntimes_own_default_operators_are_taken(op: str) -> None:
    """onnx knows the one from opset 17 on and the other not at all: onnxruntime's optimizer writes both."""
    case = Case([node(op, "h g", "m", axis=-1)], {"g": random(C)}, "h", "", opset=13)
    model = case.build(checked=False)
    x = np.random.default_rng(0).standard_normal((60, 4, 5)).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1", refine=0)
    assert set(result.plan.groups) == {"a", "d"}
    reasons = {name: item.reason for item in result.report.left_alone for name in item.layers}
    assert reasons["h"] == f"{op} 'm' {SEVERAL}"


@pytest.mark.parametrize("name", ["loop", "sparse weight", "lstm"])
def test_half_precision_is_kept_inside_too(name: str) -> None:
    model = halves(SHRUNK[name].build())
    x = np.random.default_rng(0).standard_normal((60, 4, 5)).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple="1", refine=0)
    assert set(result.plan.groups) == {"a", "d"}
    small = Graph.load(result.model)
    assert small.storage == "float16" and np.isfinite(run(result.model, x)).all()


def halves(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, in subgraphs too."""

    def convert(graph: onnx.GraphProto) -> None:
        for tensor in [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]:
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in [*graph.input, *graph.output]:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        for item in graph.node:
            for attr in item.attribute:
                convert(attr.g)

    convert(model.graph)
    return model
