"""The shrunk model in int8 and float16: what is written, that it computes the same, and what is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from builders.models import MODELS, Array, build
from pcns_onnx import GateError, InputError, UnsupportedError, shrink
from pcns_onnx.cli.main import main
from pcns_onnx.data.dataset import open_data
from pcns_onnx.evaluation.precisions import precision_path
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.samples import Samples


def data(name: str, part: str = "") -> tuple[Array, Array]:
    kind = "images" if name.endswith("cnn") else "rows"
    with np.load(MODELS / f"digits_{kind}{part}.npz") as file:
        return file["input"], file["labels"]


def samples(x: Array) -> Samples:
    return Samples(open_data(x, Graph.load(MODELS / "digits_mlp_leaky.onnx").inputs), 32)


def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def accuracy(path: Path, name: str) -> float:
    x, labels = data(name, "_test")
    logits = session(path.read_bytes()).run(None, {"input": x})[0]
    return 100 * float(np.mean(np.asarray(logits).argmax(1) == labels))


@pytest.fixture(scope="module", params=["digits_cnn", "digits_mlp_leaky"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, object]:
    out = tmp_path_factory.mktemp("made") / "small.onnx"
    name = request.param
    result = shrink(
        MODELS / f"{name}.onnx", data(name)[0], out, width=0.75, refine=0, int8=True, fp16=True, threads=1,
        eval=dict(zip(("input", "labels"), data(name, "_test"), strict=True)),
    )  # fmt: skip
    return name, out, result.report


def test_both_are_written_beside_and_reported_beside(made: tuple[str, Path, object]) -> None:
    name, out, report = made
    assert sorted(path.name for path in out.parent.iterdir()) == ["small.fp16.onnx", "small.int8.onnx", "small.onnx"]
    int8, fp16 = report.precisions  # type: ignore[attr-defined]
    for precision, limit in ((int8, 0.5), (fp16, 0.65)):
        path = precision_path(out, precision.kind)
        assert path is not None
        onnx.checker.check_model(onnx.load(path), full_check=True)
        assert abs(path.stat().st_size - precision.bytes) < 64
        assert path.stat().st_size < limit * out.stat().st_size
        assert accuracy(path, name) == pytest.approx(precision.agreement.score_b)
        assert accuracy(path, name) > accuracy(out, name) - 1.5


def test_onnxruntime_quantises_without_a_warning(made: tuple[str, Path, object]) -> None:
    assert not [text for text in made[2].warnings if text.startswith(("int8:", "fp16:"))]  # type: ignore[attr-defined]


def test_inputs_outputs_and_metadata_stay(made: tuple[str, Path, object]) -> None:
    _, out, _ = made
    shrunk = Graph.load(out)
    for kind in ("int8", "fp16"):
        path = precision_path(out, kind)
        assert path is not None
        graph = Graph.load(path)
        assert (graph.inputs, graph.outputs) == (shrunk.inputs, shrunk.outputs)
        assert graph.metadata("pcns_onnx") == shrunk.metadata("pcns_onnx")
        assert graph.metadata("pcns_onnx.precision") == kind
        assert {entry.domain for entry in graph.proto.opset_import} <= {"", "ai.onnx"}


def test_every_layer_computes_in_integers(made: tuple[str, Path, object], tmp_path: Path) -> None:
    path = precision_path(made[1], "int8")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ops = {node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node}
    assert not ops & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"}


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    x = data("digits_mlp_leaky")[0][:256]
    for name in ("a", "b"):
        out = tmp_path / f"{name}.onnx"
        shrink(MODELS / "digits_mlp_leaky.onnx", x, out, width=0.5, refine=0, threads=1, int8=True)
    assert (tmp_path / "a.int8.onnx").read_bytes() == (tmp_path / "b.int8.onnx").read_bytes()


def test_convs_keep_the_channels_that_integer_kernels_like() -> None:
    x, model = data("digits_cnn")[0][:256], MODELS / "digits_cnn.onnx"
    least = [
        min(group.kept for group in shrink(model, x, width=0.25, refine=0, threads=1, int8=int8).report.groups)
        for int8 in (False, True)
    ]
    assert least[0] < 16 <= least[1]


def test_an_old_opset_is_converted(rng: np.random.Generator) -> None:
    weights = {"w": rng.standard_normal((8, 6)).astype(np.float32), "v": rng.standard_normal((6, 3)).astype(np.float32)}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    model = build(nodes, weights, ["N", 8], opset=9, ir_version=4)
    x = rng.standard_normal((64, 8)).astype(np.float32)
    result = shrink(model, x, width=0.8, multiple=1, refine=0, int8=True)
    lowered = result.lowered["int8"]
    assert Graph.load(lowered).opset >= 13
    want, got = (np.asarray(session(m.SerializeToString()).run(None, {"x": x})[0]) for m in (result.model, lowered))
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


def test_weights_that_are_listed_as_inputs_are_lowered_too(
    rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    """As models of before IR version 4 have them."""
    shapes = {"w": (32, 64), "v": (64, 3)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["r"]),
        onnx.helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    model = build(nodes, weights, ["N", 32], opset=9, ir_version=4)
    listed = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, w.shape) for n, w in weights.items()]
    model.graph.input.extend(listed)
    model.ir_version = 3
    x = rng.standard_normal((64, 32)).astype(np.float32)
    result = shrink(model, x, width=0.75, multiple=1, refine=0, int8=True, fp16=True)
    assert {value.name for value in result.model.graph.input} >= {"x", "w", "v"}
    want = np.asarray(session(result.model.SerializeToString()).run(None, {"x": x})[0])
    capfd.readouterr()
    for kind, types in (("int8", {onnx.TensorProto.INT8}), ("fp16", {onnx.TensorProto.FLOAT16})):
        lowered = result.lowered[kind]
        onnx.checker.check_model(lowered, full_check=True)
        assert [value.name for value in lowered.graph.input] == ["x"]
        assert {tensor.data_type for tensor in lowered.graph.initializer if len(tensor.dims) == 2} == types
        got = np.asarray(session(lowered.SerializeToString()).run(None, {"x": x})[0])
        assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
    assert "appears in graph inputs" not in capfd.readouterr().err


def test_a_gate_that_int8_fails_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    with pytest.raises(GateError, match="int8 max-error") as caught:
        shrink(
            MODELS / "digits_mlp_leaky.onnx", data("digits_mlp_leaky")[0][:256], out,
            width=0.9, refine=0, int8=True, max_error=1e-4,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
    assert {gate.name for gate in caught.value.report.gates} == {"max-error", "int8 max-error"}  # type: ignore[attr-defined]


def test_what_cannot_be_lowered_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--int8 is calibrated"):
        shrink(MODELS / "digits_mlp_leaky.onnx", None, method="min-weight", width=0.5, int8=True)
    x = data("digits_mlp_leaky")[0]
    half, _ = in_precision("fp16", Graph.load(MODELS / "digits_mlp_leaky.onnx"), samples(x[:64]))
    with pytest.raises(UnsupportedError, match="float16"):
        shrink(half.proto, x, width=0.5, int8=True)
    (tmp_path / "small.int8.onnx").mkdir()
    with pytest.raises(InputError, match=r"small\.int8\.onnx"):
        shrink(MODELS / "digits_cnn.onnx", data("digits_cnn")[0], tmp_path / "small.onnx", width=0.5, int8=True)


def test_the_command_shows_three_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", input=data("digits_mlp_leaky")[0][:200], labels=data("digits_mlp_leaky")[1][:200])
    handlers = list(logging.getLogger().handlers)
    said = ["shrink", str(MODELS / "digits_mlp_leaky.onnx"), "--data", str(tmp_path / "data.npz"), "--width", "0.5"]
    assert main([*said, "--refine", "0", "--threads", "1", "--int8", "-o", str(tmp_path / "s.onnx")]) == 0
    shown = capsys.readouterr()
    assert "shrunk, int8" in shown.out and "s.onnx and its int8" in shown.out
    assert "WARNING" not in shown.err and logging.getLogger().handlers == handlers


# -- a precision that fails ----------------------------------------------------------------------


def unquantisable(rng: np.random.Generator) -> onnx.ModelProto:
    """A model of opset 10 that nothing newer computes: its Resize makes one axis larger, another one smaller."""
    half = rng.standard_normal((8, 3, 3, 3))
    weights = {"w": np.concatenate([half, half]), "v": rng.standard_normal((2, 16, 1, 1))}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Resize", ["b", "s"], ["c"], mode="nearest"),
        onnx.helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    floats = {name: value.astype(np.float32) for name, value in weights.items()}
    scales = {"s": np.array([1, 1, 0.7, 1.5], np.float32)}
    return build(nodes, floats | scales, ["N", 3, 8, 8], opset=10, ir_version=4)


def outlying(rng: np.random.Generator) -> tuple[onnx.ModelProto, Array]:
    """A model whose first input is 10,000 times as large as the others and hardly counts: int8 sees nothing else."""
    w = rng.standard_normal((8, 32))
    w[0] *= 1e-5
    half = {"w": np.concatenate([w[:, :16], w[:, :16]], axis=1), "v": rng.standard_normal((32, 4))}
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["a"]),
        onnx.helper.make_node("Tanh", ["a"], ["b"]),
        onnx.helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    x = rng.standard_normal((256, 8)).astype(np.float32)
    x[:, 0] *= 1e4
    return build(nodes, {name: value.astype(np.float32) for name, value in half.items()}, ["N", 8]), x


def test_what_fails_costs_that_precision_alone(rng: np.random.Generator, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    x = rng.standard_normal((48, 3, 8, 8)).astype(np.float32)
    result = shrink(
        unquantisable(rng), x, out, width=0.5, multiple=1, refine=0, threads=1, int8=True, fp16=True, max_error=0.1
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.fp16.onnx", "small.onnx"]
    assert list(result.lowered) == ["fp16"] and [p.kind for p in result.report.precisions] == ["fp16"]
    (failed,) = result.report.failed_precisions
    assert failed.kind == "int8" and "version converter" in failed.reason
    assert str(failed) in result.report.warnings
    assert {gate.name for gate in result.report.gates} == {"max-error", "fp16 max-error"}


def test_int8_that_is_another_model_is_not_written(rng: np.random.Generator, tmp_path: Path) -> None:
    model, x = outlying(rng)
    out = tmp_path / "small.onnx"
    choices: dict[str, object] = {"width": 0.5, "multiple": 1, "refine": 0, "threads": 1, "int8": True}
    result = shrink(model, x, out, **choices)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert "output 'y' differs from that in float32" in result.report.failed_precisions[0].reason
    result = shrink(model, x, out, **choices, max_error=1e3)  # type: ignore[arg-type]
    assert list(result.lowered) == ["int8"] and not result.report.failed_precisions  # the user's limit counts


@pytest.mark.parametrize("how", [[], ["--quiet"], ["--json"]], ids=str)
def test_the_command_says_which_failed_in_one_line_and_ends_with_5(
    how: list[str], rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(unquantisable(rng), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 3, 8, 8)).astype(np.float32))
    out, page = tmp_path / "small.onnx", tmp_path / "page.html"
    said = ["shrink", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "data.npz"), "--width", "0.5", "--int8"]
    said += ["--multiple", "1", "--refine", "0", "--threads", "1", "--html", str(page), "-o", str(out), *how]
    assert main(said) == 5
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if "int8" in line]
    assert len(lines) == 1 and lines[0].startswith("pcns-onnx: error: int8: not written: onnx's version converter")
    assert "small.onnx is written)" in lines[0] and "int8: not written" in page.read_text()
    assert out.exists() and not (tmp_path / "small.int8.onnx").exists()
    assert ('"failed_precisions"' in shown.out) == ("--json" in how)
    if not how:
        (tmp_path / "small.int8.onnx").write_bytes(b"older")
        assert main(said) == 5
        assert "small.int8.onnx is of an earlier run" in capsys.readouterr().err


def test_float16_alone_works_in_a_fresh_process(tmp_path: Path) -> None:
    """onnxruntime's tools import each other by names that are found or not by what was imported before."""
    np.savez(tmp_path / "data.npz", input=data("digits_mlp_leaky")[0][:100])
    for kinds in (["--fp16"], ["--fp16", "--int8"]):
        out = tmp_path / f"{''.join(kinds)}.onnx"
        said = ["shrink", str(MODELS / "digits_mlp_leaky.onnx"), "--data", str(tmp_path / "data.npz"), "--width", "0.5"]
        said += ["--refine", "0", "--threads", "1", *kinds, "-o", str(out)]
        done = subprocess.run([sys.executable, "-m", "pcns_onnx", *said], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        for kind in kinds:
            path = precision_path(out, kind.removeprefix("--"))
            assert path is not None and path.exists()
