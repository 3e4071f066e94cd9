"""A model is taken as programs hold it: as bytes, or as other libraries make it."""

from __future__ import annotations

from typing import Any

import onnx_ir
import pytest
from onnx import ModelProto

from builders import fed
from pcns_onnx import InputError
from pcns_onnx.graph import Graph


class Exported:
    """A `torch.onnx.ONNXProgram`, by what is used of it."""

    def __init__(self, model: ModelProto | None) -> None:
        self._model = model

    @property
    def model_proto(self) -> ModelProto:
        if self._model is None:
            raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB: 2200000000")
        return self._model


def test_models_are_taken_as_programs_hold_them() -> None:
    model = fed.with_settings()
    content = model.SerializeToString()
    digest = Graph.load(model).digest()
    for source in (content, bytearray(content), memoryview(content), Exported(model)):
        assert Graph.load(source).digest() == digest  # type: ignore[arg-type]
    translated = Graph.load(onnx_ir.from_proto(model))
    assert [node.op for node in translated.nodes] == [node.op for node in Graph.load(model).nodes]


REFUSED: list[tuple[Any, str]] = [
    (b"nonsense", "the given bytes are no ONNX model: give the content of a .onnx file"),
    (
        3,
        "a model cannot be a int: give a path, a ModelProto or its bytes, an onnx_ir.Model, an ONNXProgram or a "
        "graphsurgeon.Graph",
    ),
    (
        Exported(None),
        "the given Exported cannot be written as one message (Message onnx.ModelProto exceeds maximum protobuf size of "
        "2GB: 2200000000): save it, and give the path",
    ),
]


@pytest.mark.parametrize(("source", "line"), REFUSED)
def test_what_is_no_model_is_refused_in_one_line(source: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        Graph.load(source)
    assert str(caught.value) == line
