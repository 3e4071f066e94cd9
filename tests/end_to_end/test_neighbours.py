"""What else is done to a network before it ships still works on a shrunk one: int8, simplifiers.

(That it can be the student of its own original is in `test_interop.py`.)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from builders.models import MODELS, Array
from pcns_onnx import shrink

NETS = ["digits_mlp_leaky", "digits_cnn"]
LOSS = {"obs": 0.02, "pcns": 0.45}
"""Of accuracy, for int8. Neurons that are eigenvectors differ by orders of magnitude in what they mean for the
outputs; one scale for all serves them badly: models of `pcns` lose up to 38 points where those of `obs` lose none."""
pytestmark = pytest.mark.slow


def held(name: str, part: str = "") -> tuple[Array, Array]:
    kind = "images" if name.endswith("cnn") else "rows"
    with np.load(MODELS / f"digits_{kind}{part}.npz") as file:
        return file["input"], file["labels"]


@pytest.fixture(scope="module", params=[(n, m) for n in NETS for m in ("obs", "pcns")], ids="-".join)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model at 70 % of its width, as a file."""
    name, method = request.param
    path = tmp_path_factory.mktemp("small") / f"{name}-{method}.onnx"
    shrink(MODELS / f"{name}.onnx", held(name)[0], path, width=0.7, method=method, refine=0)
    return name, path


def logits(path: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def accuracy(path: Path, name: str) -> float:
    x, labels = held(name, "_test")
    return float(np.mean(logits(path, x).argmax(1) == labels))


def loss(path: Path) -> float:
    return LOSS[path.stem.rpartition("-")[2]]


def weight_bytes(path: Path) -> int:
    return sum(len(t.raw_data) + 4 * len(t.float_data) for t in onnx.load(path).graph.initializer)


def test_dynamic_int8(small: tuple[str, Path], tmp_path: Path) -> None:
    quantization = importlib.import_module("onnxruntime.quantization")
    name, path = small
    kind = quantization.QuantType
    quantization.quantize_dynamic(path, tmp_path / "q.onnx", weight_type=kind.QUInt8 if "cnn" in name else kind.QInt8)
    assert accuracy(tmp_path / "q.onnx", name) > accuracy(path, name) - loss(path)
    assert weight_bytes(tmp_path / "q.onnx") < 0.5 * weight_bytes(path)


def test_static_int8(small: tuple[str, Path], tmp_path: Path) -> None:
    quantization = importlib.import_module("onnxruntime.quantization")
    name, path = small

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc, unused-ignore]
        def __init__(self) -> None:
            x = held(name)[0][:256]
            self._feeds: Iterator[Mapping[str, Any]] = iter({"input": rows} for rows in np.array_split(x, 8))

        def get_next(self) -> Mapping[str, Any] | None:
            return next(self._feeds, None)

    quantization.quantize_static(path, tmp_path / "q.onnx", Reader(), per_channel=True)
    assert accuracy(tmp_path / "q.onnx", name) > accuracy(path, name) - loss(path)
    assert weight_bytes(tmp_path / "q.onnx") < 0.5 * weight_bytes(path)
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(tmp_path / "q.onnx").graph.node)


@pytest.mark.parametrize("library", ["onnxsim", "onnxslim"])
def test_simplifiers_leave_it_what_it_is(small: tuple[str, Path], library: str, tmp_path: Path) -> None:
    simplifier: Any = pytest.importorskip(library)
    name, path = small
    model = onnx.load(path)
    if library == "onnxsim":
        made, same = simplifier.simplify(model)
        assert same
    else:
        made = simplifier.slim(model)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, tmp_path / "s.onnx")
    x = held(name, "_test")[0]
    np.testing.assert_allclose(logits(tmp_path / "s.onnx", x), logits(path, x), rtol=1e-4, atol=1e-4)
    assert len(made.graph.node) <= len(model.graph.node)
