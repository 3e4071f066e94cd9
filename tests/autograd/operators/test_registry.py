"""The table of operators: each in one kind, each tested, all of them in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")

from pcns_onnx.autograd.operators.registry import KINDS, OPERATORS, operators_table

ROOT = Path(__file__).parents[3]


def test_an_operator_stands_in_one_table() -> None:
    assert len(OPERATORS) == sum(len(table) for table in KINDS.values())


def test_every_operator_is_compared_with_onnxruntime() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r'"(\w+)"', text))
    assert {name.rpartition(".")[2] for name in OPERATORS} - named == set()


def test_the_documentation_has_the_table() -> None:
    assert operators_table() in (ROOT / "docs" / "training.md").read_text()
