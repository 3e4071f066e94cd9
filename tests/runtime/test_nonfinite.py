"""NaN and Inf are traced to what made them; operators from other libraries run, and stay."""

from __future__ import annotations

import _ctypes  # a shared library that is no library of operators
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from builders.models import build
from pcns_onnx import InputError, inspect, shrink
from pcns_onnx.data.dataset import open_data, split
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.layer_weights import set_layer
from pcns_onnx.runtime.engine import Engine, choose_engine

Array = np.ndarray[Any, np.dtype[Any]]


def net(between: str = "Exp", *, domain: str = "") -> ModelProto:
    """x (N, 4) -> first (16) -> `between` -> middle (12) -> Relu -> last (3)."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 16), "w2": (16, 12), "w3": (12, 3)}
    stored = {name: 0.3 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node(between, ["h1"], ["a1"], name="bend", domain=domain),
        helper.make_node("MatMul", ["a1", "w2"], ["h2"], name="middle"),
        helper.make_node("Relu", ["h2"], ["a2"], name="relu"),
        helper.make_node("MatMul", ["a2", "w3"], ["y"], name="last"),
    ]
    if not domain:
        return build(nodes, stored, ["N", 4])
    graph = helper.make_graph(
        nodes,
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def rows(hot: int | None = None) -> Array:
    """A hundred samples, of which one may be so large that Exp overflows."""
    x = np.random.default_rng(1).standard_normal((100, 4)).astype(np.float32)
    if hot is not None:
        x[hot] = 3e3
    return x


# -- NaN and Inf -------------------------------------------------------------------------------


@pytest.mark.parametrize(("hot", "holdout"), [(0, 0.0), (37, 0.1), (98, 0.0)])
@pytest.mark.parametrize("method", ["obs", "interpolative", "pcns"])
def test_they_are_traced_to_operator_and_sample(hot: int, holdout: float, method: str) -> None:
    """By its number in the data as it was given, whatever was held out; the layer behind only passes them on."""
    with pytest.raises(InputError) as caught:
        shrink(net(), rows(hot), method=method, width=0.5, include=["middle"], holdout=holdout)
    assert f"Exp 'bend' gives Inf at sample {hot} of the data" in str(caught.value)


def test_an_operator_that_makes_nan_of_a_zero(tmp_path: Path) -> None:
    x = np.abs(rows()) + 1
    x[11] = -5
    model = net("Log")
    weights = {t.name: t for t in model.graph.initializer}
    weights["w1"].CopyFrom(numpy_helper.from_array(np.full((4, 16), 0.1, np.float32), "w1"))
    with pytest.raises(InputError, match=r"^Log 'bend' gives NaN at sample 11 of the data"):
        shrink(model, x, tmp_path / "out.onnx", width=0.5, include=["middle"], holdout=0, refine=0)
    assert list(tmp_path.iterdir()) == []


def test_inspect_traces_them_too() -> None:
    with pytest.raises(InputError, match=r"Exp 'bend' gives Inf at sample 5 of the data"):
        inspect(net(), rows(5))


def test_sound_samples_are_left_in_peace() -> None:
    assert shrink(net(), rows(), width=0.5, refine=0).report.groups


def test_samples_keep_their_numbers() -> None:
    x = rows()
    train, held = split(open_data(x, Graph(net()).inputs), holdout=0.2, seed=3, samples=60)
    assert held is not None
    for part in (train, held):
        for batch in part.batches(7):
            assert batch.index is not None and np.array_equal(batch.feeds["x"], x[batch.index])


def test_weights_that_are_not_finite_are_never_put_in() -> None:
    graph = Canonical.of(Graph(net())).twin
    layer = build_dependency_graph(graph, {"x": (1, 4)}).layer("middle")
    with pytest.raises(InputError, match=r"^the solve of 'middle' gives NaN or Inf"):
        set_layer(graph, layer, np.full((12, 16), np.nan), np.zeros(12))


# -- operators of other libraries --------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"no library"], ids=["missing", "text"])
def test_a_library_that_cannot_be_registered_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ops.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^--custom-ops '.*ops.so' (does not exist|cannot be registered)") as caught:
        shrink(net(), rows(), width=0.5, custom_ops=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ops.so", "./ops.so", "sub/ops.so"])
def test_the_library_that_was_looked_at_is_the_one_that_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare name would go to the loader's search path instead."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    shutil.copy(_ctypes.__file__, name)
    with pytest.raises(InputError, match="RegisterCustomOps") as caught:
        choose_engine("cpu", 1, (name,))
    assert str(tmp_path / name) in str(caught.value).replace("/./", "/")


def test_a_session_that_cannot_be_made_says_so_in_its_error_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="onnxruntime cannot load the model"):
        Engine().session(Graph(net("Foo", domain="no.such.domain")).program())
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_custom_operators_run_and_stay() -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    model, choices = net("NegPos", domain="ai.onnx.contrib"), {"custom_ops": extensions.get_library_path()}
    model.graph.node[1].output.append("a1p")
    with pytest.raises(InputError, match="NegPos"):
        shrink(model, rows(), width=0.5, refine=0)
    result = shrink(model, rows(), width=0.5, refine=0, **choices)
    assert {group.name for group in result.report.groups} == {"middle"}
    assert [n for n in result.model.graph.node if n.op_type == "NegPos"] == [model.graph.node[1]]
    assert any(left.name == "first" and "NegPos" in left.reason for left in result.report.left_alone)
