"""What is not known is said to be unknown: in tables, in sums and in ratios, never 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.chains import node, random
from pcns_onnx import diff, inspect, shrink
from pcns_onnx.cli.main import main
from pcns_onnx.cost.model import ModelSize
from pcns_onnx.report.html.headline import answers, verdict


def model(channels: int = 8, *, dense: bool = True) -> onnx.ModelProto:
    """Two Convs on images of open sizes; beside them a Gemm whose size is known."""
    nodes = [
        node("Conv", "x W0", "h", name="first"),
        node("Relu", "h", "r"),
        node("Conv", "r W1", "g", name="second"),
        node("GlobalAveragePool", "g", "p"),
        node("Flatten", "p", "f"),
    ]
    nodes.append(node("Gemm", "f W2", "y", name="last") if dense else node("Identity", "f", "y"))
    weights = {"W0": random(channels, 3, 3, 3), "W1": random(6, channels, 3, 3), "W2": random(6, 4)}
    graph = helper.make_graph(
        nodes,
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if dense or name != "W2"],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_layer_of_open_size_has_no_cost_in_the_record() -> None:
    found = inspect(model())
    assert [layer.macs for layer in found.layers] == [None, None, 24]
    assert (found.macs, found.unknown_macs) == (24, 2)
    nothing = inspect(model(dense=False))
    assert (nothing.macs, nothing.shrinkable_macs, nothing.unknown_macs) == (None, None, 2)


def test_with_sizes_all_is_known() -> None:
    found = inspect(model(), shape="x=1x3x10x10")
    assert [layer.macs for layer in found.layers] == [8 * 27 * 64, 6 * 72 * 36, 24]
    assert (found.macs, found.unknown_macs) == (8 * 27 * 64 + 6 * 72 * 36 + 24, 0)


@pytest.mark.parametrize(
    "dense, line",
    [
        (True, "at least 24 MACs per sample, 672 parameters; 100 % of the known MACs are in layers that can shrink"),
        (
            False,
            "unknown MACs per sample, 648 parameters; how many of the MACs are in layers that can shrink is unknown",
        ),
    ],
)
def test_inspect_says_what_it_does_not_know(
    dense: bool, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(model(dense=dense), tmp_path / "open.onnx")
    assert main(["inspect", str(tmp_path / "open.onnx")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert line in printed
    assert printed.count("unknown") >= 2
    assert " 0 " not in printed


def test_diff_says_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, channels in (("a", 8), ("b", 4)):
        onnx.save(model(channels), tmp_path / f"{name}.onnx")
    difference = diff(str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"))
    assert [change.before.macs for change in difference.layers if change.before] == [None, None, 24]
    assert main(["diff", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]) == 0
    assert "MACs: at least 24 -> at least 24 (1.000 of the known)" in capsys.readouterr().out


def test_sums_and_ratios_in_words() -> None:
    assert ModelSize(1200, 1, 1).macs_text == "1,200"
    assert ModelSize(1200, 1, 1, 2).macs_text == "at least 1,200"
    assert ModelSize(0, 1, 1, 2).macs_text == "unknown"
    assert ModelSize(1200, 1, 1).macs_ratio(ModelSize(600, 1, 1)) == "0.500"
    assert ModelSize(1200, 1, 1, 1).macs_ratio(ModelSize(600, 1, 1, 1)) == "0.500 of the known"
    assert ModelSize(0, 1, 1, 1).macs_ratio(ModelSize(0, 1, 1, 1)) == "unknown"


def test_samples_make_open_sizes_known() -> None:
    x = np.random.default_rng(0).standard_normal((60, 3, 10, 10)).astype(np.float32)
    report = shrink(model(), x, width=0.5, multiple=1, refine=0).report
    assert (report.before.macs, report.before.unknown) == (8 * 27 * 64 + 6 * 72 * 36 + 24, 0)
    assert "multiply-adds" in verdict(report) and "known multiply-adds" not in verdict(report)
    assert answers(report)[0][2].startswith(f"{report.before.macs:,} ")
