"""The command that reruns the design's experiments, and the training behind its figures."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from papers.pca_design.table2 import M, network, vgg
from pcns_onnx.architecture.fresh import initialise
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine


def test_the_command_writes_its_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from papers.pca_design import pca_design

    monkeypatch.setattr(sys, "argv", ["pca_design.py", "--out", str(tmp_path)])
    pca_design.main()
    text = (tmp_path / "report_digits.md").read_text()
    assert "| CIFAR-10, VGG-16_BN | final | 2.9X | 2.90X |" in text
    assert "| initial | `[32, 64, 'M', 64, 128, 'A']`" in text
    pictures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert len(pictures) == 3 and max(pictures.values()) < 100_000


@pytest.mark.slow
def test_a_net_goes_to_pytorch_and_back() -> None:
    torch = pytest.importorskip("torch")
    from papers.pca_design import training

    graph = Graph.load(network(vgg([6, M, 8], 10, size=8), channels=1))
    initialise(graph, 0)
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    images, labels = torch.from_numpy(x).repeat(26, 1, 1, 1), torch.arange(130) % 10
    data = training.Split((images, labels), (images, labels), lambda batch: batch)
    net, accuracy = training.trained(graph.proto, data, epochs=2, seed=0, device="cpu")
    assert 0 <= accuracy <= 1
    back = training.with_weights(graph.proto, net)
    assert back.SerializeToString() != graph.proto.SerializeToString()
    (y,) = Engine().session(Program(back.SerializeToString())).run({"input": x}).values()
    with torch.inference_mode():
        np.testing.assert_allclose(np.asarray(y), net.eval()(torch.from_numpy(x)).numpy(), atol=1e-5)
