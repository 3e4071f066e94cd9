"""Weight-only quantised layers: seen through at every opset, written back as they were stored, never larger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array, build, relative, run
from pcns_onnx import NothingToShrinkError, expand, inspect, shrink
from pcns_onnx.graph import Graph
from pcns_onnx.graph.quantized_weights import bits_of, chain_to, set_quantized
from pcns_onnx.numerics.quantization import Quantized

node = helper.make_node
INT8, UINT8, INT4, UINT4 = np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4
FLOAT8 = ml_dtypes.float8_e4m3fn


def normal(*shape: int) -> Array:
    return np.random.default_rng([9, *shape]).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Form:
    """How weights are stored, by what they are read, and what stands between."""

    dtype: Any
    per: str
    opset: int
    op: str = "MatMul"
    through: str = ""

    def __str__(self) -> str:
        return " ".join(map(str, (np.dtype(self.dtype).name, self.per, self.opset, self.op, self.through))).strip()

    def stored(self, weight: Array) -> tuple[dict[str, Array], dict[str, Any]]:
        """Inputs of the DequantizeLinear that makes a weight (inputs, outputs), transposed where that is asked for."""
        value = weight.T[:, :, None, None] if self.op == "Conv" else weight
        inputs, outputs = (1, 0) if self.op == "Conv" else (0, 1)
        if self.through == "Transpose":
            value, inputs, outputs = value.T, outputs, inputs
        axis = inputs if self.per == "block" else outputs
        blocks = [-(-size // 16) if place == axis else size for place, size in enumerate(value.shape)]
        sizes = {"tensor": [], "axis": [value.shape[axis]], "block": blocks}
        size = tuple(sizes[self.per])
        middle = {UINT8: 128, UINT4: 8}.get(self.dtype)
        zero = None if middle is None else np.full(size, middle).astype(self.dtype)
        blank = Quantized(value.astype(self.dtype), np.ones(size, np.float32), zero, axis, 16 * (self.per == "block"))
        packed = blank.like(value)
        attributes: dict[str, Any] = {} if self.per == "tensor" else {"axis": axis}
        attributes |= {"block_size": 16} if self.per == "block" else {}
        arrays = {"q": packed.q, "s": packed.scale} | ({} if packed.zero is None else {"z": packed.zero})
        return arrays, attributes

    def model(self, hidden: int = 48) -> onnx.ModelProto:
        """x -> 16 x hidden -> Relu -> hidden x 8, every hidden channel there twice."""
        half = normal(16, hidden // 2)
        weights = np.concatenate([half, half], axis=1), normal(hidden, 8)
        nodes, constants, source = list[onnx.NodeProto](), dict[str, Array](), "x"
        for at, weight in enumerate(weights):
            arrays, attributes = self.stored(weight)
            constants |= {f"{key}{at}": value for key, value in arrays.items()}
            nodes.append(node("DequantizeLinear", [f"{key}{at}" for key in arrays], [f"w{at}"], **attributes))
            weight_name = f"w{at}"
            if self.through:
                nodes.append(node(self.through, [weight_name], [f"t{at}"]))
                weight_name = f"t{at}"
            more = []
            if self.op == "Gemm":
                bias = normal(hidden // 2)
                constants[f"b{at}"] = normal(weight.shape[1]) if at else np.concatenate([bias, bias])
                more = [f"b{at}"]
            nodes.append(node(self.op, [source, weight_name, *more], [f"h{at}"], name=f"l{at}"))
            source = f"h{at}"
            if not at:
                nodes.append(node("Relu", [source], ["r"]))
                source = "r"
        nodes[-1].output[0] = "y"
        shape: list[int | str] = ["n", 16, 3, 3] if self.op == "Conv" else ["n", 16]
        return build(nodes, constants, shape, opset=self.opset, ir_version=10 if self.opset > 20 else 9)

    def rows(self) -> Array:
        return normal(300, 16, 3, 3) if self.op == "Conv" else normal(300, 16)


FORMS = [
    Form(INT8, "tensor", 10), Form(UINT8, "tensor", 12, "Gemm"), Form(INT8, "axis", 13),
    Form(UINT8, "axis", 13, "Conv"), Form(INT8, "axis", 18, "Gemm", "Transpose"), Form(INT8, "axis", 19, "Conv"),
    Form(FLOAT8, "axis", 19), Form(INT8, "tensor", 20, through="Identity"), Form(INT4, "block", 21),
    Form(UINT4, "block", 21, "Gemm", "Transpose"), Form(INT4, "axis", 21, "Conv"), Form(np.int16, "axis", 22),
    Form(INT8, "block", 23, "Conv"), Form(UINT4, "tensor", 23),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_narrowed_and_stored_as_it_was(form: Form, tmp_path: Path) -> None:
    model, x = form.model(), form.rows()
    result = shrink(model, x, tmp_path / "small.onnx", width=0.5, multiple="1", refine=0, threads=1)
    small = onnx.load(tmp_path / "small.onnx")
    before, after = ({t.name: t for t in m.graph.initializer} for m in (model, small))
    assert {key: t.data_type for key, t in before.items()}.items() <= {k: t.data_type for k, t in after.items()}.items()
    assert [n for n in model.graph.node if n.op_type == "DequantizeLinear"] == [
        n for n in small.graph.node if n.op_type == "DequantizeLinear"
    ]
    assert numpy_helper.to_array(after["q0"]).size == numpy_helper.to_array(before["q0"]).size // 2
    few = {INT4: 0.2, UINT4: 0.35, FLOAT8: 0.06}.get(form.dtype, 0.03)
    assert relative(run(model, x), run(small, x)) < few
    report = result.report
    assert report.before.parameters == 16 * 48 + 48 * 8 + (56 if form.op == "Gemm" else 0)
    assert report.after.parameters <= report.before.parameters / 2 + 32
    del small.metadata_props[:]  # the note of where it comes from
    assert report.after.bytes > small.ByteSize() < report.before.bytes
    assert not any("larger" in warning for warning in report.warnings)


def test_channels_that_are_only_taken_out_are_exact() -> None:
    """The writer's rows; what reads them is solved anew."""
    form = Form(INT4, "block", 21)
    model, x = form.model(), form.rows()
    small = Graph(shrink(model, x, width=0.5, multiple="1", refine=0).model)
    old, new = Graph(model).constant("w0"), small.constant("w0")
    assert old is not None and new is not None and new.shape == (16, 24)
    columns = {column.tobytes() for column in old.T}
    assert all(column.tobytes() in columns for column in new.T)


def test_what_another_node_reads_stays() -> None:
    """Both would have to be solved for, and the other one reads the model's input: the weight stays stored once."""
    form = Form(INT8, "axis", 13)
    model = form.model()
    model.graph.node.insert(4, node("MatMul", ["x", "w0"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 48]))
    with pytest.raises(NothingToShrinkError):
        shrink(model, form.rows(), width=0.5, multiple="1", refine=0, include="l0")


@pytest.mark.parametrize("op", ["Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast"])
def test_new_values_go_back_through_what_rearranges(op: str) -> None:
    w = np.rint(normal(1, 6, 4) * 40).clip(-127, 127).astype(np.int8)
    axes = {"a": np.array([0])} if op in ("Squeeze", "Unsqueeze") else {}
    attributes: dict[str, Any] = {"perm": [2, 0, 1]} if op == "Transpose" else {"to": 1} if op == "Cast" else {}
    nodes = [
        node("DequantizeLinear", ["q", "s"], ["w"], axis=2),
        node(op, ["w", *axes], ["t"], **attributes),
        node("Add", ["x", "t"], ["y"]),
    ]
    constants: Mapping[str, Array] = {"q": w, "s": np.full(4, 0.05, np.float32), **axes}
    graph = Graph(build(nodes, constants, [1, 1]))
    old = graph.constant("t")
    assert old is not None
    assert set_quantized(graph, "y", 1, 2 * old)
    new = graph.constant("t")
    assert new is not None and [n.op for n in graph.nodes] == ["DequantizeLinear", op, "Add"]
    np.testing.assert_allclose(new, 2 * old, atol=0.51 * 2 * np.abs(old).max() / 127)
    graph.check()


def test_halves_behind_a_cast_stay_halves() -> None:
    nodes = [node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), node("MatMul", ["x", "c"], ["y"])]
    graph = Graph(build(nodes, {"w": normal(4, 6).astype(np.float16)}, ["n", 4]))
    graph.set_input("y", 1, 2 * normal(4, 6))
    stored = graph.constant("w")
    assert stored is not None and stored.dtype == np.float16
    np.testing.assert_array_equal(stored, (2 * normal(4, 6)).astype(np.float16))


def test_what_is_computed_from_integers_otherwise_is_left_alone_with_the_reason() -> None:
    """As floats it would be four times as large."""
    weights = np.rint(normal(40, 48) * 30).clip(-127, 127).astype(np.int8)
    nodes = [
        node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        node("Mul", ["c", "s"], ["w"]),
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("Relu", ["h"], ["r"]),
        node("MatMul", ["r", "v"], ["y"], name="last"),
    ]
    model = build(nodes, {"q": weights, "s": np.array(0.03, np.float32), "v": normal(48, 5)}, ["n", 40])
    with pytest.raises(NothingToShrinkError) as caught:
        shrink(model, normal(300, 40), width=0.5, refine=0)
    reasons = dict(caught.value.reasons)
    assert reasons["first"] == (
        "MatMul 'first' has a weight that Mul 'w' makes of integers: as floats it would take more room"
    )


def test_a_norm_behind_quantised_weights_stays() -> None:
    """Folding it would round them anew."""
    form = Form(INT8, "axis", 19, "Conv")
    model = form.model()
    at = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Relu")
    model.graph.node.insert(at, node("BatchNormalization", ["h0", "g", "b", "m", "v"], ["n0"], name="norm"))
    model.graph.node[at + 1].input[0] = "n0"
    for name, value in {"g": 1, "b": 0, "m": 0, "v": 1}.items():
        vector = value + 0.1 * normal(48) if name != "v" else np.abs(normal(48)) + 1
        model.graph.initializer.append(numpy_helper.from_array(vector.astype(np.float32), name))
    small = shrink(model, form.rows(), width=0.75, multiple="1", refine=0)
    assert small.report.folded == [] and "BatchNormalization" in [n.op_type for n in small.model.graph.node]
    assert small.report.after.bytes < small.report.before.bytes


def test_wider_layers_are_floats_and_compute_the_same() -> None:
    """In 16 bits: of 8 and fewer onnxruntime rounds the activations, too (findings/)."""
    form = Form(np.int16, "axis", 21)
    model = form.model()
    wide = expand(model, layer="l0", by=1.5, data=form.rows())
    assert relative(run(model, form.rows()), run(wide.model, form.rows())) < 1e-5
    assert Graph(wide.model).constant("q0") is None


def test_bits_are_counted_with_their_scales() -> None:
    graph = Graph(Form(INT4, "block", 21).model())
    assert bits_of(graph, "w0") == 4 + 32 / 16
    assert bits_of(graph, "s0") is None and chain_to(graph, "s0") is None


def n_bits(k: int, n: int) -> tuple[onnx.NodeProto, dict[str, Array]]:
    """onnxruntime's product by a matrix in 4 bits, in blocks of 32."""
    blocks, rng = k // 32, np.random.default_rng(0)
    arrays: dict[str, Array] = {
        "B": rng.integers(0, 256, (n, blocks, 16)).astype(np.uint8),
        "scales": (rng.random(n * blocks) * 0.01).astype(np.float32),
    }
    attributes: dict[str, Any] = {"K": k, "N": n, "bits": 4, "block_size": 32}
    return node("MatMulNBits", ["r", "B", "scales"], ["m"], name="packed", domain="com.microsoft", **attributes), arrays


def test_a_product_in_four_bits_is_listed_and_counted() -> None:
    packed, arrays = n_bits(64, 48)
    nodes = [node("MatMul", ["x", "a"], ["h"], name="first"), node("Relu", ["h"], ["r"]), packed,
             node("Relu", ["m"], ["s"]), node("MatMul", ["s", "b"], ["t"], name="third"), node("Relu", ["t"], ["u"]),
             node("MatMul", ["u", "c"], ["y"], name="last")]  # fmt: skip
    constants = {"a": normal(16, 64), "b": normal(48, 32), "c": normal(32, 4), **arrays}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    listed = inspect(model, normal(64, 16))
    (row,) = [layer for layer in listed.layers if layer.name == "packed"]
    assert (row.macs, row.parameters, row.kind) == (64 * 48, 64 * 48, "MatMulNBits")
    assert row.reason is not None and "quantised" in row.reason
    assert listed.parameters == 16 * 64 + 64 * 48 + 48 * 32 + 32 * 4
    result = shrink(model, normal(300, 16), width=0.5, multiple="1", refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"third": 16}
    assert result.report.before.parameters == listed.parameters
    assert result.report.after.parameters == listed.parameters - 16 * 48 - 16 * 4 + 4


def test_whole_quantised_layers_count_their_weights() -> None:
    q = np.ones((4, 6), np.int8)
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["qx"]),
        node("DequantizeLinear", ["qx", "s", "z"], ["dx"]),
        node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        node("MatMul", ["dx", "w"], ["y"], name="both"),
    ]
    model = build(nodes, {"q": q, "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}, ["n", 4])
    (row,) = inspect(model).layers
    assert Graph(model).parameters == row.parameters == 24
