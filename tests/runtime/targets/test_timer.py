"""A model timed in each runtime that is here: it opens, its layers are found in profiles, refusals are a line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from builders.chains import random
from builders.models import MODELS, build
from pcns_onnx.cost.benchmark import compare_latency
from pcns_onnx.cost.latency_model import measure_layers, seconds_within
from pcns_onnx.cost.latency_table import Table
from pcns_onnx.cost.profiler import Job, take_turns
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples
from pcns_onnx.runtime.targets.registry import ONNXRUNTIME, TARGETS
from pcns_onnx.runtime.targets.timer import (
    missing,
    open_timer,
    require,
    target_of,
    timed_in,
    timed_on,
    timed_threads,
    version_of,
)  # fmt: skip

OTHERS = [name for name, target in TARGETS.items() if target is not ONNXRUNTIME]


def engine_for(name: str) -> Engine:
    """An engine of one thread that times in this runtime; skips where it is not installed."""
    if (why := missing(TARGETS[name])) is not None:
        pytest.skip(why)
    return Engine("cpu", 1, target=name)


@pytest.fixture(params=TARGETS)
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_for(request.param)


def convs() -> Graph:
    """Two Convs with a pool between them and a MatMul, a batch that is open, weights of which some are large."""
    nodes = [
        helper.make_node("Conv", ["x", "A", "a"], ["c"], pads=[1] * 4, name="first"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "B", "b"], ["d"], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "D"], ["y"]),
    ]
    weights = {
        "A": random(32, 8, 3, 3),
        "a": random(32),
        "B": random(32, 32, 3, 3),
        "b": random(32),
        "D": random(32, 4),
    }
    return Graph.load(build(nodes, weights, ("N", 8, 32, 32)))


def fed(graph: Graph) -> Mapping[str, NDArray[Any]]:
    return {spec.name: random(2, *(size or 1 for size in spec.shape[1:])) for spec in graph.inputs}


def test_runs_take_time(engine: Engine) -> None:
    graph = convs()
    with closing(open_timer(engine, graph.program(), fed(graph))) as timer:
        assert all(timer.seconds() > 0 for _ in range(3))


def test_layers_are_found_in_the_whole_model(engine: Engine, tmp_path: Path) -> None:
    graph = explicit_biases(convs())[0]
    dependencies = build_dependency_graph(graph)
    total, within = seconds_within(engine, graph, dependencies, fed(graph))
    assert set(within) == {layer.name for layer in dependencies.layers}
    assert 0 < sum(within.values()) <= 1.5 * total
    model = measure_layers(engine, graph, dependencies, 2, cache=tmp_path)
    assert set(model.layers) == set(within) and all(float(t.at(1.0, 1.0)) > 0 for t in model.layers.values())


@pytest.mark.parametrize("name", ["digits_lstm", "digits_gru"])
def test_recurrent_layers_are_found_in_the_whole_model(engine: Engine, name: str) -> None:
    """In one direction and in both: OpenVINO's go by numbers, and are two where they go both ways."""
    graph = Canonical.of(Graph.load(MODELS / f"{name}.onnx")).twin
    dependencies = build_dependency_graph(graph)
    _, within = seconds_within(engine, graph, dependencies, {graph.inputs[0].name: random(1, 1, 8, 8)})
    recurrent = {layer.name for layer in dependencies.layers if layer.kind in ("LSTM", "GRU")}
    assert recurrent and recurrent <= {name for name, seconds in within.items() if seconds > 0}


def test_wider_layers_take_longer(engine: Engine) -> None:
    """By more than a clock can be wrong: 64 times the multiply-adds."""

    def job(width: int) -> Job:
        node = helper.make_node("MatMul", ["x", "W"], ["y"])
        program = Graph.load(build([node], {"W": random(width, width)}, (64, width))).program()
        return Job(program, {"x": random(64, width)})

    narrow, wide = take_turns(engine, [lambda: job(64), lambda: job(512)], 0.05)
    assert narrow < wide


def test_inputs_of_every_kind(engine: Engine) -> None:
    """Numbers of several types, a scalar, one in half precision (fed in float32), one that is not read."""
    kinds = {"a": TensorProto.FLOAT16, "b": TensorProto.INT64, "c": TensorProto.FLOAT, "d": TensorProto.BOOL}
    values = {"a": random(2, 3), "b": np.ones((2, 3), np.int64), "c": random(), "d": np.ones((2, 3), np.bool_)}
    inputs = [helper.make_tensor_value_info(name, kind, values[name].shape) for name, kind in kinds.items()]
    nodes = [
        helper.make_node("Cast", ["a"], ["a32"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["b"], ["b32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a32", "b32"], ["ab"]),
        helper.make_node("Add", ["ab", "c"], ["abc"]),
        helper.make_node("Where", ["d", "abc", "ab"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {name: np.asarray(value) for name, value in values.items()}
    with closing(open_timer(engine, Graph.load(model).program(), feeds)) as timer:
        assert timer.seconds() > 0


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_runtime_refuses_is_one_line(name: str) -> None:
    """An operator of onnxruntime's own, which it runs itself."""
    engine = engine_for(name)
    node = helper.make_node("Nowhere", ["x"], ["y"], domain="org.nobody")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.nobody", 1)]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets, ir_version=8)
    program = Graph.load(model).program()
    with pytest.raises(InputError, match=f"^{TARGETS[name].title} cannot .*") as refused:
        open_timer(engine, program, {"x": random(2, 3)})
    assert "\n" not in str(refused.value)
    graph = convs()  # and goes on with others
    with closing(open_timer(engine, graph.program(), fed(graph))) as timer:
        assert timer.seconds() > 0


@pytest.mark.parametrize("name", OTHERS)
def test_times_are_kept_by_runtime_and_version(name: str, tmp_path: Path) -> None:
    there, here = Table(engine_for(name), tmp_path), Table(Engine("cpu", 1), tmp_path)
    assert there.look_up("layer", float, lambda: 1.0) == 1.0
    assert here.look_up("layer", float, lambda: 2.0) == 2.0
    assert there.look_up("layer", float, lambda: 3.0) == 1.0
    version = version_of(TARGETS[name])
    assert version is not None
    assert any(f"{TARGETS[name].title} {version}; " in path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", OTHERS)
def test_latency_says_where_it_was_measured(name: str) -> None:
    engine, graph = engine_for(name), convs()
    samples = Samples(open_data({"x": random(2, 8, 32, 32)}, graph.inputs), 2, False)
    latency = compare_latency(engine, graph, graph, samples, 0.05)
    assert latency.provider == timed_in(engine) == f"{TARGETS[name].title} {version_of(TARGETS[name])}"
    assert latency.threads == timed_threads(engine) == 1 and latency.ratio > 0
    assert target_of(engine).name == name and timed_on(engine) == "cpu"


def test_node_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="not installed here: `npm install onnxruntime-web`"):
        require(TARGETS["onnxruntime-web"])


def test_a_packed_program_is_the_model_with_the_sizes_that_it_is_fed() -> None:
    weights = {"A": random(32, 32), "b": random(32)}
    model = build([helper.make_node("Gemm", ["x", "A", "b"], ["y"])], weights, ("N", 32))
    packed = onnx.ModelProto.FromString(Graph.load(model).program().packed({"x": (5, 32)}))
    onnx.checker.check_model(packed)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in packed.graph.initializer}
    assert np.array_equal(stored["A"], weights["A"]) and np.array_equal(stored["b"], weights["b"])
    assert [dim.dim_value for dim in packed.graph.input[0].type.tensor_type.shape.dim] == [5, 32]
