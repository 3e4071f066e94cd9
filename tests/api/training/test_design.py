"""The low-effort design: what it measures, what it proposes, and that the net it writes is that net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from builders.chains import node, random
from builders.joins import branches
from builders.models import MODELS, Array, build
from builders.topologies import inverted_residual, residual
from papers.pca_design.table2 import GROUPED, TABLE, Conv, M, Net, alexnet, mobilenet, network, ratios, vgg
from pcns_onnx import DesignResult, InputError, UnsupportedError, design, inspect, ungrouped
from pcns_onnx.architecture.blueprint import Blueprint
from pcns_onnx.architecture.chain import Chain
from pcns_onnx.architecture.depth import RULES, first_contraction, monotone
from pcns_onnx.architecture.fresh import initialise
from pcns_onnx.architecture.spectra import Spectrum
from pcns_onnx.cli import main as cli
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine

CNN, IMAGES = MODELS / "digits_cnn.onnx", MODELS / "digits_images.npz"
RANKS = (4, 8, 8, 6, 11)
WIDTHS = (12, 12, 12, 12, 12)


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def layers(model: onnx.ModelProto, op: str = "Conv") -> list[Array]:
    """The weights of all nodes of a kind, in order."""
    stored = weights(model)
    return [stored[item.input[1]] for item in model.graph.node if item.op_type == op]


def ran(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    """All outputs in onnxruntime."""
    outputs = Engine().session(Program(model.SerializeToString())).run({"input": x})
    return {name: np.asarray(value) for name, value in outputs.items()}


def images(count: int, *shape: int) -> Array:
    return np.random.default_rng(3).standard_normal((count, *shape)).astype(np.float32)


def planted(ranks: Sequence[int] = RANKS, net: Net | None = None) -> onnx.ModelProto:
    """A chain with a batch norm behind every Conv, whose weights are matrices of these ranks."""
    net = net or vgg([WIDTHS[0], WIDTHS[1], M, *WIDTHS[2:]], 5, size=8)
    graph = Graph.load(network(net))
    initialise(graph, 0)
    rng = np.random.default_rng(1)
    convs = [item for item in graph.nodes if item.op == "Conv"]
    for conv, rank in zip(convs, ranks, strict=True):
        old = graph.constant(conv.inputs[1])
        assert old is not None
        width, inputs = old.shape[0], old[0].size
        left, right = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in (width, inputs))
        graph.set_input(conv.key, 1, (left @ right.T).reshape(old.shape))
    return graph.proto


def of_planted(ranks: Sequence[int] = RANKS, **choices: Any) -> DesignResult:
    return design(planted(ranks), images(40, 3, 8, 8), variance=1 - 1e-8, **choices)


# -- significant dimensions ----------------------------------------------------------------------


def test_data_of_known_rank_has_that_many_significant_dimensions() -> None:
    assert [layer.significant for layer in of_planted().blueprint.layers] == list(RANKS)


def test_the_count_reaches_the_share_and_one_less_does_not() -> None:
    spectrum = Spectrum(np.array([6.0, 3.0, 0.9, 0.1]), np.eye(4), 400)
    # Algorithm 1 would count those below the threshold: 0, 1, 2, 3.
    assert [spectrum.dimensions(share) for share in (0.5, 0.8, 0.97, 0.999)] == [1, 2, 3, 4]
    assert spectrum.dimensions(0.9) == 2, "two components hold exactly 0.9"


def test_sensitivity_runs_from_one_direction_to_all_alike() -> None:
    flat, sharp, between = (Spectrum(np.array(v), np.eye(4), 9) for v in ([2.0] * 4, [1.0, 0, 0, 0], [4.0, 2, 1, 1]))
    assert flat.sensitivity == pytest.approx(1) and sharp.sensitivity == pytest.approx(0)
    assert 0 < between.sensitivity < 1


def with_first_scale(model: onnx.ModelProto, scale: Array) -> onnx.ModelProto:
    """The model with this scale in its first batch norm."""
    norm = next(item for item in model.graph.node if item.op_type == "BatchNormalization")
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == norm.input[1])
    stored.CopyFrom(numpy_helper.from_array(scale.astype(np.float32), stored.name))
    return model


def test_what_is_looked_at_comes_behind_the_norm_and_before_the_activation() -> None:
    model = with_first_scale(planted(), np.eye(1, WIDTHS[0], 3)[0])
    found = design(model, images(40, 3, 8, 8), variance=0.999).blueprint.layers[0]
    assert found.significant == 1, "the norm lets one filter through"


def test_eigenfilters_give_the_components_that_they_are_named_after() -> None:
    model, x = with_first_scale(planted(), np.linspace(0.2, 3.0, WIDTHS[0])), images(60, 3, 8, 8)
    result = design(model, x, variance=0.999, samples=60)
    kernel = result.eigenfilters.astype(np.float32)
    assert kernel.shape == layers(model)[0].shape
    alone = build([node("Conv", "x W", "y", pads=[1] * 4)], {"W": kernel}, ("N", 3, 8, 8))
    y = np.asarray(next(iter(Engine().session(Program(alone.SerializeToString())).run({"x": x}).values())))
    rows = y.transpose(0, 2, 3, 1).reshape(-1, WIDTHS[0]).astype(np.float64)
    covariance = np.cov(rows.T, bias=True)
    share = np.cumsum(np.diag(covariance)) / np.trace(covariance)
    np.testing.assert_allclose(share, result.blueprint.layers[0].explained, atol=1e-5)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-5 * np.trace(covariance)


def test_samples_are_as_many_as_the_widest_layer_needs_and_a_shortfall_is_said() -> None:
    enough = design(planted(), images(200, 3, 8, 8)).blueprint
    assert enough.samples == 75, "100 rows for each of 12 filters, of 4 x 4 positions"
    assert not enough.warnings and min(layer.rows_per_filter for layer in enough.layers) == 100
    few = design(planted(), images(20, 3, 8, 8)).blueprint
    assert few.samples == 20 and "75 samples would do" in few.warnings[0]
    assert design(planted(), images(200, 3, 8, 8), samples=150).blueprint.samples == 150


# -- depth ---------------------------------------------------------------------------------------

VGG16 = [11, 42, 103, 118, 238, 249, 249, 424, 271, 160, 36, 38, 42]


@pytest.mark.parametrize(
    ("rule", "dimensions", "left"),
    [
        (monotone, RANKS, [4, 8, 11]),
        (first_contraction, RANKS, [4, 8]),
        (monotone, VGG16, [11, 42, 103, 118, 238, 249, 424]),
        (first_contraction, VGG16, [11, 42, 103, 118, 238, 249]),
        (monotone, [10, 24, 21, 46, 40, 103, 79, 104, 85, 219, 167, 199, 109, 235, 99, 89, 10, 10, 2, 4, 4, 24, 16],
         [10, 24, 46, 103, 104, 219, 235]),
        (monotone, [5], [5]),
        (first_contraction, [5, 4], [5]),
    ],
)  # fmt: skip
def test_layers_that_do_not_expand_go(rule: Any, dimensions: Sequence[int], left: Sequence[int]) -> None:
    assert [s for s, stays in zip(dimensions, rule(dimensions), strict=True) if stays] == left


@pytest.mark.parametrize(
    ("depth", "final"),
    [
        ("monotone", [4, 8, "M", 11]),
        ("first-contraction", [4, 8, "M"]),
        ("none", [4, 8, "M", 8, 6, 11]),
    ],
)
def test_the_net_has_the_widths_and_the_depth_of_its_configuration(depth: str, final: list[int | str]) -> None:
    result = of_planted(depth=depth)
    blueprint, x = result.blueprint, images(3, 3, 8, 8)
    assert blueprint.initial.configuration == [12, 12, "M", 12, 12, 12]
    assert blueprint.significant.configuration == [4, 8, "M", 8, 6, 11]
    assert blueprint.final.configuration == final
    widths = [item for item in final if isinstance(item, int)]
    assert [w.shape for w in layers(result.model)] == [(b, a, 3, 3) for a, b in zip([3, *widths], widths, strict=False)]
    assert [w.shape for w in layers(result.model, "Gemm")] == [(5, widths[-1] * 16)]
    assert [item.op_type for item in result.model.graph.node].count("MaxPool") == 1
    assert [item.op_type for item in result.model.graph.node].count("BatchNormalization") == len(widths)
    onnx.checker.check_model(result.model, full_check=True)
    before, after = ran(planted(), x), ran(result.model, x)
    assert {name: y.shape for name, y in before.items()} == {name: y.shape for name, y in after.items()}
    assert np.isfinite(next(iter(after.values()))).all()
    counted = inspect(result.model)
    assert (counted.macs, counted.parameters) == (blueprint.final.macs, blueprint.final.parameters)
    assert blueprint.initial.macs / blueprint.final.macs == pytest.approx(blueprint.final.ops)


def test_a_dropped_layers_strides_go_to_the_one_in_front() -> None:
    net = Net((Conv(12), Conv(12, 3, 2), Conv(12), Conv(12, 3, 2)), (5,), size=16)
    model = planted((8, 4, 11, 6), net)
    made = design(model, images(30, 3, 16, 16), variance=1 - 1e-8)
    assert made.blueprint.final.configuration == [8, 11]
    strides = [helper.get_node_attr_value(n, "strides") for n in made.model.graph.node if n.op_type == "Conv"]
    assert strides == [[2, 2], [2, 2]]
    assert layers(made.model, "Gemm")[0].shape == (5, 11 * 16)
    assert inspect(made.model).macs == made.blueprint.final.macs


def test_average_pools_stored_lengths_and_other_activations_stay_whole() -> None:
    nodes = [
        node("Conv", "x W0", "a", pads=[1] * 4), node("Sigmoid", "a", "s"), node("Mul", "a s", "b"),
        node("Conv", "b W1", "c", pads=[1] * 4), node("PRelu", "c slope", "d"),
        node("AveragePool", "d", "e", kernel_shape=[2, 2], strides=[2, 2]), node("Dropout", "e", "f"),
        node("Reshape", "f rows", "g"), node("MatMul", "g W2", "h"), node("Tanh", "h", "i"),
        node("MatMul", "i W3", "j"), node("Add", "b3 j", "y"),
    ]  # fmt: skip
    low = np.linalg.qr(random(9, 4).astype(np.float64))[0] @ random(4, 54)
    model = build(
        nodes,
        {
            "W0": random(6, 3, 3, 3), "W1": low.reshape(9, 6, 3, 3).astype(np.float32), "slope": random(9, 1, 1),
            "rows": np.array([-1, 9 * 9], dtype=np.int64), "W2": random(81, 7), "W3": random(7, 3), "b3": random(3),
        },
        ("N", 3, 6, 6),
    )  # fmt: skip
    x = images(50, 3, 6, 6)
    made = design(model, {"x": x}, variance=1 - 1e-8)
    assert made.blueprint.final.configuration == [6, "A", 7], "the second Conv has rank 4"
    assert made.blueprint.significant.configuration == [6, 4, "A", 7]
    assert {n.op_type for n in made.model.graph.node} >= {"Sigmoid", "Mul", "AveragePool", "Reshape", "Tanh", "Add"}
    assert "PRelu" not in {n.op_type for n in made.model.graph.node}
    (y,) = Engine().session(Program(made.model.SerializeToString())).run({"x": x[:4]}).values()
    assert np.asarray(y).shape == (4, 3)
    counted = inspect(made.model)
    assert (counted.macs, counted.parameters) == (made.blueprint.final.macs, made.blueprint.final.parameters)


def test_an_output_that_would_change_its_size_is_refused() -> None:
    nodes = [node("Conv", "x W0", "a"), node("Relu", "a", "b"), node("Conv", "b W1", "c"), node("Relu", "c", "d"),
             node("Conv", "d W2", "y")]  # fmt: skip
    stored = {"W0": random(6, 3, 3, 3), "W1": np.repeat(random(1, 6, 3, 3), 4, 0), "W2": random(2, 4, 1, 1)}
    model = build(nodes, stored, ("N", 3, 9, 9))
    with pytest.raises(UnsupportedError, match="--no-depth"):
        design(model, {"x": images(40, 3, 9, 9)})
    assert design(model, {"x": images(40, 3, 9, 9)}, depth="none").blueprint.final.configuration[1] == 1


# -- weights -------------------------------------------------------------------------------------


def test_fresh_weights_are_normal_as_he_has_them_and_norms_are_neutral() -> None:
    graph = Graph.load(network(vgg([64, 128, M, 96], 10, size=8)))
    initialise(graph, 5)
    for weight in layers(graph.proto) + layers(graph.proto, "Gemm"):
        assert weight.std() == pytest.approx(np.sqrt(2 / weight[0].size), rel=0.05)
        assert abs(weight.mean()) < 4 * weight.std() / np.sqrt(weight.size)
    stored = weights(graph.proto)
    norm = next(item for item in graph.nodes if item.op == "BatchNormalization")
    assert [set(stored[name].tolist()) for name in norm.inputs[1:]] == [{1.0}, {0.0}, {0.0}, {1.0}]


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_weights(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> tuple[bytes, bytes]:
        paths = tmp_path / f"{name}.onnx", tmp_path / f"{name}.json"
        design(CNN, IMAGES, paths[0], config=paths[1], samples=200, seed=seed)
        return paths[0].read_bytes(), paths[1].read_bytes()

    first, again, other = written("a", 1), written("b", 1), written("c", 2)
    assert first == again
    assert first[0] != other[0]


def test_half_precision_stays(tmp_path: Path) -> None:
    model = planted()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    made = design(model, images(40, 3, 8, 8), variance=0.9999)
    assert {w.dtype for w in layers(made.model)} == {np.dtype(np.float16)}
    onnx.checker.check_model(made.model, full_check=True)


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", ["none", "monotone", "first-contraction"])
@pytest.mark.parametrize("budget", ["macs=0.3", "params=0.5"])
def test_a_budget_is_met_by_the_largest_share_that_does(budget: str, depth: str) -> None:
    found = design(CNN, IMAGES, budget=budget, depth=depth, samples=200).blueprint
    resource, fraction = budget.split("=")
    left = 1 / (found.final.ops if resource == "macs" else found.final.params)
    assert left <= float(fraction) and found.variance < 0.999
    again = design(CNN, IMAGES, variance=found.variance, depth=depth, samples=200).blueprint
    assert again.final == found.final, "the share that was found gives the same net"
    points = sorted({s for layer in found.layers for s in layer.explained if found.variance + 1e-8 < s <= 0.999})
    more = design(CNN, IMAGES, variance=points[0], depth=depth, samples=200).blueprint.final
    assert 1 / (more.ops if resource == "macs" else more.params) > float(fraction)


def test_a_budget_that_is_met_anyway_leaves_the_share_where_it_was() -> None:
    assert design(CNN, IMAGES, budget="macs=1", samples=200).blueprint.variance == 0.999


# -- Table 2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "row"),
    [(net, row) for net, rows in TABLE for row in rows],
    ids=lambda item: getattr(item, "dataset", "") + getattr(item, "name", ""),
)
def test_table_2_has_the_ratios_of_its_widths(original: Net, row: Any) -> None:
    ops, params = ratios(original, row.net)
    assert ops == pytest.approx(row.stated[0], abs=0.1), "rounded or cut off after one digit"
    if row.dataset == "CIFAR-100, VGG-19_BN" and row.name == "final":
        assert params == pytest.approx(9.4, abs=0.1), "the table says 9.1"
    else:
        assert params == pytest.approx(row.stated[1], abs=0.1)


def test_ungrouping_mobilenet_costs_what_the_text_says() -> None:
    ungrouped_net = next(net for net, rows in TABLE if "w/o" in rows[0].dataset)
    ops, params = ratios(ungrouped_net, GROUPED)
    assert ops == pytest.approx(8.5, abs=0.1)
    assert params == pytest.approx(8.7, abs=0.1)


@pytest.mark.parametrize(
    "net",
    [
        vgg([6, 8, M, 10, M], 7, 5, size=16),
        alexnet([6, 8, 10, 6, 4]),
        mobilenet(4, [Conv(4, 3, 2, depthwise=True), Conv(6, 1), Conv(8, 3, 2)]),
    ],
    ids=["vgg", "alexnet", "mobilenet"],
)
def test_the_arithmetic_counts_what_the_model_has(net: Net) -> None:
    found = inspect(network(net))
    statistics = sum(2 * s.width for s in net.stages if isinstance(s, Conv)) * net.norms
    assert (found.macs, found.parameters - statistics) == net.cost


# -- what it is not for --------------------------------------------------------------------------


def single() -> onnx.ModelProto:
    return build([node("Gemm", "x W", "y")], {"W": random(5, 3)}, ("N", 5))


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (residual(), (30, 3, 8, 8), "shortcut"),
        (branches(8, 6, 10), (30, 3, 6, 6), "shortcut"),
        (network(mobilenet(8, [Conv(8, depthwise=True), Conv(8, 1)])), (30, 3, 32, 32), "--ungroup"),
        (single(), (30, 5), "fewer than two layers"),
    ],
)
def test_nets_that_are_no_chains_are_refused(
    model: onnx.ModelProto, shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    data = {model.graph.input[0].name: images(shape[0], *(s or t for s, t in zip(sizes, shape[1:], strict=True)))}
    with pytest.raises(UnsupportedError, match=said) as error:
        design(model, data, tmp_path / "new.onnx", config=tmp_path / "cfg.json")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"depth": "deep"}, "monotone or first-contraction"),
        ({"variance": 0.9, "budget": "macs=0.5"}, "give one of them"),
        ({"variance": 1.5}, "fraction"),
        ({"budget": "watts=1"}, "not understood"),
        ({"budget": "macs=0.0001", "samples": 100}, "out of reach"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        design(CNN, IMAGES, **choices)


@pytest.mark.parametrize(
    "model", [network(mobilenet(8, [Conv(8, 3, 2, depthwise=True), Conv(6, 1)])), inverted_residual()]
)
def test_ungrouped_convs_read_all_channels(model: onnx.ModelProto, tmp_path: Path) -> None:
    made, names = ungrouped(model, tmp_path / "new.onnx", seed=3)
    assert names and not any(
        a.i > 1 for item in made.graph.node for a in item.attribute if item.op_type == "Conv" and a.name == "group"
    )
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)
    assert [i.name for i in made.graph.input] == [i.name for i in model.graph.input]
    assert (inspect(made).macs or 0) > (inspect(model).macs or 0) > 0
    x = images(2, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    (y,) = Engine().session(Program(made.SerializeToString())).run({model.graph.input[0].name: x}).values()
    assert np.asarray(y).std() > 0


def test_a_net_without_groups_needs_no_ungrouping() -> None:
    with pytest.raises(InputError, match="no grouped Conv"):
        ungrouped(planted())


def test_a_trained_ungrouped_net_can_be_designed_from() -> None:
    model, _ = ungrouped(network(mobilenet(8, [Conv(8, depthwise=True), Conv(6, 1), Conv(6, depthwise=True)])))
    assert design(model, images(20, 3, 32, 32)).blueprint.initial.configuration == [8, 8, 6, 6, "A"]


# -- a whole chain and the command line ----------------------------------------------------------


def test_costs_of_any_draft_are_those_of_the_net_that_is_made() -> None:
    chain = Chain.of(Graph.load(planted()))
    names = [layer.name for layer in chain.hidden]
    for widths in ({names[0]: 5, names[1]: 7, names[2]: 1, names[3]: 12, names[4]: 3}, {n: 12 for n in names}):
        counted = inspect(chain.fresh_net(widths, 0).proto)
        assert chain.costs(widths) == (counted.macs, counted.parameters)


def test_the_command_line_writes_the_net_and_its_configuration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new, config = tmp_path / "new.onnx", tmp_path / "cfg.json"
    argv = ["design", CNN, "--data", IMAGES, "--samples", 200, "--no-depth", "-o", new, "--config", config]
    assert cli.main([str(part) for part in argv]) == 0
    out = capfd.readouterr().out
    found = msgspec.json.decode(config.read_bytes(), type=Blueprint)
    assert str(found.final.configuration[0]) in out and "#params" in out
    assert [w.shape[0] for w in layers(onnx.load(new))] == [layer.significant for layer in found.layers]
    assert sorted(found.prunable) == sorted(layer.name for layer in found.layers)
    assert all(len(layer.explained) == layer.filters for layer in found.layers)
    assert [layer.dimensions(0.999) for layer in found.layers] == [layer.significant for layer in found.layers]
    wider, narrower = (design(CNN, IMAGES, variance=v, samples=200).blueprint.layers for v in (0.9999, 0.9))
    for layer, most, least in zip(found.layers, wider, narrower, strict=True):
        assert (layer.dimensions(0.9999), layer.dimensions(0.9)) == (most.significant, least.significant)


def test_the_depth_rules_in_help_are_those_that_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["design", "--help"]) == 0
    assert f"--depth {'|'.join(name for name in RULES if name != 'none')}" in capfd.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["design", CNN, "-o", "new.onnx"],
        ["design", CNN, "--ungroup", "-o", "new.onnx"],
        ["design", CNN, "--ungroup", "--variance", "0.9", "-o", "new.onnx"],
        ["design", CNN, "--data", IMAGES, "--depth", "x", "-o", "new.onnx"],
    ],
)
def test_the_command_line_refuses_in_one_line(
    argv: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(part) for part in argv]) == 2
    assert capfd.readouterr().err.count("\n") == 1 and not list(tmp_path.iterdir())
