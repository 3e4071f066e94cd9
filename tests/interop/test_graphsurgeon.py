"""graphsurgeon's graphs as models: all that takes a model takes them, and nothing of the model gets lost on the way."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from builders import joins, topologies
from builders.detector import CLASSES, detector, images
from builders.models import MODELS, Array, build, relative
from pcns_onnx import InputError, compare, diff, expand, inspect, shrink
from pcns_onnx.graph import Graph, Program
from pcns_onnx.graph.restoration import dense
from pcns_onnx.runtime.engine import Engine

gs = pytest.importorskip("onnx_graphsurgeon")

from pcns_onnx.interop.graphsurgeon import export_model, import_model  # noqa: E402

HOW_TO = Path(__file__).parents[2] / "docs" / "graphsurgeon.md"
node, value = helper.make_node, helper.make_tensor_value_info
FLOAT = TensorProto.FLOAT
LARGE = numpy_helper.from_array(np.ones((1, 1000), np.float32), "large")
IDENTITY = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")


def model_of(
    nodes: Iterable[onnx.NodeProto], stored: Iterable[TensorProto] = (), *, ir_version: int = 10, **more: Any
) -> onnx.ModelProto:
    """x (1, 4) -> nodes -> y."""
    shapes = {"inputs": [value("x", FLOAT, [1, 4])], "outputs": [value("y", FLOAT, [1, 4])]}
    functions = more.pop("functions", [])
    graph = helper.make_graph(list(nodes), "g", initializer=list(stored), **shapes | more)
    opsets = [helper.make_opsetid(*opset) for opset in (("", 21 if ir_version > 3 else 8), ("my", 3), ("unread", 9))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def custom(*attributes: AttributeProto) -> onnx.ModelProto:
    made = node("Own", ["x"], ["y"], domain="my")
    made.attribute.extend(attributes)
    return model_of([made])


def typed_attributes() -> onnx.ModelProto:
    kind = helper.make_tensor_type_proto(FLOAT, [2])
    texts = helper.make_attribute("ok", 3, "a text")
    return custom(helper.make_attribute("kind", kind), helper.make_attribute("many", [IDENTITY, IDENTITY]), texts)


def sparse_weight(*, raw: bool) -> onnx.SparseTensorProto:
    values, at = np.array([5, 6], np.float32), np.array([1, 14])
    if raw:
        tensors = numpy_helper.from_array(values, "s"), numpy_helper.from_array(at, "s.at")
    else:
        tensors = helper.make_tensor("s", FLOAT, [2], values), helper.make_tensor("s.at", TensorProto.INT64, [2], at)
    return helper.make_sparse_tensor(*tensors, [4, 4])


def sparse(*, raw: bool = True) -> onnx.ModelProto:
    return model_of([node("MatMul", ["x", "s"], ["y"])], sparse_initializer=[sparse_weight(raw=raw)])


def sparse_constant() -> onnx.ModelProto:
    constant = node("Constant", [], ["s"], sparse_value=sparse_weight(raw=True))
    return model_of([constant, node("MatMul", ["x", "s"], ["y"])])


def branches(size: int = 4, *, outside: bool = False) -> onnx.ModelProto:
    """Two branches that read the same initializer, (1, size), of the graph around them, where it may be read too."""
    parts: dict[str, Any] = {}
    for name in ("then_branch", "else_branch"):
        inner = [node("ReduceSum", ["shared"], ["sum"]), node("Add", ["x", "sum"], [name], doc_string="in a branch")]
        parts[name] = helper.make_graph(inner, name, [], [value(name, FLOAT, [1, 4])])
        parts[name].metadata_props.add(key="kind", value="branch")
    shared = numpy_helper.from_array(np.ones((1, size), np.float32), "shared")
    nodes = [node("If", ["which"], ["y"], **parts), *([node("Relu", ["shared"], ["more"])] if outside else [])]
    return model_of(nodes, [shared, numpy_helper.from_array(np.array(True), "which")])


def function() -> onnx.ModelProto:
    inner = node("Relu", ["a"], ["b"], doc_string="in a function")
    made = helper.make_function("my", "Own", ["a"], ["b"], [inner], [helper.make_opsetid("", 21)], doc_string="own")
    made.overload, caller = "second", node("Own", ["x"], ["y"], domain="my", overload="second")
    made.value_info.append(value("a", FLOAT, [1, 4]))
    made.metadata_props.add(key="kind", value="function")
    return model_of([caller], functions=[made])


def typed(kind: onnx.TypeProto) -> onnx.ModelProto:
    inputs, outputs = ([helper.make_value_info(name, kind)] for name in "xy")
    return model_of([node("Identity", ["x"], ["y"])], inputs=inputs, outputs=outputs)


def old() -> onnx.ModelProto:
    ends = [value("x", FLOAT, [1, 4]), value("w", FLOAT, [4, 4])]
    return model_of([node("MatMul", ["x", "w"], ["y"])], [IDENTITY], inputs=ends, ir_version=3)


def packed(kind: int) -> onnx.ModelProto:
    codes = np.array([[1, 0, 1, 1]], np.float32).astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [node("Cast", ["q"], ["f"], to=FLOAT), node("Add", ["x", "f"], ["y"])]
    return model_of(nodes, [numpy_helper.from_array(codes, "q")], ir_version=11)


TENSOR = helper.make_tensor_type_proto(FLOAT, [2])
LOST: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "texts and metadata": detector,
    "attributes of rare types": typed_attributes,
    "an empty list": lambda: custom(AttributeProto(name="none", type=AttributeProto.INTS)),
    "bytes that are no text": lambda: custom(helper.make_attribute("blob", b"\xff\xfe")),
    "sparse, raw": sparse,
    "sparse, in fields": lambda: sparse(raw=False),
    "sparse Constant": sparse_constant,
    "what branches share": branches,
    "what branches share, large": lambda: branches(size=1000),
    "what branches and the graph share": lambda: branches(size=1000, outside=True),
    "function": function,
    "an initializer nothing reads": lambda: model_of([node("Relu", ["x"], ["y"])], [IDENTITY]),
    "a large initializer nothing reads": lambda: model_of([node("Relu", ["x"], ["y"])], [LARGE]),
    "an initializer that is an output": lambda: model_of(
        [node("Relu", ["x"], ["z"])], [LARGE], outputs=[value("z", FLOAT, [1, 4]), value("large", FLOAT, [1, 1000])]
    ),
    "an initializer that is an input": old,
    "sequences": lambda: typed(helper.make_sequence_type_proto(TENSOR)),
    "optionals": lambda: typed(helper.make_optional_type_proto(TENSOR)),
    "value information": lambda: model_of(
        [node("Relu", ["x"], ["h"]), node("Relu", ["h"], ["y"])], value_info=[value("h", FLOAT, [None, "n"])]
    ),
}
FAILS = {"an empty list", "bytes that are no text", "optionals"}
"""What graphsurgeon by itself cannot even read or write."""
PACKED = ("INT4", "UINT4", "INT2", "FLOAT4E2M1", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "BFLOAT16")
WHOLE: Mapping[str, Callable[[], onnx.ModelProto]] = {
    **LOST,
    **{kind: partial(packed, TensorProto.DataType.Value(kind)) for kind in PACKED},
    **{path.stem: partial(onnx.load, path) for path in MODELS.glob("*.onnx")},
    "residual": topologies.residual,
    "shuffle": topologies.shuffle,
    "dense block": joins.dense,
}


def constants(graph: Any) -> list[Any]:
    tensors = [tensor for part in (graph, *graph.subgraphs(recursive=True)) for tensor in part.tensors().values()]
    return [tensor for tensor in tensors if isinstance(tensor, gs.Constant)]


def contents(model: onnx.ModelProto) -> dict[str, tuple[int, bytes]]:
    """Type and bits of every initializer."""
    return {t.name: (t.data_type, numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer}


def in_onnxruntime(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    return {n: np.asarray(v) for n, v in Engine().session(Program(model.SerializeToString())).run({"x": x}).items()}


# -- there and back --------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_there_and_back_is_the_same_model(name: str) -> None:
    model = WHOLE[name]()
    assert export_model(import_model(model)) == Graph.load(model, flat=False).proto


# graphsurgeon's `Variable.copy` makes a tensor of whatever it copies.
@pytest.mark.parametrize("name", sorted(LOST.keys() - {"sequences", "optionals"}))
def test_a_copy_remembers_too(name: str) -> None:
    model = LOST[name]()
    assert export_model(import_model(model).copy()) == model


@pytest.mark.parametrize("name", sorted(LOST.keys() - FAILS))
def test_a_graph_of_graphsurgeon_itself_gets_back_what_it_is_told_of(name: str) -> None:
    model, given = LOST[name](), LOST[name]()
    assert export_model(gs.import_onnx(given), like=model) == model
    assert given == model  # graphsurgeon adds to what it was given; with a memory it does not


@pytest.mark.parametrize("name", [*LOST, *PACKED])
def test_values_that_were_looked_at_are_written_as_they_were(name: str) -> None:
    model = WHOLE[name]()
    graph = import_model(model)
    for constant in constants(graph):
        assert constant.values is not None
    model_again = export_model(graph)
    assert contents(model_again) == contents(model)
    assert model_again.graph.sparse_initializer == model.graph.sparse_initializer
    assert [t.doc_string for t in model_again.graph.initializer] == [t.doc_string for t in model.graph.initializer]


@pytest.mark.parametrize("kind", PACKED)
def test_packed_values_of_a_graph_without_memory_are_bit_exact(kind: str) -> None:
    model = packed(TensorProto.DataType.Value(kind))
    graph = gs.import_onnx(packed(TensorProto.DataType.Value(kind)))
    assert len(graph.tensors()["q"].values)
    assert contents(export_model(graph)) == contents(model)


# -- edits count -----------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [True, False])
def test_an_edited_sparse_tensor_is_sparse_and_has_the_new_values(raw: bool) -> None:
    graph = import_model(sparse(raw=raw))
    weight = graph.tensors()["s"]
    np.testing.assert_array_equal(weight.values, dense(sparse_weight(raw=raw)))
    weight.values = 2 * weight.values
    model = export_model(graph)
    assert not model.graph.initializer
    (stored,) = model.graph.sparse_initializer
    np.testing.assert_array_equal(dense(stored), 2 * dense(sparse_weight(raw=raw)))


@pytest.mark.parametrize("outside", [True, False])
def test_an_edit_of_what_branches_share_counts(outside: bool) -> None:
    graph = import_model(branches(outside=outside))
    (shared,) = [c for part in graph.subgraphs() for c in constants(part) if c.name == "shared"][:1]
    shared.values = 2 * shared.values
    x = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(in_onnxruntime(export_model(graph), x)["y"], x + 8)


def test_a_renamed_sparse_tensor_has_its_new_name() -> None:
    graph = import_model(sparse())
    graph.tensors()["s"].name = "renamed"
    model = export_model(graph)
    assert [s.values.name for s in model.graph.sparse_initializer] == ["renamed"]
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(in_onnxruntime(model, x)["y"], x @ dense(sparse_weight(raw=True)))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_not_touched_stays_whatever_else_is_edited(data: st.DataObject) -> None:
    model = detector()
    graph = import_model(model)
    chosen = data.draw(st.sets(st.sampled_from(range(len(graph.nodes))), max_size=4))
    for at in chosen:
        edited = graph.nodes[at]
        match data.draw(st.sampled_from(["rename node", "rename tensor", "attribute"])):
            case "rename node":
                edited.name += ".new"
            case "rename tensor":
                edited.outputs[0].name += ".new"
            case "attribute":
                edited.attrs["of_the_test"] = 1
    again = export_model(graph)
    for at, (new, was) in enumerate(zip(again.graph.node, model.graph.node, strict=True)):
        assert (new.doc_string, new.metadata_props) == (was.doc_string, was.metadata_props)
        assert [a.name for a in new.attribute if a.name != "of_the_test"] == [a.name for a in was.attribute]
        assert at in chosen or (new.name, new.attribute) == (was.name, was.attribute)
    assert again.functions == model.functions
    assert again.metadata_props == model.metadata_props
    assert contents(again) == contents(model)
    assert again.graph.sparse_initializer == model.graph.sparse_initializer


def test_what_is_removed_stays_away_and_takes_its_own_along() -> None:
    graph = import_model(detector())
    graph.outputs = [graph.tensors()["box.raw"]]
    graph.cleanup()
    graph.doc_string = "boxes only"
    del graph.nodes[0].attrs["strides"]
    model = export_model(graph)
    assert {n.name for n in model.graph.node} == {"stem", "stem.relu", "body", "body.relu", "box", "box.flat"}
    assert model.graph.doc_string == "boxes only"
    assert [a.name for a in model.graph.node[0].attribute] == ["pads"]
    assert not model.graph.sparse_initializer
    assert not {t.name for t in model.graph.initializer} & {"anchors", "score.w", "most"}
    assert [a.tensor_name for a in model.graph.quantization_annotation] == ["x"]


def test_an_output_without_a_type_gets_the_inferred_one() -> None:
    graph = import_model(build([node("Relu", ["x"], ["h"]), node("Relu", ["h"], ["y"])], {}, [2, 4]))
    graph.outputs = [graph.tensors()["h"]]
    graph.cleanup()
    assert export_model(graph).graph.output[0] == value("h", FLOAT, [2, 4])


def test_a_constant_of_an_old_model_is_listed_as_an_input() -> None:
    graph = import_model(old())
    made = gs.Variable("z", np.float32, (1, 4))
    ends = [graph.outputs[0], gs.Constant("shift", np.ones((1, 4), np.float32))]
    graph.nodes.append(gs.Node("Add", inputs=ends, outputs=[made]))
    graph.outputs = [made]
    model = export_model(graph)
    onnx.checker.check_model(model)
    assert [i.name for i in model.graph.input] == ["x", "w", "shift"]


# -- wherever a model is taken ---------------------------------------------------------------


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Path, Path]:
    return MODELS / "digits_mlp_tanh.onnx", MODELS / "digits_rows.npz"


def test_shrink_takes_a_graph_and_gives_one_back(digits: tuple[Path, Path]) -> None:
    path, rows = digits
    by_path = shrink(path, rows, width=0.5)
    for graph in (import_model(path), gs.import_onnx(onnx.load(path))):
        result = shrink(graph, rows, width=0.5)
        assert contents(result.model) == contents(by_path.model)
    assert result.report.groups == by_path.report.groups
    back = by_path.to_graphsurgeon()
    assert isinstance(back, gs.Graph)
    assert export_model(back) == by_path.model


def test_inspect_compare_expand_and_diff_take_graphs(digits: tuple[Path, Path]) -> None:
    path, rows = digits
    a, b = import_model(path), gs.import_onnx(onnx.load(path))
    assert inspect(a) == inspect(b) == inspect(path)
    assert compare(a, b, rows).agreement.error == 0
    assert diff(a, b) == diff(path, path)
    layer = inspect(path).layers[0].name
    wide = expand(a, layer=layer, by=2)
    assert contents(wide.model) == contents(expand(path, layer=layer, by=2).model)


def test_a_model_that_graphsurgeon_cannot_write_is_refused_in_one_line() -> None:
    graph = import_model(sparse())
    graph.nodes[0].attrs["empty"] = []
    with pytest.raises(InputError, match="graphsurgeon cannot write this graph: Could not infer attribute"):
        inspect(graph)


def test_only_a_graph_is_a_model() -> None:
    with pytest.raises(InputError, match="graphsurgeon's Node: give its Graph"):
        inspect(import_model(sparse()).nodes[0])
    with pytest.raises(InputError, match="a model cannot be a int: give a path, a ModelProto or its bytes"):
        inspect(3)  # type: ignore[arg-type]


def test_nobody_else_imports_graphsurgeon() -> None:
    path = MODELS / "digits_mlp_tanh.onnx"
    code = f"import sys, pcns_onnx; pcns_onnx.inspect({str(path)!r}); print('onnx_graphsurgeon' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- the how-to ------------------------------------------------------------------------------


def raw_outputs(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """The tensors at which the how-to cuts."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.output[:]
    twin.graph.output.extend(v for v in model.graph.value_info if v.name in ("box.raw", "score.raw"))
    return in_onnxruntime(twin, x)


def test_the_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, held_out = detector(), images(64, seed=9)
    onnx.save(model, "detector.onnx")
    np.savez("train.npz", x=images(256))
    np.savez("held_out.npz", x=held_out)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL):
        exec(block, names)
    glued, report = onnx.load("small_detector.onnx"), names["result"].report

    # It is smaller, and off by no more than the report says, down to which boxes are picked.
    assert report.after.macs < 0.4 * report.before.macs
    assert 0 < report.agreement.error < 2e-3
    was, now = raw_outputs(model, held_out), raw_outputs(glued, held_out)
    assert max(relative(was[name], now[name]) for name in was) <= report.agreement.error  # a share of what varies
    assert all(np.array_equal(now[n], v) for n, v in in_onnxruntime(names["result"].model, held_out).items())
    was, now = in_onnxruntime(model, held_out), in_onnxruntime(glued, held_out)
    assert list(now) == list(was) == ["boxes", "scores", "selected"]
    assert relative(was["boxes"], now["boxes"]) <= report.agreement.error
    assert relative(was["scores"], now["scores"]) <= report.agreement.error
    np.testing.assert_array_equal(now["selected"], was["selected"])
    assert 0 < len(was["selected"]) < 5 * CLASSES * len(held_out)  # as many as there are, which depends on the data

    # Everything but the weights is the detector's, and the note of `shrink` has been added.
    assert [entry.key for entry in glued.metadata_props] == ["kind", "pcns_onnx"]
    assert {name for name, value in contents(glued).items() if value != contents(model)[name]} == {
        "stem.w", "stem.b", "body.w", "body.b", "box.w", "box.b", "score.w", "score.b",
    }  # fmt: skip
    for twin in (model, glued):
        del twin.metadata_props[:]
        del twin.graph.initializer[:]
    assert glued == model
