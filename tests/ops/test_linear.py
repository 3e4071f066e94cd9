"""A stored matrix is a matrix however it is stored, and on whichever side of a MatMul it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from builders.chains import node
from builders.contract import holds, nothing_lost, surveyed
from builders.models import Array, build

C, H, K = 5, 12, 3
"""Channels of the input, of the hidden layer, of the output."""


def twice(rows: int, columns: int) -> Array:
    """(rows, columns) whose second half of columns repeats the first: half of the channels are superfluous."""
    half = np.random.default_rng([3, rows]).standard_normal((rows, columns // 2)).astype(np.float32)
    return np.concatenate([half, half], axis=1)


def plain(rows: int, columns: int) -> Array:
    return np.random.default_rng([4, rows]).standard_normal((rows, columns)).astype(np.float32) * np.float32(0.3)


@dataclass(frozen=True)
class Form:
    """How both MatMuls have their matrix: `lead` axes of one before it, on the `left`; what else is between."""

    shape: tuple[int | str, ...]
    lead: int = 0
    left: bool = False
    bias: bool = False

    def build(self, spelled: Callable[[str, Array], tuple[list[onnx.NodeProto], dict[str, Array]]]) -> onnx.ModelProto:
        nodes, weights, source = list[onnx.NodeProto](), dict[str, Array](), "x"
        for name, matrix, result in (("W0", twice(C, H), "h"), ("W1", plain(H, K), "y")):
            matrix = (matrix.T if self.left else matrix).reshape(
                (1,) * self.lead + matrix.shape[:: -1 if self.left else 1]
            )
            before, stored = spelled(name, np.ascontiguousarray(matrix))
            inputs = f"{name} {source}" if self.left else f"{source} {name}"
            nodes += [*before, node("MatMul", inputs, f"{result}0" if self.bias else result, name=name)]
            weights |= stored
            if self.bias:
                width = matrix.shape[-2] if self.left else matrix.shape[-1]
                value = np.linspace(-1, 1, width, dtype=np.float32)
                value = np.concatenate([value[: width // 2]] * 2) if result == "h" else value
                weights[f"b{name}"] = value[:, None] if self.left else value
                nodes.append(node("Add", f"{result}0 b{name}", result))
            if result == "h":
                nodes.append(node("Relu", "h", "r"))
            source = "r"
        return build(nodes, weights, self.shape)


def initializer(name: str, value: Array) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    return [], {name: value}


def constant_node(name: str, value: Array) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    return [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))], {}


def transposed(name: str, value: Array) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    *lead, rows, columns = range(value.ndim)
    perm = [*lead, columns, rows]
    before = np.ascontiguousarray(np.transpose(value, perm))
    return [node("Transpose", f"{name}.T", name, perm=perm)], {f"{name}.T": before}


FORMS = {
    "matrix": Form(("N", 6, C)),
    "rank 3": Form(("N", 6, C), lead=1),
    "rank 4": Form(("N", 6, 2, C), lead=2),
    "rank 3 of a batch of rows": Form(("N", C), lead=1),
    "rank 4 of a sequence": Form(("N", 6, C), lead=2),
    "rank 3 with a bias": Form(("N", 6, C), lead=1, bias=True),
    "left": Form(("N", C, 7), left=True),
    "left with a bias": Form(("N", C, 7), left=True, bias=True),
    "left of samples in columns": Form((C, "N"), left=True),
    "left, rank 3": Form(("N", C, 7), lead=1, left=True),
    "left, rank 4, of heads": Form(("N", 2, C, 7), lead=2, left=True, bias=True),
}


@pytest.mark.parametrize("spelled", [initializer, constant_node, transposed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_a_stored_matrix_is_narrowed_exactly(
    form: Form, spelled: Callable[[str, Array], tuple[list[onnx.NodeProto], dict[str, Array]]]
) -> None:
    model = form.build(spelled)
    if spelled is initializer and form.shape[0] == "N":
        holds(model)
    if form.shape[0] == "N":
        nothing_lost(model, 0.5)


def test_samples_in_columns_are_read_in_columns() -> None:
    holds(FORMS["left of samples in columns"].build(initializer), H)


def test_several_matrices_are_left_alone() -> None:
    weights = {"W0": np.stack([twice(C, H)] * 2), "W1": plain(H, K)}
    nodes = [node("MatMul", "x W0", "h", name="m"), node("Relu", "h"), node("MatMul", "m W1", "y")]
    _, dependencies = surveyed(build(nodes, weights, ("N", 2, 6, C)))
    assert [item.reason for item in dependencies.unsolved] == ["MatMul 'm' does not multiply by one stored matrix"]
