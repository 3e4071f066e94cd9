"""A cell that is written out in time is known for what it is, narrowed where it can be, and listed once."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import ints, node
from builders.contract import surveyed
from builders.models import Array, relative, run
from builders.shared import Weights, blocks, pyramid, recurrent, weights_of
from pcns_onnx import NothingToShrinkError, shrink
from pcns_onnx.dependency.recurrence import WrittenOutCell, written_out_cells

H, X = 8, 5
State = Literal["none", "made", "computed", "like", "ones", "input"]


def stacked(w: Weights, name: str, gates: int, *rest: int) -> str:
    """Gates of H rows each, the second half of every gate a copy of the first."""
    parts = [w.made.pop(w.twins(f"{name}{gate}", H, *rest)) for gate in range(gates)]
    w.made[name] = np.concatenate(parts)
    return name


def begun(state: State, w: Weights) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that make the first state, and its name; '' for none."""
    if state == "made":
        return [
            node("Gather", "x t0", "first", axis=1),
            node("Gemm", f"first {w.twins('wi', H, X)}", "s0", transB=1),
        ], "s0"
    if state in ("computed", "ones"):
        w.made |= {"zero": ints(0), "width": ints(H)}
        sizes = [node("Shape", "x", "all"), node("Gather", "all zero", "n"), node("Concat", "n width", "size", axis=0)]
        value = numpy_helper.from_array(np.full(1, float(state == "ones"), np.float32))
        return [*sizes, node("ConstantOfShape", "size", "s0", value=value)], "s0"
    if state == "like":  # torch.zeros_like of what a layer makes
        nodes, _ = begun("made", w)
        nodes[-1].output[0] = "like"
        return [*nodes, node("Shape", "like", "size"), node("ConstantOfShape", "size", "s0")], "s0"
    return [], "s0" if state == "input" else ""


def lstm(state: State = "none", steps: int = 4) -> onnx.ModelProto:
    w = Weights({f"t{t}": np.array(t) for t in range(steps)})
    nodes, hidden = begun(state, w)
    cell = hidden
    w.made["sizes"] = ints(H, H, H, H)
    stacked(w, "wx", 4, X), stacked(w, "wh", 4, H), stacked(w, "b", 4)
    for t in range(steps):
        nodes += [node("Gather", f"x t{t}", f"x{t}", axis=1), node("Gemm", f"x{t} wx b", f"p{t}", transB=1)]
        gates = f"p{t}"
        if hidden:
            nodes += [node("Gemm", f"{hidden} wh", f"q{t}", transB=1), node("Add", f"p{t} q{t}", f"g{t}")]
            gates = f"g{t}"
        nodes.append(node("Split", f"{gates} sizes", f"i{t} f{t} o{t} c{t}", axis=1))
        nodes += [node("Sigmoid", f"{gate}{t}", f"{gate}s{t}") for gate in "ifo"]
        nodes += [node("Tanh", f"c{t}", f"cs{t}"), node("Mul", f"is{t} cs{t}", f"new{t}")]
        if cell:
            nodes += [node("Mul", f"fs{t} {cell}", f"old{t}"), node("Add", f"old{t} new{t}", f"cell{t}")]
        cell = f"cell{t}" if cell else f"new{t}"
        nodes += [node("Tanh", cell, f"tanh{t}"), node("Mul", f"os{t} tanh{t}", f"h{t}")]
        hidden = f"h{t}"
    nodes.append(node("Gemm", f"{hidden} {w.plain('wy', 3, H)}", "y", transB=1))
    return finished(nodes, w, steps, ["s0"] if state == "input" else [])


def gru(steps: int = 4) -> onnx.ModelProto:
    """With the state behind the gates, as PyTorch has it, each gate with a Gemm of its own."""
    w = Weights({f"t{t}": np.array(t) for t in range(steps)})
    w.made["one"] = np.ones((), np.float32)
    nodes, hidden = begun("computed", w)
    for t in range(steps):
        nodes.append(node("Gather", f"x t{t}", f"x{t}", axis=1))
        for gate in "rzn":
            nodes += [
                node("Gemm", f"x{t} {w.twins(f'wx{gate}', H, X)}", f"a{gate}{t}", transB=1),
                node("Gemm", f"{hidden} {w.twins(f'wh{gate}', H, H)}", f"b{gate}{t}", transB=1),
            ]
        for gate in "rz":
            nodes += [
                node("Add", f"a{gate}{t} b{gate}{t}", f"s{gate}{t}"),
                node("Sigmoid", f"s{gate}{t}", f"{gate}{t}"),
            ]
        nodes += [
            node("Mul", f"r{t} bn{t}", f"rn{t}"),
            node("Add", f"an{t} rn{t}", f"sn{t}"),
            node("Tanh", f"sn{t}", f"n{t}"),
        ]
        nodes += [
            node("Sub", f"one z{t}", f"u{t}"),
            node("Mul", f"u{t} n{t}", f"v{t}"),
            node("Mul", f"z{t} {hidden}", f"w{t}"),
        ]
        nodes.append(node("Add", f"v{t} w{t}", f"h{t}"))
        hidden = f"h{t}"
    nodes.append(node("Gemm", f"{hidden} {w.plain('wy', 3, H)}", "y", transB=1))
    return finished(nodes, w, steps, [])


def finished(nodes: list[onnx.NodeProto], w: Weights, steps: int, states: list[str]) -> onnx.ModelProto:
    shapes: dict[str, list[str | int]] = {"x": ["N", steps, X], **{name: ["N", H] for name in states}}
    graph = helper.make_graph(
        nodes,
        "cell",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in w.made.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def cells(model: onnx.ModelProto) -> tuple[WrittenOutCell, ...]:
    graph, dependencies = surveyed(model)
    return written_out_cells(graph, dependencies.layers, dependencies.groups)


def sequences(model: onnx.ModelProto, count: int = 200) -> Array:
    steps = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return np.random.default_rng(0).standard_normal((count, steps, X)).astype(np.float32)


@pytest.mark.parametrize("state", ["none", "made", "computed", "like", "ones"])
def test_an_lstm_written_out_is_narrowed_gate_by_gate(state: State) -> None:
    model = lstm(state)
    x = sequences(model)
    result = shrink(model, x, width=0.5, multiple=1, refine=0)
    (group,) = result.report.groups
    assert (group.width, group.kept) == (H, H // 2)
    for count in (9, 1):
        assert relative(run(model, x[:count]), run(result.model, x[:count])) < 1e-4
    assert sum(weights_of(result.model)) < 0.5 * sum(weights_of(model))
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize(
    "model, name",
    [
        (lstm("computed"), "an LSTM written out over 4 steps, 8 Gemms of 2 weights"),
        (lstm("computed", 20), "an LSTM written out over 20 steps, 40 Gemms of 2 weights"),
        (gru(), "a GRU written out over 4 steps, 24 Gemms of 6 weights"),
        (recurrent(5), "an RNN written out over 5 steps, 5 Gemms of 1 weight"),
    ],
    ids=["lstm", "long lstm", "gru", "rnn"],
)
def test_it_is_named_as_what_it_is(model: onnx.ModelProto, name: str) -> None:
    assert [str(cell) for cell in cells(model)] == [name]


def test_what_shares_weights_side_by_side_is_no_cell() -> None:
    assert not cells(pyramid())
    assert [cell.kind for cell in cells(blocks())] == ["RNN"]  # a block again and again is one, in depth


def test_a_gru_that_starts_from_zeros_is_narrowed() -> None:
    model = gru()
    x = sequences(model)
    result = shrink(model, x, width=0.5, multiple=1, refine=0)
    (group,) = result.report.groups
    assert (group.width, group.kept) == (H, H // 2)
    assert relative(run(model, x[:9]), run(result.model, x[:9])) < 1e-4


def test_where_it_stays_it_is_listed_once_with_the_cause() -> None:
    model, why = lstm("input", 6), "the model's input 's0'"
    x = sequences(model, 40)
    feeds = {"x": x, "s0": np.zeros((40, H), np.float32)}
    with pytest.raises(NothingToShrinkError) as caught:
        shrink(model, feeds, width=0.5)
    (cell, output) = caught.value.reasons
    assert cell[0] == "p0 and 11 others" and output == ("y", "it feeds the model's output 'y'")
    assert cell[1].startswith("an LSTM written out over 6 steps, 12 Gemms of 2 weights: ")
    assert why in cell[1]
