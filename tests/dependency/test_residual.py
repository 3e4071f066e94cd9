"""Residual blocks that do next to nothing go as a whole, and what they added stays as a constant."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from builders.models import build, relative, run
from builders.topologies import TOPOLOGIES
from pcns_onnx import InputError, shrink
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.residual import block_ends, residual_blocks
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.layer_weights import stored
from robustness.transformers import convnext, row, rows


def sample(model: onnx.ModelProto, count: int, seed: int = 1) -> NDArray[np.float32]:
    """So many inputs of the model."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def with_idle_block(name: str, layer: str, offset: float = 0.5) -> onnx.ModelProto:
    """The model with a layer that adds nothing but `offset` to its sum."""
    model = TOPOLOGIES[name]()
    node = next(n for n in model.graph.node if n.output[0] == layer)
    for tensor in model.graph.initializer:
        if tensor.name in node.input[1:]:
            value = numpy_helper.to_array(tensor)
            new = np.zeros_like(value) if value.ndim > 1 else np.full_like(value, offset)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return model


@pytest.mark.parametrize(("name", "last"), [("two blocks", "a2"), ("two blocks", "b2"), ("residual", "a2")])
def test_a_block_that_does_nothing_goes_and_nothing_is_lost(name: str, last: str) -> None:
    model = with_idle_block(name, last)
    x = sample(model, 100)
    small = shrink(model, x, budget="macs=0.8", multiple=1, coupled=False, refine=0)
    gone = [group for group, entry in small.plan.groups.items() if entry.width == 0]
    assert gone == [last[0] + "1"]
    assert not {last, last[0] + "1"} & {output for node in small.model.graph.node for output in node.output}
    onnx.checker.check_model(small.model, full_check=True)
    new = sample(model, 20, seed=9)
    assert relative(run(model, new), run(small.model, new)) < 0.05
    kept = shrink(model, x, budget="macs=0.8", multiple=1, coupled=False, refine=0, depth=False)
    assert all(entry.width > 0 for entry in kept.plan.groups.values())


def test_a_plan_without_a_block_replays_to_the_same_bytes(tmp_path: Path) -> None:
    model = with_idle_block("two blocks", "a2")
    x, path = sample(model, 100), tmp_path / "plan.json"
    first = shrink(model, x, budget="macs=0.8", multiple=1, coupled=False, refine=0, plan_out=path)
    again = shrink(model, x, plan=path, refine=0, coupled=False)
    assert again.model.SerializeToString() == first.model.SerializeToString()


def test_what_is_no_block_cannot_go(tmp_path: Path) -> None:
    model, path = TOPOLOGIES["residual"](), tmp_path / "plan.json"
    x = sample(model, 50)
    shrink(model, x, width=0.5, refine=0, plan_out=path)
    plan = msgspec.json.decode(path.read_bytes())
    name = next(
        group
        for group in plan["groups"]
        if group not in residual_blocks(Graph(model), build_dependency_graph(Graph(model)))
    )
    plan["groups"][name].update(width=0, keep=[])
    path.write_bytes(msgspec.json.encode(plan))
    with pytest.raises(InputError, match="width 0 of"):
        shrink(model, x, plan=path)


def test_the_constant_is_the_mean_of_what_the_sum_lacks() -> None:
    model = with_idle_block("residual", "a2", 0.75)
    small = shrink(model, sample(model, 100), budget="macs=0.8", multiple=1, coupled=False, refine=0).model
    graph = Graph(small)
    sums = [node for node in graph.nodes if node.op == "Add"]
    values = [stored(graph, n.key, i) for n in sums for i, name in enumerate(n.inputs) if graph.is_constant(name)]
    assert values and np.allclose(values[0], 0.75, atol=1e-2)


# -- what blocks hand on -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), rows())
def test_every_block_hands_on_one_state(name: str, form: str) -> None:
    model, net = row(name, form, layers=2)
    graph, branches = Graph.load(model), 3 if net.recipe.cross else 2
    ends = block_ends(graph)
    assert len(ends) == 2 * branches == len(set(ends))
    makers = [graph.producers[name].op for name in ends[:-1]]
    if net.recipe.post_norm:  # what a norm makes of a sum is what the next one reads
        assert all(op.endswith("LayerNormalization") for op in makers)
    else:
        assert set(makers) == {"Add"}


def test_blocks_of_convolutions_hand_on_what_the_next_one_reads() -> None:
    graph = Graph.load(convnext(2)[0])
    assert [graph.producers[name].op for name in block_ends(graph)] == ["Add", "Add"]
    residual = Graph.load(TOPOLOGIES["residual"]())
    assert len(block_ends(residual)) > 0


def test_a_sum_without_a_layer_is_no_block() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "h"], ["square"]),
        helper.make_node("Mul", ["square", "h"], ["cube"]),
        helper.make_node("Add", ["h", "cube"], ["bent"]),
        helper.make_node("MatMul", ["bent", "w"], ["y"]),
    ]
    model = build(nodes, {"w": np.eye(4, dtype=np.float32)}, ["N", 4], output="y")
    assert block_ends(Graph.load(model)) == []
