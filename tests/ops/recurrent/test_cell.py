"""Units of LSTM, GRU and RNN are channels: followed, cut, and left alone where somebody else counts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders.cells import DIRECTIONS, CellModel, drawn, samples
from builders.chains import node
from builders.models import Array, relative
from pcns_onnx import ShrinkResult, inspect, shrink
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.errors import InputError, NothingToShrinkError
from pcns_onnx.graph import Graph, Program
from pcns_onnx.ops.recurrent import GATES
from pcns_onnx.planning.plan import GroupPlan
from pcns_onnx.rewrite.canonical import Canonical, emit
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.runtime.engine import Engine

KINDS = [
    pytest.param(
        op, direction, {"linear_before_reset": 1} if reset else {}, id=f"{op} {direction}{' reset last' * reset}"
    )
    for op in GATES
    for direction in DIRECTIONS
    for reset in ((0, 1) if op == "GRU" else (0,))
]


def outputs(model: onnx.ModelProto, feeds: Mapping[str, Array] | Array) -> list[Array]:
    fed = feeds if isinstance(feeds, Mapping) else {"x": feeds}
    return [np.asarray(value) for value in Engine().session(Program(model.SerializeToString())).run(fed).values()]


def surveyed(model: onnx.ModelProto) -> tuple[Canonical, DependencyGraph]:
    form = Canonical.of(Graph.load(model))
    return form, build_dependency_graph(form.twin, {"x": (2, 7, 5)})


def without_planted(cell: CellModel, **more: Any) -> tuple[ShrinkResult, float]:
    """The cell without as many units as have copies, and how far that is from what it was, over other samples."""
    model = cell.build()
    width = 1 - cell.planted / cell.units
    result = shrink(model, samples(cell), width=width, multiple="1", refine=0, threads=1, include="cell", **more)
    onnx.checker.check_model(result.model, full_check=True)
    fresh = samples(replace(cell, steps=cell.steps), 9, seed=4)
    return result, relative(outputs(model, fresh)[0], outputs(result.model, fresh)[0])


def hidden_sizes(model: onnx.ModelProto) -> list[int]:
    nodes = (node for node in model.graph.node if node.op_type in GATES)
    return [attr.i for node in nodes for attr in node.attribute if attr.name == "hidden_size"]


@pytest.mark.parametrize("ends", ["steps", "last"])
@pytest.mark.parametrize("op, direction, attributes", KINDS)
def test_units_that_do_what_others_do_go_without_a_trace(
    op: str, direction: str, attributes: dict[str, Any], ends: str
) -> None:
    result, lost = without_planted(CellModel(op, direction, planted=3, ends=ends, attributes=attributes))
    assert lost < 1e-5 and hidden_sizes(result.model) == [9]
    assert result.report.after.macs < result.report.before.macs


@pytest.mark.parametrize("op, direction, attributes", KINDS)
def test_all_units_are_a_change_of_nothing_and_any_order_of_them_too(
    op: str, direction: str, attributes: dict[str, Any]
) -> None:
    cell = CellModel(op, direction, attributes=attributes)
    form, dependencies = surveyed(cell.build())
    group = dependencies.groups[0]
    assert (group.name, group.width, group.readers) == ("cell", 12 * cell.directions, ("cell", "head"))
    assert narrow(form.twin, dependencies, {group.name: group.labels}) == ()


@pytest.mark.parametrize("op, direction, attributes", KINDS)
def test_units_that_nobody_reads_go(op: str, direction: str, attributes: dict[str, Any]) -> None:
    cell = CellModel(op, direction, attributes=attributes)
    model = cell.build()
    gone = {0: [1, 4, 7], 1: [0, 2, 11]}
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        for side in range(cell.directions):
            if tensor.name == "R":
                value[side][:, gone[side]] = 0
            if tensor.name == "V":
                value[[side * 12 + unit for unit in gone[side]]] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    form, dependencies = surveyed(model)
    group = dependencies.groups[0]
    units = group.labels.reshape(cell.directions, -1)
    keep = np.sort(np.concatenate([np.delete(units[side], gone[side]) for side in range(cell.directions)]))
    small = emit(form, narrow(form.twin, dependencies, {group.name: keep}))
    small.check(full=True)
    for count, steps in ((3, 7), (1, 7)):
        x = np.random.default_rng(count).standard_normal((count, steps, 5)).astype(np.float32)
        assert relative(outputs(model, x)[0], outputs(small.proto, x)[0]) < 1e-6


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("op", GATES)
def test_versions_of_the_operators(op: str, opset: int) -> None:
    _, lost = without_planted(CellModel(op, "forward", planted=3, opset=opset))
    assert lost < 1e-5


def test_errors_do_not_build_up_over_time() -> None:
    for op in GATES:
        cell = CellModel(op, "bidirectional", planted=4, steps=200)
        result = shrink(
            cell.build(), samples(cell, 12), width=8 / 12, multiple="1", refine=0, threads=1, include="cell"
        )
        x = samples(cell, 2, seed=8)
        assert relative(outputs(cell.build(), x)[0], outputs(result.model, x)[0]) < 1e-4


H = 12
RIDES: dict[str, CellModel] = {
    "peepholes": CellModel("LSTM", extra={7: drawn(3, 1, 3 * H)}),
    "peepholes both ways": CellModel("LSTM", "bidirectional", extra={7: drawn(3, 2, 3 * H)}),
    "clip": CellModel("LSTM", attributes={"clip": 0.3}),
    "clip of a GRU": CellModel("GRU", attributes={"clip": 0.3}),
    "functions of its own": CellModel("LSTM", attributes={"activations": ["HardSigmoid", "Relu", "Tanh"]}),
    "functions of a GRU": CellModel("GRU", attributes={"activations": ["HardSigmoid", "Tanh"]}),
    "a plain cell with Relu": CellModel("RNN", attributes={"activations": ["Relu"]}),
    "no bias": CellModel("GRU", bias=False),
    "first states": CellModel("LSTM", extra={5: drawn(5, 1, 1, H), 6: drawn(6, 1, 1, H)}),
}


@pytest.mark.parametrize("name", RIDES)
def test_what_acts_unit_by_unit_rides_along(name: str) -> None:
    """Units are cut, and nothing else changes: each rest computes what it did."""
    cell = RIDES[name]
    form, dependencies = surveyed(dead(cell))
    group = dependencies.groups[0]
    units = group.labels.reshape(cell.directions, -1)
    keep = np.sort(units[:, 3:].reshape(-1))
    small = emit(form, narrow(form.twin, dependencies, {group.name: keep}))
    small.check(full=True)
    x = samples(cell, 1)
    assert relative(outputs(form.original.proto, x)[0], outputs(small.proto, x)[0]) < 1e-6


def dead(cell: CellModel) -> onnx.ModelProto:
    """The model, in which nobody reads the first three units of each direction."""
    model = cell.build()
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "R":
            value[:, :, :3] = 0
        if tensor.name == "V":
            value.reshape(cell.directions, H, -1)[:, :3] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return model


@pytest.mark.parametrize("name", RIDES)
def test_and_it_is_solved_again(name: str) -> None:
    cell = RIDES[name]
    result = shrink(cell.build(), samples(cell, 60), width=0.75, multiple="1", refine=20, threads=1, include="cell")
    assert hidden_sizes(result.model) == [9]
    assert result.report.agreement.error < 0.5


def with_lengths(cell: CellModel) -> CellModel:
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"])
    return replace(cell, extra={4: "lengths"}, graph_inputs=[lengths])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_samples_may_have_lengths_of_their_own(op: str, direction: str) -> None:
    cell = with_lengths(CellModel(op, direction, planted=3))
    feeds = {"x": samples(cell), "lengths": np.random.default_rng(1).integers(2, 8, 64).astype(np.int32)}
    result = shrink(cell.build(), feeds, width=0.75, multiple="1", refine=0, threads=1, include="cell")
    fresh = {"x": samples(cell, 7, seed=3), "lengths": np.array([7, 2, 3, 4, 5, 6, 7], dtype=np.int32)}
    assert relative(outputs(cell.build(), fresh)[0], outputs(result.model, fresh)[0]) < 1e-5


def zeros(shape: Sequence[int]) -> tuple[list[onnx.NodeProto], dict[int, Any]]:
    """States as exporters write them: zeros of a size that the batch gives."""
    nodes = [
        helper.make_node("Shape", ["t"], ["size"]),
        helper.make_node("Constant", [], ["at"], value_ints=[1]),
        helper.make_node("Gather", ["size", "at"], ["count"]),
        helper.make_node("Constant", [], ["d"], value_ints=[shape[0]]),
        helper.make_node("Constant", [], ["h"], value_ints=[shape[1]]),
        helper.make_node("Concat", ["d", "count", "h"], ["dims"], axis=0),
        helper.make_node("ConstantOfShape", ["dims"], ["zeros"]),
    ]
    return nodes, {5: "zeros", 6: "zeros"}


def test_states_of_zeros_go_whatever_computes_them() -> None:
    nodes, extra = zeros((2, 12))
    cell = CellModel("LSTM", "bidirectional", planted=3, more=nodes, extra=extra)
    result, lost = without_planted(cell)
    assert lost < 1e-5
    assert not any(node.op_type == "ConstantOfShape" for node in result.model.graph.node)


def test_a_state_that_a_layer_makes_goes_with_the_units() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["t"], ["mean"], axes=[0]),
        helper.make_node("MatMul", ["mean", "start"], ["s0"], name="start"),
    ]
    start = drawn(8, 5, 12)
    start[:, 5:8] = start[:, :3]
    cell = CellModel("GRU", planted=3, more=nodes, extra={5: "s0"}, stored={"start": start})
    model = cell.build()
    _, dependencies = surveyed(model)
    assert set(dependencies.groups[0].writers) == {"start", "cell"}
    result = shrink(model, samples(cell), width=0.75, multiple="1", refine=0, threads=1)
    x = samples(cell, 5, seed=2)
    assert relative(outputs(model, x)[0], outputs(result.model, x)[0]) < 1e-5


def reason(model: onnx.ModelProto) -> str:
    _, dependencies = surveyed(model)
    frozen = {group.name: group.frozen for group in dependencies.groups} | {
        u.name: u.reason for u in dependencies.unsolved
    }
    return frozen["cell"] or "free"


def test_a_state_that_is_an_input_keeps_its_size_and_says_so() -> None:
    state = helper.make_tensor_value_info("h0", TensorProto.FLOAT, [1, "N", 12])
    cell = CellModel("GRU", extra={5: "h0"}, graph_inputs=[state])
    assert reason(cell.build()) == (
        "the state 'h0' that GRU 'cell' starts from is an input of the model: the caller makes it"
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_state_that_is_an_output_keeps_its_size_and_says_so(direction: str) -> None:
    assert reason(CellModel("LSTM", direction, ends="state").build()) == "it feeds the model's output 'Yh'"


def test_weights_that_others_read_too_stay() -> None:
    model = CellModel("GRU").build()
    model.graph.node.append(helper.make_node("ReduceSum", ["R"], ["sum"]))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 1, 1]))
    assert reason(model) == "GRU 'cell' is a recurrent layer whose weights others read, too"


def test_what_stands_in_front_is_narrowed_with_the_cells_columns() -> None:
    for op in GATES:
        cell = CellModel(op, "bidirectional", front=10, seed=4)
        model = cell.build()
        for tensor in model.graph.initializer:
            if tensor.name == "W0":
                value = onnx.numpy_helper.to_array(tensor).copy()
                value[:, 5:] = value[:, :5] * np.float32(0.5)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, "W0"))
        result = shrink(model, samples(cell), width=0.5, multiple="1", refine=0, threads=1, exclude="cell")
        x = samples(cell, 5, seed=2)
        assert relative(outputs(model, x)[0], outputs(result.model, x)[0]) < 1e-5
        assert hidden_sizes(result.model) == [12] and result.report.groups[0].kept == 5


def test_both_directions_are_taken_apart_and_together() -> None:
    """The last states of both, as exporters write them: a Gather each, and a Concat or a sum."""
    for join, width in (("Concat", 24), ("Add", 12)):
        cell = CellModel("LSTM", "bidirectional", ends="state")
        model = cell.build()
        del model.graph.node[-3:], model.graph.output[:]
        model.graph.node.extend(
            [
                helper.make_node("Constant", [], ["i0"], value_int=0),
                helper.make_node("Constant", [], ["i1"], value_int=1),
                helper.make_node("Gather", ["Yh", "i0"], ["ahead"], axis=0),
                helper.make_node("Gather", ["Yh", "i1"], ["back"], axis=0),
                node(join, "ahead back", "both", **({"axis": 1} if join == "Concat" else {})),
                helper.make_node("MatMul", ["both", "V2"], ["y"], name="head"),
            ]
        )
        model.graph.initializer.append(onnx.numpy_helper.from_array(drawn(1, width, 3), "V2"))
        model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]))
        _, dependencies = surveyed(model)
        group = dependencies.groups[0]
        assert (group.frozen, group.width, len(group.sides)) == (None, width, 2 if join == "Concat" else 0)
        result = shrink(model, samples(cell), width=0.5, multiple="1", refine=0, threads=1)
        assert hidden_sizes(result.model) == [6] and np.isfinite(outputs(result.model, samples(cell, 3))[0]).all()


def test_stacked_cells_are_each_others_readers() -> None:
    model = CellModel("LSTM", "forward", units=12, planted=3).build()
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Squeeze")
    extra = helper.make_node("GRU", ["u", "W2", "R2"], ["Y2"], name="next", hidden_size=8)
    squeeze = helper.make_node("Squeeze", ["Y2", "one"], ["u2"])
    nodes[at + 1].input[0] = "u2"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[: at + 1], extra, squeeze, *nodes[at + 1 :]])
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "V"]
    del model.graph.initializer[:]
    more = {"W2": drawn(1, 1, 24, 12), "R2": drawn(2, 1, 24, 8), "V": drawn(3, 8, 3)}
    model.graph.initializer.extend([*kept, *(onnx.numpy_helper.from_array(v, n) for n, v in more.items())])
    onnx.checker.check_model(model)
    _, dependencies = surveyed(model)
    assert {g.name: g.readers for g in dependencies.groups} == {
        "cell": ("cell", "next"), "next": ("next", "head"), "head": (),
    }  # fmt: skip
    cell = CellModel("LSTM")
    result = shrink(model, samples(cell), width=0.75, multiple="1", refine=0, threads=1, include="cell")
    x = samples(cell, 5, seed=2)
    assert relative(outputs(model, x)[0], outputs(result.model, x)[0]) < 1e-5
    both = shrink(model, samples(cell), budget="macs=0.6", threads=1, refine=10)
    assert both.report.after.macs <= 0.6 * both.report.before.macs


def test_costs_are_counted() -> None:
    for op, gates in GATES.items():
        cell = CellModel(op, "bidirectional")
        (row,) = (item for item in inspect(cell.build(), samples(cell)).layers if item.name == "cell")
        assert row.macs == 7 * 2 * gates * 12 * (5 + 12) and row.width == 24
        assert row.dimensions


@pytest.mark.parametrize("method, why", [("pcns", "of their own past"), ("min-weight", "give --data")])
def test_methods_that_cannot_say_why(method: str, why: str) -> None:
    cell = CellModel("LSTM")
    with pytest.raises(NothingToShrinkError) as caught:
        shrink(cell.build(), samples(cell) if method == "pcns" else None, width=0.5, method=method, threads=1)
    assert why in dict(caught.value.reasons)["cell"]


def test_a_plan_is_played_again(tmp_path: Path) -> None:
    cell, file = CellModel("GRU", "bidirectional", planted=3), tmp_path / "plan.json"
    first = shrink(cell.build(), samples(cell), width=0.5, multiple="1", refine=0, threads=1)
    file.write_bytes(msgspec.json.encode(first.plan))
    again = shrink(cell.build(), samples(cell), plan=file, multiple="1", refine=0, threads=1)
    weights = [{t.name: t.raw_data for t in result.model.graph.initializer} for result in (first, again)]
    assert weights[0] == weights[1]
    entry = first.plan.groups["cell"]
    lopsided = GroupPlan(width=entry.width, of=entry.of, error=0.0, keep=list(range(entry.width)))
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(first.plan, groups={"cell": lopsided})))
    with pytest.raises(InputError, match="more in one direction than in the other"):
        shrink(cell.build(), samples(cell), plan=file, refine=0, threads=1)
    odd = GroupPlan(width=13, of=24, error=0.0, keep=None)
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(first.plan, groups={"cell": odd})))
    with pytest.raises(InputError, match="leaves its two directions unequal"):
        shrink(cell.build(), samples(cell), plan=file, refine=0, threads=1)
