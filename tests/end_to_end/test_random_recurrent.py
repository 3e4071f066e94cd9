"""Random stacks of recurrent layers: narrowed soundly, and what comes of it runs at other batches and lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.cells import DIRECTIONS, drawn
from builders.models import Array, relative
from pcns_onnx import shrink
from pcns_onnx.errors import NothingToShrinkError
from pcns_onnx.graph import Program
from pcns_onnx.ops.recurrent import GATES
from pcns_onnx.runtime.engine import Engine

FEATURES = 6


def stack(seed: int) -> tuple[onnx.ModelProto, int]:
    """One to three cells, one behind the other, in one of the forms that exporters write; and how many there are."""
    rng = np.random.default_rng(seed)
    nodes = [helper.make_node("Transpose", ["x"], ["h0"], perm=[1, 0, 2])]
    weights: dict[str, Array] = {"one": np.array([1], dtype=np.int64), "flat": np.array([0, 0, -1], dtype=np.int64)}
    width, inputs = FEATURES, [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", FEATURES])]
    with_lengths = bool(rng.integers(2))
    if with_lengths:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"]))
    count = int(rng.integers(1, 4))
    for at in range(count):
        op, direction = str(rng.choice([*GATES])), str(rng.choice(DIRECTIONS))
        d, h, k = (2 if direction == "bidirectional" else 1), int(rng.integers(2, 14)), GATES[op]
        weights |= {f"W{at}": drawn(seed + at, d, k * h, width), f"R{at}": drawn(seed + 100 + at, d, k * h, h)}
        names = [f"h{at}", f"W{at}", f"R{at}", f"B{at}" if rng.integers(2) else ""]
        weights |= {names[3]: drawn(seed, d, 2 * k * h)} if names[3] else {}
        names += ["lengths"] if with_lengths else []
        more: dict[str, Any] = {"linear_before_reset": int(rng.integers(2))} if op == "GRU" else {}
        more |= {"clip": 2.0} if not rng.integers(4) else {}
        is_last, ends = at == count - 1, int(rng.integers(3))
        outputs = ["", "last"] if is_last and not ends else [f"y{at}"]
        nodes.append(helper.make_node(op, names, outputs, name=f"c{at}", hidden_size=h, direction=direction, **more))
        if outputs[-1] == "last":
            nodes.append(helper.make_node("Transpose", ["last"], ["turned"], perm=[1, 0, 2]))
            nodes.append(helper.make_node("Flatten", ["turned"], ["h"], axis=1))
        elif d == 1 and ends == 1:
            nodes.append(helper.make_node("Squeeze", [f"y{at}", "one"], ["h" if is_last else f"h{at + 1}"]))
        else:
            nodes.append(helper.make_node("Transpose", [f"y{at}"], [f"t{at}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{at}", "flat"], ["h" if is_last else f"h{at + 1}"]))
        width = d * h
    weights["V"] = drawn(seed, width, 3)
    nodes.append(helper.make_node("MatMul", ["h", "V"], ["y"]))
    shape: list[str | int] = ["N", 3] if nodes[-2].op_type == "Flatten" else ["T", "N", 3]
    graph = helper.make_graph(
        nodes, "stack", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model, count


def feeds(model: onnx.ModelProto, count: int, steps: int) -> dict[str, Array]:
    x = np.random.default_rng([count, steps]).standard_normal((count, steps, FEATURES)).astype(np.float32)
    lengths = np.random.default_rng(count).integers(1, steps + 1, count).astype(np.int32)
    return {"x": x} | ({"lengths": lengths} if len(model.graph.input) > 1 else {})


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(s, marks=pytest.mark.slow) for s in range(12, 100))])
def test_a_random_stack_is_narrowed_and_runs(seed: int) -> None:
    model, _ = stack(seed)
    try:
        result = shrink(model, feeds(model, 24, 6), width=0.6, multiple="1", refine=3, threads=1)
    except NothingToShrinkError as nothing:
        assert any("single channel" in why for _, why in nothing.reasons)
        return
    onnx.checker.check_model(result.model, full_check=True)
    assert result.report.after.macs <= result.report.before.macs
    session = Engine().session(Program(result.model.SerializeToString()))
    for count, steps in ((1, 1), (3, 9), (5, 6)):
        assert np.isfinite(np.asarray(session.run(feeds(model, count, steps))["y"])).all()
    fresh = feeds(model, 40, 6)
    expected = Engine().session(Program(model.SerializeToString())).run(fresh)["y"]
    assert relative(np.asarray(expected), np.asarray(session.run(fresh)["y"])) < 0.9
