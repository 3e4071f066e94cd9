"""Networks as PyTorch's two exporters write them, shrunk end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from builders.models import Array, run
from pcns_onnx import inspect, shrink
from pcns_onnx.graph import Graph

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EXPORTERS = {"first": False, "second": True}
"""PyTorch's exporters: TorchScript's, and the one on torch.export ('dynamo')."""


def function(forward: Callable[[Any], Any]) -> Any:
    """A function as a module."""
    return type("Function", (nn.Module,), {"forward": lambda self, x: forward(x)})()


def mlp(activation: Any) -> Any:
    return nn.Sequential(nn.Linear(12, 32), activation, nn.Linear(32, 24), activation, nn.Linear(24, 5))


def vgg(join: Callable[[Any], Any], columns: int) -> Any:
    def block(c: int, k: int, bias: bool) -> list[Any]:
        return [nn.Conv2d(c, k, 3, padding=1, bias=bias), nn.BatchNorm2d(k), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Linear(columns, 32), nn.Hardswish(), nn.Dropout(), nn.Linear(32, 5)]
    return nn.Sequential(*block(3, 16, True), *block(16, 16, False), function(join), *head)


def norm_behind() -> Any:
    """Norms behind the activation, in front of a padded Conv: they cannot be folded."""
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.PReLU(16),
    ]
    return nn.Sequential(
        *layers, nn.BatchNorm2d(16), nn.Conv2d(16, 5, 3, padding=1), function(lambda x: x.mean((2, 3)))
    )


def conv1d() -> Any:
    layers = [nn.Conv1d(3, 16, 5, padding=2), nn.Mish(), nn.Conv1d(16, 16, 3, stride=2, dilation=2), nn.ELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5))


def sequence(activation: Any) -> Any:
    return nn.Sequential(nn.Linear(12, 32), activation, nn.Linear(32, 24, bias=False), activation, nn.Linear(24, 5))


IMAGE, ROW, SIGNAL, TOKENS = (3, 16, 16), (12,), (3, 30), (7, 12)
NETWORKS: dict[str, tuple[Callable[[], Any], tuple[int, ...], int]] = {
    "mlp relu": (lambda: mlp(nn.ReLU()), ROW, 2),
    "mlp tanh": (lambda: mlp(nn.Tanh()), ROW, 2),
    "mlp softplus": (lambda: mlp(nn.Softplus()), ROW, 2),
    "mlp celu": (lambda: mlp(nn.CELU(0.5)), ROW, 2),
    "vgg flatten": (lambda: vgg(lambda x: x.flatten(1), 16 * 16), IMAGE, 3),
    "vgg view": (lambda: vgg(lambda x: x.view(x.size(0), -1), 16 * 16), IMAGE, 3),
    "vgg view literal": (lambda: vgg(lambda x: x.view(-1, 16 * 16), 16 * 16), IMAGE, 3),
    "vgg view both": (lambda: vgg(lambda x: x.view(x.size(0), 16 * 16), 16 * 16), IMAGE, 3),
    "vgg mean": (lambda: vgg(lambda x: x.mean((2, 3)), 16), IMAGE, 3),
    "vgg max": (lambda: vgg(lambda x: x.amax((2, 3)), 16), IMAGE, 3),
    "vgg nhwc": (lambda: vgg(lambda x: x.permute(0, 2, 3, 1).flatten(1), 16 * 16), IMAGE, 3),
    "norm behind": (norm_behind, IMAGE, 2),
    "conv1d": (conv1d, SIGNAL, 2),
    "sequence gelu": (lambda: sequence(nn.GELU()), TOKENS, 2),
    "sequence gelu tanh": (lambda: sequence(nn.GELU("tanh")), TOKENS, 2),
    "sequence silu": (lambda: sequence(nn.SiLU()), TOKENS, 2),
    "sequence relu": (lambda: sequence(nn.ReLU()), TOKENS, 2),
    "sequence hardsigmoid": (lambda: sequence(nn.Hardsigmoid()), TOKENS, 2),
}
"""What to build, the shape of one sample, how many layers are to be narrowed."""


def exported(folder: Path, name: str, dynamo: bool, **options: Any) -> tuple[onnx.ModelProto, Array]:
    """The model as written, and samples for it."""
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    network.eval()
    path = folder / "model.onnx"
    example = torch.randn(2, *shape)
    if dynamo:
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(network, (example,), path, input_names=["x"], dynamo=True, dynamic_shapes=dynamic,
                          verbose=False, **options)  # fmt: skip
    else:
        torch.onnx.export(network, (example,), path, input_names=["x"], dynamo=False, dynamic_axes={"x": {0: "batch"}},
                          **options)  # fmt: skip
    model = onnx.load(path)
    x = torch.randn(300, *shape)
    with torch.no_grad():
        np.testing.assert_allclose(run(model, x.numpy()), network(x).numpy(), rtol=1e-3, atol=1e-4)
    return model, np.asarray(x.numpy())


def check(model: onnx.ModelProto, x: Array, layers: int) -> None:
    """Half as wide, still valid, cheaper, and still much the same function."""
    result = shrink(model, x, width=0.5, refine=0)
    assert [group.of // 2 for group in result.plan.groups.values()] == [g.width for g in result.plan.groups.values()]
    assert len(result.plan.groups) == layers
    Graph.load(result.model).check(full=True)
    assert [(i.name, i.type) for i in result.model.graph.input] == [(i.name, i.type) for i in model.graph.input]
    assert [(o.name, o.type) for o in result.model.graph.output] == [(o.name, o.type) for o in model.graph.output]
    assert result.report.after.macs < 0.6 * result.report.before.macs
    assert result.report.after.parameters < 0.6 * result.report.before.parameters
    before, after = run(model, x), run(result.model, x)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_both_exporters_are_shrunk(tmp_path: Path, name: str, exporter: str) -> None:
    model, x = exported(tmp_path, name, EXPORTERS[exporter])
    reasons = [layer.reason for layer in inspect(model, x).layers]
    assert reasons.count(None) == NETWORKS[name][2] and "it feeds the model's output" in (reasons[-1] or "")
    check(model, x, NETWORKS[name][2])


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("name", ["vgg view", "vgg mean", "norm behind", "sequence gelu", "conv1d"])
def test_older_opsets_of_the_first_exporter(tmp_path: Path, name: str, opset: int) -> None:
    model, x = exported(tmp_path, name, False, opset_version=opset)
    check(model, x, NETWORKS[name][2])


@pytest.mark.parametrize("name", ["vgg view", "norm behind", "sequence gelu"])
def test_exports_whose_constants_were_not_folded(tmp_path: Path, name: str) -> None:
    model, x = exported(tmp_path, name, False, do_constant_folding=False)
    assert {"Transpose", "Identity", "BatchNormalization"} & {node.op_type for node in model.graph.node}
    check(model, x, NETWORKS[name][2])


@pytest.mark.parametrize("name", ["conv1d", "norm behind", "sequence gelu"])
def test_exports_that_were_not_optimised(tmp_path: Path, name: str) -> None:
    model, x = exported(tmp_path, name, True, optimize=False)
    check(model, x, NETWORKS[name][2])
