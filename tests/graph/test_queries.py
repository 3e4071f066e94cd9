"""What is read off a graph in passing."""

from __future__ import annotations

import pytest

from builders.mlp import mlp
from builders.students import ending
from builders.topologies import TOPOLOGIES
from pcns_onnx.graph import Graph
from pcns_onnx.graph.queries import has_attention
from robustness.transformers import row, rows


@pytest.mark.parametrize(("name", "form"), rows())
def test_transformers_have_attention_in_every_form(name: str, form: str) -> None:
    assert has_attention(Graph.load(row(name, form)[0]))


def test_a_softmax_over_classes_is_no_attention() -> None:
    assert not has_attention(Graph.load(ending("Softmax", axis=1)))
    assert not any(has_attention(Graph.load(build())) for build in (mlp, TOPOLOGIES["residual"]))
