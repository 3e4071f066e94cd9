"""Folding changes no output: norms go where that is exact, biases appear for the solve and go again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.models import build, relative, run
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.explicit_bias import drop_zero_biases, explicit_biases
from pcns_onnx.rewrite.fold_batch_norm import fold_batch_norms

Array = np.ndarray[Any, np.dtype[Any]]
node = helper.make_node


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def norm(source: str, target: str, name: str = "norm", **attrs: Any) -> onnx.NodeProto:
    """A BatchNormalization whose constants are `stats(name, width)`."""
    names = [f"{name}.{part}" for part in ("gamma", "beta", "mean", "var")]
    return node("BatchNormalization", [source, *names], [target], name=name, **attrs)


def stats(width: int, name: str = "norm", *, shift: bool = True) -> dict[str, Array]:
    """Constants of a norm; without `shift` it only scales."""
    beta, mean = normal(4, width) * shift, normal(2, width) * shift
    parts = {"gamma": normal(1, width), "beta": beta, "mean": mean, "var": np.exp(normal(3, width))}
    return {f"{name}.{part}": value for part, value in parts.items()}


@dataclass(frozen=True)
class Case:
    """A model, what is in it, and which operators are left when its norms are folded."""

    name: str
    nodes: Sequence[onnx.NodeProto]
    weights: dict[str, Array]
    shape: tuple[int, ...]
    left: list[str]

    @property
    def model(self) -> onnx.ModelProto:
        return build(self.nodes, self.weights, ["n", *self.shape])

    def __str__(self) -> str:
        return self.name


def behind(name: str, op: str, weight: Array, shape: tuple[int, ...], bias: Array | None = None, **attrs: Any) -> Case:
    """x -> linear -> norm -> y."""
    weights = {"w": weight} | ({} if bias is None else {"b": bias})
    made = run(build([node(op, ["x", *weights], ["y"], **attrs)], weights, ["n", *shape]), normal(0, 2, *shape))
    nodes = [node(op, ["x", *weights], ["h"], **attrs), norm("h", "y", epsilon=1e-3)]
    return Case(name, nodes, weights | stats(made.shape[1]), shape, [op])


def before(name: str, op: str, weight: Array, shape: tuple[int, ...], bias: Array | None = None, **attrs: Any) -> Case:
    """x -> norm -> linear -> y."""
    weights = {"w": weight} | ({} if bias is None else {"b": bias})
    shift = attrs.pop("shift", True)
    nodes = [norm("x", "h"), node(op, ["h", *weights], ["y"], **attrs)]
    return Case(name, nodes, weights | stats(shape[0], shift=shift), shape, [op])


FOLDED = [
    behind("behind-conv", "Conv", normal(5, 6, 4, 3, 3), (4, 7, 6), pads=[1, 1, 1, 1]),
    behind("behind-conv-bias", "Conv", normal(5, 6, 4, 3, 3), (4, 7, 6), normal(6, 6), strides=[2, 1]),
    behind("behind-conv-1d", "Conv", normal(5, 6, 4, 3), (4, 9), normal(6, 6)),
    behind("behind-conv-grouped", "Conv", normal(5, 6, 2, 3, 3), (4, 7, 6), normal(6, 6), group=2),
    behind("behind-conv-depthwise", "Conv", normal(5, 4, 1, 3, 3), (4, 7, 6), group=4),
    behind("behind-transposed", "ConvTranspose", normal(5, 4, 6, 3, 3), (4, 5, 5), normal(6, 6), strides=[2, 2]),
    behind("behind-transposed-grouped", "ConvTranspose", normal(5, 4, 3, 2, 3), (4, 5, 5), normal(6, 6), group=2),
    behind("behind-transposed-no-bias", "ConvTranspose", normal(5, 4, 3, 2, 3), (4, 5, 5), group=2),
    behind("behind-gemm", "Gemm", normal(5, 4, 6), (4,)),
    behind("behind-gemm-vector", "Gemm", normal(5, 4, 6), (4,), normal(6, 6), alpha=0.5, beta=3.0),
    behind("behind-gemm-row", "Gemm", normal(5, 6, 4), (4,), normal(6, 1, 6), transB=1, alpha=2.0, beta=0.5),
    behind("behind-gemm-one", "Gemm", normal(5, 6, 4), (4,), normal(6, 1), transB=1, beta=0.5),
    behind("behind-gemm-scalar", "Gemm", normal(5, 4, 6), (4,), normal(6, 1).reshape(()), beta=2.0),
    before("before-conv", "Conv", normal(5, 6, 4, 3, 3), (4, 7, 6)),
    before("before-conv-bias", "Conv", normal(5, 6, 4, 3, 3), (4, 7, 6), normal(6, 6), dilations=[2, 1]),
    before("before-conv-valid", "Conv", normal(5, 6, 4, 3, 3), (4, 7, 6), auto_pad="VALID"),
    before("before-conv-padded-unshifted", "Conv", normal(5, 6, 4, 3, 3), (4, 7, 6), pads=[1] * 4, shift=False),
    before("before-gemm", "Gemm", normal(5, 4, 6), (4,), normal(6, 6), alpha=0.5, beta=3.0),
    before("before-gemm-transposed", "Gemm", normal(5, 6, 4), (4,), transB=1, alpha=2.0),
    before("before-gemm-scalar", "Gemm", normal(5, 6, 4), (4,), normal(6, 1), transB=1, beta=0.5),
    Case(
        "weight-derived",
        [node("Transpose", ["w"], ["t"], perm=[1, 0, 2, 3]), node("Neg", ["t"], ["v"]), node("Conv", ["x", "v"], ["h"]),
         norm("h", "y")],
        {"w": normal(5, 4, 6, 3, 3)} | stats(6),
        (4, 7, 6),
        ["Transpose", "Neg", "Conv"],
    ),
    Case(
        "statistics-derived",
        [node("Exp", ["norm.beta"], ["b"]), node("Conv", ["x", "w"], ["h"]),
         node("BatchNormalization", ["h", "norm.gamma", "b", "norm.mean", "norm.var"], ["y"], name="norm")],
        {"w": normal(5, 6, 4, 3, 3)} | stats(6),
        (4, 7, 6),
        ["Exp", "Conv"],
    ),
    Case(
        "two-in-a-row",
        [node("Conv", ["x", "w"], ["h"]), norm("h", "i"), norm("i", "y", "again")],
        {"w": normal(5, 6, 4, 3, 3)} | stats(6) | stats(6, "again"),
        (4, 7, 6),
        ["Conv"],
    ),
    Case(
        "behind-all-that-read-a-weight",
        [node("Conv", ["x", "w"], ["h"]), norm("h", "i"), node("Neg", ["x"], ["n"]), node("Conv", ["n", "w"], ["g"]),
         node("BatchNormalization", ["g", *(f"norm.{n}" for n in ("gamma", "beta", "mean", "var"))], ["j"],
              name="twin"),
         node("Add", ["i", "j"], ["y"])],
        {"w": normal(5, 6, 4, 3, 3)} | stats(6),
        (4, 7, 6),
        ["Conv", "Neg", "Conv", "Add"],
    ),
    Case(
        "one-on-each-side",
        [norm("x", "g"), node("Conv", ["g", "w"], ["h"]), node("Relu", ["h"], ["i"]), norm("i", "j", "mid"),
         node("Conv", ["j", "v"], ["k"], auto_pad="VALID"), norm("k", "y", "last")],
        {"w": normal(5, 6, 4, 3, 3), "v": normal(7, 3, 6, 2, 2)} | stats(4) | stats(6, "mid") | stats(3, "last"),
        (4, 7, 6),
        ["Conv", "Relu", "Conv"],
    ),
]  # fmt: skip


def kept(name: str, nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], shape: tuple[int, ...]) -> Case:
    """A case whose norm must stay."""
    return Case(name, nodes, weights, shape, [n.op_type for n in nodes])


W = {"w": normal(5, 6, 4, 3, 3)}
V = {"v": normal(5, 4, 6)}
MAPS, ROWS = (4, 7, 6), (4,)
CONV = node("Conv", ["x", "w"], ["h"])
COMPUTED = ["h", "norm.gamma", "b", "norm.mean", "norm.var"]
REFUSED = [
    kept(
        "shift-into-padding", [norm("x", "h"), node("Conv", ["h", "w"], ["y"], pads=[0, 1, 0, 0])], W | stats(4), MAPS
    ),
    kept(
        "shift-into-auto-padding",
        [norm("x", "h"), node("Conv", ["h", "w"], ["y"], auto_pad="SAME_UPPER")],
        W | stats(4),
        MAPS,
    ),
    kept(
        "into-a-weight-of-others",
        [
            node("Conv", ["x", "w"], ["h"]),
            norm("h", "i"),
            node("Conv", ["x", "w"], ["j"]),
            node("Add", ["i", "j"], ["y"]),
        ],
        {"w": normal(5, 6, 4, 3, 3)} | stats(6),
        MAPS,
    ),
    kept(
        "into-grouped",
        [norm("x", "h"), node("Conv", ["h", "w"], ["y"], group=2)],
        {"w": normal(5, 6, 2, 1, 1)} | stats(4),
        MAPS,
    ),
    kept(
        "into-rows",
        [norm("x", "h"), node("Gemm", ["h", "v"], ["y"], transA=1)],
        {"v": normal(5, 2, 3)} | stats(4),
        ROWS,
    ),
    kept("layer-read-by-another", [CONV, norm("h", "i"), node("Add", ["h", "i"], ["y"])], W | stats(6), MAPS),
    kept(
        "norm-read-by-two",
        [
            norm("x", "h"),
            node("Conv", ["h", "w"], ["i"]),
            node("Conv", ["h", "w"], ["j"]),
            node("Add", ["i", "j"], ["y"]),
        ],
        W | stats(4),
        MAPS,
    ),
    kept("norm-read-twice-by-one", [norm("x", "h"), node("Mul", ["h", "h"], ["y"])], stats(4), MAPS),
    kept(
        "bias-per-row",
        [node("Gemm", ["x", "v", "b"], ["h"]), norm("h", "y")],
        V | {"b": normal(6, 2, 6)} | stats(6),
        ROWS,
    ),
    kept(
        "weight-computed",
        [node("Relu", ["v"], ["u"]), node("Gemm", ["x", "u"], ["h"]), norm("h", "y")],
        V | stats(6),
        ROWS,
    ),
    kept(
        "statistics-computed",
        [node("Relu", ["norm.beta"], ["b"]), CONV, node("BatchNormalization", COMPUTED, ["y"])],
        W | stats(6),
        MAPS,
    ),
    kept("nothing-linear", [node("Relu", ["x"], ["h"]), norm("h", "i"), node("Relu", ["i"], ["y"])], stats(4), MAPS),
]


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def assert_same_outputs(before: onnx.ModelProto, after: Graph, shape: tuple[int, ...], rows: int = 2) -> None:
    after.check(full=True)
    x = normal(9, rows, *shape)
    assert relative(run(before, x), run(after.proto, x)) < 1e-5


@pytest.mark.parametrize("case", FOLDED, ids=str)
def test_a_norm_is_folded_where_that_is_exact(case: Case) -> None:
    model = case.model
    content = model.SerializeToString()
    folded, names = fold_batch_norms(Graph(model))
    assert ops(folded) == case.left
    assert sorted(names) == sorted(n.name for n in case.nodes if n.op_type == "BatchNormalization")
    assert_same_outputs(model, folded, case.shape)
    assert model.SerializeToString() == content
    folded.prune()
    assert not any("var" in t.name for t in folded.proto.graph.initializer)


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_norm_stays_where_folding_is_not_exact(case: Case) -> None:
    graph = Graph(case.model)
    folded, names = fold_batch_norms(graph)
    assert folded is graph and names == ()


@pytest.mark.parametrize(
    "nodes",
    [[node("Conv", ["x", "w"], ["h"]), norm("h", "y")], [norm("x", "h"), node("Conv", ["h", "w"], ["y"])]],
    ids=["behind", "before"],
)
def test_a_norm_beside_an_output_of_the_model_stays(nodes: Sequence[onnx.NodeProto]) -> None:
    """The tensor between norm and layer is asked for: it must keep its values."""
    width = 6 if nodes[0].op_type == "Conv" else 4
    model = build(nodes, W | stats(width), ["n", 4, 7, 6])
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, None))
    assert ops(fold_batch_norms(Graph(model))[0]) == [n.op_type for n in nodes]


def test_a_norm_in_training_mode_stays() -> None:
    training = norm("h", "y", training_mode=1)
    training.output.extend(["m", "v"])
    model = build([node("Conv", ["x", "w"], ["h"]), training], W | stats(6), ["n", 4, 7, 6])
    assert fold_batch_norms(Graph(model))[1] == ()


def test_a_folded_layer_keeps_its_storage_type() -> None:
    weights = {name: value.astype(np.float16) for name, value in (W | stats(6)).items()}
    graph = helper.make_graph(
        [node("Conv", ["x", "w"], ["h"]), norm("h", "y")],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4, 7, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folded, _ = fold_batch_norms(Graph(model))
    folded.prune()
    assert {t.data_type for t in folded.proto.graph.initializer} == {TensorProto.FLOAT16}
    x = normal(9, 2, 4, 7, 6).astype(np.float16)
    assert relative(run(model, x).astype(np.float32), run(folded.proto, x).astype(np.float32)) < 5e-3


# -- biases ----------------------------------------------------------------------------------


def chain(*nodes: onnx.NodeProto, **more: Array) -> onnx.ModelProto:
    weights = {"w": normal(5, 4, 6), "v": normal(7, 6, 3), **more}
    return build(nodes, weights, ["n", 4])


RELU = node("Relu", ["h"], ["i"])
FIRST, LAST = node("MatMul", ["x", "w"], ["h"], name="first"), node("MatMul", ["i", "v"], ["y"])
ADD, AFTER = node("Add", ["h", "b"], ["g"]), node("Relu", ["g"], ["i"])
BARE = {
    "both": (chain(FIRST, RELU, LAST), ["h", "y"]),
    "one-has-one": (chain(FIRST, ADD, AFTER, LAST, b=normal(8, 6)), ["y"]),
    "added-from-the-left": (chain(FIRST, node("Add", ["b", "h"], ["g"]), AFTER, LAST, b=normal(8, 1, 6)), ["y"]),
    "a-scalar-is-none": (chain(FIRST, ADD, AFTER, LAST, b=normal(8, 1)), ["h", "y"]),
    "read-twice": (chain(FIRST, node("Add", ["h", "h"], ["i"]), LAST), ["h", "y"]),
    "read-elsewhere": (chain(FIRST, ADD, node("Mul", ["g", "h"], ["i"]), LAST, b=normal(8, 6)), ["h", "y"]),
}


@pytest.mark.parametrize(("model", "bare"), BARE.values(), ids=BARE)
def test_every_matrix_gets_a_bias_and_loses_it_again(model: onnx.ModelProto, bare: list[str]) -> None:
    original = Graph(model)
    content = original.serialize()
    explicit, added = explicit_biases(original)
    assert list(added) == bare
    assert len(explicit.nodes) == len(original.nodes) + len(bare)
    assert explicit_biases(explicit)[1] == ()
    assert_same_outputs(model, explicit, (4,))
    assert original.serialize() == content
    drop_zero_biases(explicit, added)
    explicit.prune()
    assert explicit.serialize() == content


def test_a_bias_that_is_needed_stays() -> None:
    model = chain(FIRST, RELU, LAST)
    explicit, added = explicit_biases(Graph(model))
    explicit.set_input("h", 1, normal(8, 6))
    wanted = run(explicit.proto, normal(9, 2, 4))
    drop_zero_biases(explicit, added)
    assert ops(explicit) == ["MatMul", "Add", "Relu", "MatMul"]
    assert relative(wanted, run(explicit.proto, normal(9, 2, 4))) < 1e-6


def test_a_matrix_that_is_computed_gets_no_bias() -> None:
    model = chain(node("Relu", ["w"], ["u"]), node("MatMul", ["x", "u"], ["i"]), LAST)
    assert explicit_biases(Graph(model))[1] == ("y",)
