"""The CUDA path on real hardware: `pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest

from builders.models import MODELS, relative
from pcns_onnx import shrink
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import array_module, to_numpy
from pcns_onnx.runtime.engine import Engine

pytestmark = pytest.mark.gpu


def test_captured_tensors_stay_on_the_device_and_equal_the_hosts() -> None:
    graph = Graph.load(MODELS / "digits_cnn.onnx")
    with np.load(MODELS / "digits_images_test.npz") as archive:
        feeds = {"input": archive["input"]}
    on_host = Engine("cpu").session(graph.program()).run(feeds)["logits"]
    on_device = Engine("cuda").session(graph.program()).run(feeds)["logits"]
    assert not isinstance(on_device, np.ndarray)
    assert relative(on_host, to_numpy(on_device)) < 1e-3
    again = Engine("cuda").session(graph.program()).run({"input": array_module("cuda").asarray(feeds["input"])})
    assert np.array_equal(to_numpy(on_device), to_numpy(again["logits"]))


@pytest.mark.parametrize("method", ["obs", "interpolative", "pcns"])
@pytest.mark.parametrize("model", ["digits_cnn", "digits_mlp_leaky", "digits_mlp_tanh"])
def test_both_devices_shrink_alike(model: str, method: str) -> None:
    data = MODELS / ("digits_images.npz" if model == "digits_cnn" else "digits_rows.npz")
    results = [
        shrink(MODELS / f"{model}.onnx", data, width=0.5, method=method, device=device).report.agreement
        for device in ("cpu", "cuda")
    ]
    assert abs(results[0].error - results[1].error) < 0.02
