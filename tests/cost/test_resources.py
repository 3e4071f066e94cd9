"""What a budget may limit: every row of the table is counted, parsed and kept on the file that is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.models import MODELS, build
from pcns_onnx import InputError, shrink
from pcns_onnx.cost.resources import COUNTED, QUALITIES, RESOURCES, TIMED
from pcns_onnx.planning.budget import Budget

DATA = MODELS / "digits_rows.npz"


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its weights in float16, cast where they are used."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return result


def matmuls(width: int = 96) -> onnx.ModelProto:
    """Three MatMuls without a bias."""
    generator = np.random.default_rng(0)
    weights = {
        f"w{i}": generator.standard_normal(shape).astype(np.float32)
        for i, shape in enumerate(((16, width), (width, width), (width, 8)))
    }
    nodes = []
    name = "x"
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [f"h{i}"]))
        name = f"h{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{i}"]))
            name = f"r{i}"
    nodes[-1].output[0] = "y"
    return build(nodes, weights, ["n", 16])


def test_costs_and_qualities_are_told_apart_by_their_rows() -> None:
    assert (*COUNTED, *TIMED) == tuple(RESOURCES)
    for name, row in (*RESOURCES.items(), *QUALITIES.items()):
        example = Budget.parse(row.example.split()[0])
        assert example.resource == name and example.is_cost is (name in RESOURCES)


@pytest.mark.parametrize("limit", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("model", ["digits_cnn", "digits_mlp_tanh"])
def test_the_written_file_is_no_larger_than_the_budget(model: str, limit: float, tmp_path: Path) -> None:
    source, out = MODELS / f"{model}.onnx", tmp_path / "small.onnx"
    data = MODELS / ("digits_images.npz" if model == "digits_cnn" else "digits_rows.npz")
    report = shrink(source, data, out, budget=f"size={limit}", refine=0, samples=200).report
    assert out.stat().st_size <= limit * source.stat().st_size
    assert report.after.bytes == out.stat().st_size
    assert out.stat().st_size > (limit - 0.25) * source.stat().st_size  # and no smaller than it need be


def test_half_precision_counts_two_bytes_a_value(tmp_path: Path) -> None:
    model, out = halved(matmuls()), tmp_path / "small.onnx"
    x = np.random.default_rng(1).standard_normal((200, 16)).astype(np.float16)
    shrink(model, {"x": x}, out, budget="size=0.7", refine=0)
    assert out.stat().st_size <= 0.7 * len(model.SerializeToString())


def test_biases_that_the_solve_adds_count(tmp_path: Path) -> None:
    model, out = matmuls(), tmp_path / "small.onnx"
    x = np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32)
    shrink(model, {"x": x}, out, budget="size=0.5", refine=0)
    assert out.stat().st_size <= 0.5 * len(model.SerializeToString())


def test_a_size_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^budget size=0\.0001 is out of reach"):
        shrink(MODELS / "digits_mlp_tanh.onnx", DATA, tmp_path / "o.onnx", budget="size=0.0001", refine=0)
    assert not list(tmp_path.iterdir())


def normed() -> onnx.ModelProto:
    """Two Convs with norms that fold, and all weights in Constant nodes, as Paddle's exporter writes them."""
    generator, nodes, weights, name = np.random.default_rng(0), list[onnx.NodeProto](), dict[str, np.ndarray](), "x"
    for i, (wide, inside) in enumerate(((24, 3), (32, 24))):
        weights[f"w{i}"] = generator.standard_normal((wide, inside, 3, 3)).astype(np.float32)
        statistics = [f"{what}{i}" for what in ("scale", "shift", "mean", "variance")]
        weights |= {key: generator.uniform(0.5, 1.5, wide).astype(np.float32) for key in statistics}
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *statistics], [f"b{i}"]))
        nodes.append(helper.make_node("Relu", [f"b{i}"], [f"r{i}"]))
        name = f"r{i}"
    weights["head"] = generator.standard_normal((32, 5)).astype(np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"]))
    constants = [
        helper.make_node("Constant", [], [key], value=numpy_helper.from_array(value, key))
        for key, value in weights.items()
    ]
    return build([*constants, *nodes], {}, ["n", 3, 6, 6])


@pytest.mark.parametrize("resource", ["params", "size"])
def test_what_folding_leaves_without_a_reader_is_not_counted(resource: str) -> None:
    model = normed()
    x = np.random.default_rng(1).standard_normal((100, 3, 6, 6)).astype(np.float32)
    report = shrink(model, x, budget=f"{resource}=0.8", refine=0, multiple=1).report
    before, after = (
        (side.parameters if resource == "params" else side.bytes) for side in (report.before, report.after)
    )
    assert 0.7 * before < after <= 0.8 * before
