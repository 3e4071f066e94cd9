"""Large contents lie beside the message: onnxruntime computes the same, and nothing is lost on the way back."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn
from onnx import TensorProto, helper, numpy_helper

from builders.models import MODELS, Array, build, run
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine

node = helper.make_node


def normal(*shape: int) -> Array:
    return np.random.default_rng([5, *shape]).standard_normal(shape).astype(np.float32)


def scaled(dtype: Any, *, ir_version: int = 10) -> onnx.ModelProto:
    """y = x W, where W is stored in `dtype` and cast on the way."""
    weight = (normal(16, 128) * 3).astype(dtype)
    nodes = [node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), node("MatMul", ["x", "c"], ["y"])]
    model = build(nodes, {"w": weight}, ["n", 16], opset=21, ir_version=max(ir_version, 4))
    if ir_version < 4:
        model.ir_version = ir_version
        tensor = model.graph.initializer[0]
        model.graph.input.append(helper.make_tensor_value_info("w", tensor.data_type, tensor.dims))
    return model


NATIVE = [np.float32, np.float64, np.float16, np.bool_, np.int8, np.int16, np.int32, np.int64]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("dtype", [*NATIVE, *UNSIGNED, bfloat16, float8_e4m3fn])
def test_every_type_comes_through(dtype: Any) -> None:
    model, x = scaled(dtype), normal(3, 16)
    program = Graph.load(model).program()
    assert ("w" in program.weights) == (dtype is not float8_e4m3fn)
    np.testing.assert_array_equal(Engine().session(program).run({"x": x})["y"], run(model, x))


@pytest.mark.parametrize("ir_version", [3, 4, 10])
def test_initializers_that_are_listed_as_inputs_come_through(ir_version: int) -> None:
    model, x = scaled(np.float32, ir_version=ir_version), normal(3, 16)
    np.testing.assert_array_equal(Engine().session(Graph.load(model).program()).run({"x": x})["y"], run(model, x))


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_real_models_compute_the_same_to_the_bit(path: Path) -> None:
    model = onnx.load(path)
    graph = Graph.load(path)
    shape = [size or 4 for size in graph.inputs[0].shape]
    feeds = {graph.inputs[0].name: normal(*shape)}
    made = [Engine(threads=1).session(p).run(feeds) for p in (Program(model.SerializeToString()), graph.program())]
    for name, plain in made[0].items():
        np.testing.assert_array_equal(made[1][name], plain)
    assert len(graph.program().model) < 20_000 < path.stat().st_size


def test_a_session_outlives_what_it_was_made_of() -> None:
    """onnxruntime does not copy the weights."""
    model, x = scaled(np.float32), normal(3, 16)
    session = Engine().session(Graph.load(model).program())
    gc.collect()
    _scrub = [normal(16, 128) for _ in range(100)]
    np.testing.assert_array_equal(session.run({"x": x})["y"], run(model, x))


def test_a_model_survives_to_the_byte() -> None:
    model = scaled(bfloat16)
    model.doc_string, model.producer_name = "a model", "a test"
    model.graph.initializer[0].doc_string = "a weight"
    model.graph.initializer[0].metadata_props.add(key="kept", value="too")
    model.metadata_props.add(key="author", value="nobody")
    content = model.SerializeToString(deterministic=True)
    graph = Graph(model)
    assert graph.serialize() == graph.copy().serialize() == content == model.SerializeToString(deterministic=True)
    assert graph.nbytes == len(content)


def test_contents_in_typed_fields_become_raw_data() -> None:
    values = normal(16, 128)
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": values}, ["n", 16])
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.ravel()))
    graph = Graph.load(model)
    np.testing.assert_array_equal(graph.constant("w"), values)
    np.testing.assert_array_equal(numpy_helper.to_array(graph.proto.graph.initializer[0]), values)


def test_an_edit_of_a_copy_is_not_seen_by_the_original() -> None:
    graph = Graph(scaled(np.float32))
    before, twin = graph.serialize(), graph.copy()
    twin.set_input("c", 0, 2 * normal(16, 128))
    assert graph.serialize() == before != twin.serialize()
    np.testing.assert_array_equal(twin.constant("w"), 2 * normal(16, 128))
    twin.set_input("c", 0, normal(16, 4))  # small enough for the message
    np.testing.assert_array_equal(twin.constant("w"), normal(16, 4))
    twin.check()


def test_the_digest_is_of_everything() -> None:
    graph = Graph(scaled(np.float32))
    renamed, changed = graph.proto, graph.copy()
    renamed.doc_string = "another"
    value = normal(16, 128) * 3
    value[-1, -1] = np.nextafter(value[-1, -1], np.float32(9))
    changed.set_input("c", 0, value)
    assert len({graph.digest(), Graph(renamed).digest(), changed.digest()}) == 3
    assert graph.digest() == graph.copy().digest() == Graph.load(graph.proto).digest()


def test_initializers_that_nothing_reads_are_no_matter() -> None:
    """onnxruntime drops them when it reads the model and cannot take a content for them."""
    model, x = scaled(np.float32), normal(3, 16)
    expected = run(model, x)
    model.graph.initializer.append(numpy_helper.from_array(normal(64, 64), "spare"))
    graph = Graph.load(model)
    assert set(graph.program().weights) == {"w"}
    np.testing.assert_array_equal(Engine().session(graph.program()).run({"x": x})["y"], expected)
    assert "spare" in {tensor.name for tensor in graph.proto.graph.initializer}
