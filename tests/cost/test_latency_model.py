"""What layers take at any width: the programs are the layers, the table is read back, the model fits what it must."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from builders.chains import LAYERS, gemm_trans_a, matmul_pair, random
from builders.layer_latency import layer_times
from builders.models import build, relative
from builders.topologies import depthwise, grouped, residual
from pcns_onnx.cost.benchmark import Latency, compare_many, unsteady
from pcns_onnx.cost.latency_model import LatencyModel, Rest, measure_layers, step_that_pays
from pcns_onnx.cost.latency_table import Table
from pcns_onnx.cost.layer_latency import BLOCK, LayerLatency, Sliced
from pcns_onnx.cost.profiler import Job, take_apart, take_turns
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import build_dependency_graph, kept_classes
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

ENGINE = Engine("cpu", 1)
MODELS = LAYERS | {
    "gemm transA": gemm_trans_a(),
    "matmul rows": matmul_pair((3,)),
    "grouped conv": grouped(2),
    "residual": residual(),
}


def twin(model: onnx.ModelProto) -> Graph:
    return explicit_biases(Graph.load(model))[0].as_float32()


def up(width: int, full: int) -> int:
    return min(-(-width // BLOCK) * BLOCK, full)


COSTS: dict[str, Callable[[int, int], Callable[[int, int], float]]] = {
    "linear": lambda c, k: lambda a, b: 3.0 * a * b,
    "steps": lambda c, k: lambda a, b: 2.0 + up(a, c) + up(a, c) * up(b, k),
    "cliff": lambda c, k: lambda a, b: up(a, c) * up(b, k) * (1.0 if a % 4 == 0 or a == c else 1.5),
}


def two_equal_convs() -> onnx.ModelProto:
    """Three Convs, the last two of equal shape, a pool behind the first."""
    nodes = [
        helper.make_node("Conv", ["x", "A"], ["a"], pads=[1] * 4),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["p", "B"], ["b"], pads=[1] * 4),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("Conv", ["r", "C"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "D"], ["y"]),
    ]
    weights = {"A": random(8, 3, 3, 3), "B": random(8, 8, 3, 3), "C": random(8, 8, 3, 3), "D": random(8, 2)}
    return build(nodes, weights, ("N", 3, 24, 24))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_narrow_program_is_the_layer_on_fewer_channels(model: onnx.ModelProto) -> None:
    """It computes what the layer does where the other channels are zero."""
    graph = twin(model)
    dependencies, shapes = build_dependency_graph(graph), graph.shapes(batch=2)
    for layer in dependencies.layers:
        shape = tuple(size or 2 for size in shapes[layer.source])
        sliced = Sliced(ENGINE, graph, layer, shape, (True, True))
        whole = graph.extract([layer.source], [layer.key]).program()
        for read, written in (sliced.full, tuple(-(-n // 2) for n in sliced.full)):
            job, full = sliced.job(read, written), sliced.job(*sliced.full)
            x, kept = full.feeds[layer.source].copy(), job.feeds[layer.source]
            axis = next((i for i, (m, n) in enumerate(zip(x.shape, kept.shape, strict=True)) if m != n), None)
            if axis is not None:
                blocks = layer.linear.op.conv_groups
                going = np.tile(np.arange(sliced.full[0]) >= read, blocks)
                np.moveaxis(x, axis, 0)[going] = 0
            expected = ENGINE.session(whole).run({layer.source: x})[layer.key]
            found = ENGINE.session(job.program).run(job.feeds)[layer.key]
            axis = 1 if layer.kind.startswith("Conv") else found.ndim - 1
            rows = np.tile(np.arange(sliced.full[1]) < written, layer.linear.op.conv_groups)
            assert relative(np.compress(rows, expected, axis=axis), found) < 1e-5


def test_equal_layers_are_measured_once_and_read_back(tmp_path: Path) -> None:
    graph = twin(two_equal_convs())
    dependencies = build_dependency_graph(graph)
    first = measure_layers(ENGINE, graph, dependencies, 2, cache=tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    keys = [json.loads(content)["key"].partition("threads; ")[2] for content in files.values()]
    assert sorted(key.partition(" ")[0] for key in keys) == ["Conv", "Conv", "MatMul", "model"]
    second = measure_layers(ENGINE, graph, dependencies, 2, cache=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    for name, times in first.layers.items():
        np.testing.assert_array_equal(times.seconds, second.layers[name].seconds)
        np.testing.assert_array_equal(times.read_shares, second.layers[name].read_shares)
    assert (first.fixed, first.start, first.steps) == (second.fixed, second.start, second.steps)
    assert [(r.name, r.seconds) for r in first.rest] == [(r.name, r.seconds) for r in second.rest]
    assert len({times.seconds.tobytes() for times in first.layers.values()}) > 2
    other = measure_layers(ENGINE, graph, dependencies, 3, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(files) and other.layers.keys() == first.layers.keys()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": 3}', b"\xff\xfe", b'{"key": "another", "value": {}}'])
def test_a_damaged_entry_is_measured_again(damage: bytes, tmp_path: Path) -> None:
    table, calls = Table(ENGINE, tmp_path), list[int]()

    def measure() -> dict[int, float]:
        calls.append(1)
        return {7: 0.1 + 0.2}

    assert table.look_up("k", dict[int, float], measure) == {7: 0.1 + 0.2}
    assert table.look_up("k", dict[int, float], measure) == {7: 0.1 + 0.2} and len(calls) == 1
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert table.look_up("k", dict[int, float], measure) == {7: 0.1 + 0.2} and len(calls) == 2
    assert path.read_bytes() == whole
    assert Table(Engine("cpu", 2), tmp_path).look_up("k", dict[int, float], measure) and len(calls) == 3


def test_the_cache_lies_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Table(ENGINE).look_up("k", int, lambda: 5) == 5
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "pcns-onnx"]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert Table(ENGINE, tmp_path / "file" / "cache").look_up("k", int, lambda: 5) == 5


@pytest.mark.parametrize("full", [(64, 48), (100, 512), (6, 3), (16, 1), (200, 130)])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_costs_of_known_form_are_found_at_every_width(
    cost: Callable[[int, int], Callable[[int, int], float]], full: tuple[int, int]
) -> None:
    exact = cost(*full)
    times = layer_times(exact, full)
    a, b = np.arange(1, full[0] + 1)[:, None], np.arange(1, full[1] + 1)
    found = times.at(a / full[0], b / full[1])
    expected = np.array([[exact(int(i), int(j)) for j in b] for i in a[:, 0]])
    np.testing.assert_allclose(found, expected, rtol=1e-2)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_grid_is_met_at_its_nodes_and_not_left_between(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = np.array([16, 48, 64, 128])
    seconds = rng.uniform(1, 2, (4, 4))
    times = LayerLatency(nodes, nodes, seconds, np.ones(129), np.ones(129))
    np.testing.assert_allclose(times.at(nodes[:, None] / 128, nodes / 128), seconds, rtol=1e-12)
    i, j = rng.integers(0, 3, 2)
    a, b = rng.integers(nodes[i], nodes[i + 1] + 1), rng.integers(nodes[j], nodes[j + 1] + 1)
    corners = seconds[i : i + 2, j : j + 2]
    assert corners.min() - 1e-12 <= times.at(a / 128, b / 128) <= corners.max() + 1e-12


STEPPING: dict[str, tuple[int, Callable[[int], float]]] = {
    "no steps": (1, lambda n: 5.0 + n),
    "odd widths are slow": (4, lambda n: (5.0 + n) * (1.0 if n % 4 == 0 else 1.4)),
    "eights": (8, lambda n: 5.0 + -(-n // 8) * 8),
    "sixteens": (16, lambda n: 5.0 + -(-n // 16) * 16),
    "odd widths are fast, fours are steps": (1, lambda n: 5.0 + (n if n % 4 else -(-n // 16) * 16)),
}


@pytest.mark.parametrize(("step", "cost"), STEPPING.values(), ids=STEPPING)
def test_the_step_that_pays(step: int, cost: Callable[[int], float]) -> None:
    assert step_that_pays([cost(n) for n in range(1, 129)]) == step
    assert step_that_pays([cost(n) for n in range(1, 101)]) == step
    assert step_that_pays([cost(n) for n in range(1, 17)]) <= min(step, 4)
    assert step_that_pays([cost(n) for n in range(1, 4)]) == 1


def test_the_parts_add_up_to_the_model(tmp_path: Path) -> None:
    graph = twin(two_equal_convs())
    dependencies = build_dependency_graph(graph)
    latency_model = measure_layers(ENGINE, graph, dependencies, 1, cache=tmp_path)
    assert set(latency_model.layers) == {layer.name for layer in dependencies.layers}
    assert latency_model.steps.keys() == {group.name for group in dependencies.groups}
    (run,) = (c["value"] for p in tmp_path.iterdir() if "; model " in (c := json.loads(p.read_bytes()))["key"])
    whole = latency_model.of_classes(dependencies, np.ones(dependencies.born + 1, dtype=np.bool_))
    assert latency_model.fixed >= 0 and whole == pytest.approx(
        max(run["seconds"], whole if not latency_model.fixed else 0)
    )
    pools = [part for part in latency_model.rest if part.name in ("p", "g")]
    for part in pools:
        assert any(np.isin(part.labels, group.labels).all() for group in dependencies.groups)


def test_what_scales_follows_its_channels() -> None:
    graph = twin(depthwise(1))
    dependencies = build_dependency_graph(graph)
    layers = {
        layer.name: layer_times(lambda a, b: 1.0 * a * b, (len(layer.linear.reads), layer.width))
        for layer in dependencies.layers
    }
    group = dependencies.shrinkable[0]
    latency_model = LatencyModel(layers, (Rest("pool", 7.0, group.labels),), 2.0, 0.0, {})
    kept = kept_classes(dependencies, {group.name: group.labels[: group.width // 2]})
    share = (group.width // 2) / group.width
    expected = 2.0 + 7.0 * share
    for layer in dependencies.layers:
        expected += float(kept[layer.linear.reads].sum() * kept[layer.linear.writes].sum())
    assert latency_model.of_classes(dependencies, kept) == pytest.approx(expected, rel=0.02)


def test_kernels_are_those_of_the_model() -> None:
    graph = twin(two_equal_convs())
    x = np.ones((1, 3, 24, 24), dtype=np.float32)
    seconds, kernels = take_apart(ENGINE, Job(graph.program(named=True), {"x": x}), 0.05)
    assert seconds > 0 and all(time >= 0 for _, time in kernels)
    assert sum("Conv" in kernel.op for kernel, _ in kernels) == 3


def test_jobs_that_do_not_fit_together_are_all_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = twin(two_equal_convs())
    layer = build_dependency_graph(graph).layers[1]
    sliced = Sliced(ENGINE, graph, layer, (1, 8, 24, 24), (True, True))
    monkeypatch.setattr("pcns_onnx.cost.profiler._OPEN_BYTES", 1)
    assert (take_turns(ENGINE, [lambda n=n: sliced.job(n, n) for n in (8, 4, 2)], 0.05) > 0).all()  # type: ignore[misc]


def test_sizes_that_are_left_open_are_asked_for(tmp_path: Path) -> None:
    graph = twin(LAYERS["conv2d"])
    model = graph.proto
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    for value in (*model.graph.value_info, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    open_size = Graph(model)
    with pytest.raises(InputError, match="--shape"):
        measure_layers(ENGINE, open_size, build_dependency_graph(open_size), 1, cache=tmp_path)


def test_many_models_against_one() -> None:
    graph = twin(two_equal_convs())
    dependencies = build_dependency_graph(graph)
    group = dependencies.shrinkable[0]
    small = [apply(graph, narrow(graph, dependencies, {group.name: group.labels[:n]})) for n in (2, 4)]
    samples = Samples(open_data(np.ones((4, 3, 24, 24), dtype=np.float32), graph.inputs), 2)
    ratios = compare_many(ENGINE, graph, small, samples, 0.02)
    assert len(ratios) == 2 and all(np.isfinite(ratio) and ratio > 0 for ratio in ratios)


def test_a_ratio_from_runs_that_differ_wildly_is_not_left_without_a_warning() -> None:
    """Half of the runs waited for a processor: whatever the ratio is, it is not the model's."""

    def of(first: list[float], second: list[float]) -> Latency:
        return Latency(1, 2, "CPUExecutionProvider", len(first), 1.0, 1.0, 1.0, first, second)

    calm, outlier, waited = [1.0, 1.1, 1.2, 0.9] * 10, [1.0] * 39 + [500.0], [1.0, 20.0] * 20
    assert unsteady(of(calm, outlier)) == []
    assert unsteady(of([], [])) == []
    for pair in ((calm, waited), (waited, calm)):
        (said,) = unsteady(of(*pair))
        assert "factor of 20" in said
