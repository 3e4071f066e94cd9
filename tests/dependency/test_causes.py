"""A reason that has its cause elsewhere says which tensor is meant, and why that one stays; once for all it holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from builders.chains import node, random
from builders.contract import surveyed
from builders.models import build
from pcns_onnx import shrink

N = 8


def chain(*middle: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """x -> first -> `middle` -> m -> last -> y."""
    stored = {"W0": random(N, N), "W1": random(N, N) + 1, "W2": random(N, 3), **weights}
    nodes = [node("Gemm", "x W0", "h", name="first"), *middle, node("Gemm", "m W2", "y", name="last")]
    return build(nodes, stored, ("N", N))


JOINS = "joins its channels with a tensor's that must stay"
NORM = "normalises over several channels: removing some changes the others"
REASONS = {
    "the input": (chain(node("Add", "h x", "m", name="sum")), f"Add 'sum' {JOINS}: 'x' is the model's input 'x'"),
    "made of the input": (
        chain(node("Relu", "x", "r"), node("Neg", "r", "n"), node("Add", "n h", "m", name="sum")),
        f"Add 'sum' {JOINS}: 'n' is made of the model's input 'x'",
    ),
    "far ahead": (
        chain(
            node("Gemm", "x W1", "g", name="second"),
            node("LayerNormalization", "g s", "l", name="norm"),
            node("Relu", "l", "r"),
            node("Add", "r x", "t", name="early"),
            node("Add", "h t", "m", name="sum"),
            s=np.ones(N, np.float32),
        ),
        f"Add 'sum' {JOINS}: 't' stays, since LayerNormalization 'norm' {NORM}",
    ),
    "a gate": (
        chain(node("Sigmoid", "x", "g"), node("Mul", "h g", "m", name="gate")),
        f"Mul 'gate' {JOINS}: 'g' is made of the model's input 'x'",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_tensor_and_its_cause_are_named(name: str) -> None:
    model, reason = REASONS[name]
    _, dependencies = surveyed(model)
    assert dependencies.writes(dependencies.layer("first")).frozen == reason


def test_one_cause_is_listed_once_with_all_that_it_holds_back() -> None:
    """A stream that begins with the input, and a branch beside it that can be narrowed."""
    nodes, weights, stream = [], {"V": random(N, 3)}, "x"
    for at in range(3):
        weights |= {f"A{at}": random(N, 6) + at, f"B{at}": random(6, N) + at}
        nodes += [node("Gemm", f"{stream} A{at}", f"a{at}", name=f"up{at}"), node("Relu", f"a{at}", f"r{at}")]
        nodes += [node("Gemm", f"r{at} B{at}", f"b{at}", name=f"down{at}"), node("Add", f"{stream} b{at}", f"s{at}")]
        stream = f"s{at}"
    model = build([*nodes, node("Gemm", f"{stream} V", "y", name="last")], weights, ("N", N))
    x = np.random.default_rng(0).standard_normal((60, N)).astype(np.float32)
    report = shrink(model, x, width=0.5, multiple=1, refine=0, depth=False).report
    assert [(item.label, item.layers) for item in report.left_alone] == [
        ("down0 and 2 others", ["down0", "down1", "down2"]),
        ("last", ["last"]),
    ]
    assert report.left_alone[0].reason == f"Add 's0' {JOINS}: 'x' is the model's input 'x'"
