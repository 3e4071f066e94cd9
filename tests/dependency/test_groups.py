"""Channels that several layers share: which go together, that copies go without a trace, what is left of the cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import pytest
from threadpoolctl import threadpool_limits

from builders.chains import C, K, ints, node, random
from builders.contract import surveyed
from builders.models import Array, build, relative, run
from builders.surgery import permuted, sample, tensor, unread
from builders.topologies import (
    TOPOLOGIES,
    Sketch,
    depthwise,
    grouped,
    inverted_residual,
    residual,
    squeeze_excite,
    two_blocks,
)
from pcns_onnx import InputError, NothingToShrinkError, inspect, shrink
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance
from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.cli import main as cli
from pcns_onnx.cost import benchmark as latency
from pcns_onnx.cost.model import Costs
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.dependency.residual import RegressionTarget, regression_target
from pcns_onnx.graph import Graph
from pcns_onnx.methods.pcns.eligibility import refusal
from pcns_onnx.planning.grids import grid
from pcns_onnx.progress import Progress
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small matrices are faster on one thread, and latency is nobody's concern here."""
    monkeypatch.setattr(latency, "_ROUNDS", (1, 1))
    with threadpool_limits(1):
        yield


def data(model: onnx.ModelProto, seed: int = 0, count: int = 150) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *sample(model).shape[1:])).astype(np.float32)


# -- groups ----------------------------------------------------------------------------------

GROUPS: dict[str, str] = {
    "residual": "stem+a2: 8 coupled, a1: 16",
    "residual of one layer": "stem+a: 8 coupled",
    "two blocks": "stem+a2+b2: 8 coupled, a1: 16, b1: 16",
    "projection": "stem: 8, a1: 8, short+a2+b2: 16 coupled, b1: 32",
    "pre-activation": "stem+a2+b2: 8 coupled, a1: 8, b1: 8",
    "residual rows": "embed+down+gate: 8 coupled, up: 16",
    "residual flattened": "stem+a2: 8 coupled, a1: 16",
    "nested sums": "stem+a+b: 8 coupled",
    "late sum": "stem+a2+c: 8 coupled, a1: 8, b: 4",
    "gate of convs": "stem+excite: 8, squeeze: 4",
    "gate of gemms, reshape": "stem+excite: 8, squeeze: 4",
    "gate of gemms, unsqueeze": "stem+excite: 8, squeeze: 4",
    "inverted residual": "stem+project: 8 coupled, expand+excite: 16, squeeze: 4",
    "glu": "gate+value: 8",
    "swiglu": "embed+down: 8 coupled, gate+value: 16",
    "max of three": "a+b+c: 8 coupled",
    "min of three": "a+b+c: 8 coupled",
    "sum of three": "a+b+c: 8 coupled",
    "mean of three": "a+b+c: 8 coupled",
    "difference": "a+b: 8 coupled",
    "product": "a+b: 8",
    "maximum of a layer with itself": "a+b: 8 coupled",
    "choice": "a+b+c+d: 8 coupled",
    "slopes of a layer": "a+b: 8",
    "two pools": "stem: 8",
    "depthwise": "stem: 8",
    "depthwise no bias": "stem: 8",
    "depthwise multiplier": "stem: 8",
    "depthwise stream": "stem+a2+b2: 8 coupled, a1: 16, b1: 16",
    "grouped in two": "stem: 8 x 2, blocks: 8 x 2",
    "grouped in four": "stem: 8 x 4, blocks: 8 x 4",
    "grouped in whole blocks": "stem: 8 x 2",
    "grouped input": "blocks: 4 x 2",
    "grouped residual": "stem+a3: 8 coupled, a1: 8 x 2",
    "shuffle": "stem+second: 8 x 2 coupled, first: 4 x 4",
    "shuffle of four": "stem+second: 8 x 4 coupled, first: 2 x 16",
    "channels on two axes": "stem: 4 x 2",
    "dense": "stem: 8 coupled, a1: 8, a2: 4 coupled, b1: 8, b2: 4 coupled",
    "skipped": "stem: 8 coupled, low: 16, up: 8 coupled",
    "parted sum": "a+b+c: 12 coupled",
    "partly held": "a+b: 8 coupled",
    "half read": "h: 8",
}
"""By topology: writers and classes (times channels in each) of all groups but the last layer's."""


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_layers_that_share_channels_are_one_group(name: str) -> None:
    _, dependencies = surveyed(TOPOLOGIES[name]())
    found = []
    for group in dependencies.shrinkable:
        unit, coupled = f" x {group.unit}" if group.unit > 1 else "", " coupled" if group.coupled else ""
        found.append(f"{'+'.join(group.writers)}: {group.width}{unit}{coupled}")
        assert group.name == group.writers[0] and (np.diff(group.labels) > 0).all()
        for writer in group.writers:
            assert dependencies.writes(dependencies.layer(writer)) == group
            assert np.isin(dependencies.layer(writer).linear.writes, group.labels).any()
        written = [dependencies.layer(writer).linear.writes for writer in group.writers]
        assert np.isin(group.labels, np.concatenate(written)).all()
        for reader in group.readers:
            assert group in dependencies.reads(dependencies.layer(reader))
    assert ", ".join(found) == GROUPS[name]
    last = {"half read": "a"}.get(name, "y")
    assert [g.name for g in dependencies.groups if g.frozen] == [last]


def test_a_stream_that_must_stay_names_all_its_layers() -> None:
    model = residual()
    model.graph.output.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [*"abcd"]))
    _, dependencies = surveyed(model)
    stream = dependencies.groups[0]
    assert (stream.writers, stream.frozen) == (("stem", "a2"), "it feeds the model's output 'a'")
    assert [g.name for g in dependencies.shrinkable] == ["a1"]
    result = shrink(model, data(model), width=0.5, refine=0)
    assert {name: left.reason for left in result.report.left_alone for name in left.layers} == {
        "stem": stream.frozen, "a2": stream.frozen, "y": "it feeds the model's output 'y'"
    }  # fmt: skip


@pytest.mark.parametrize("multiple", ["auto", "3", "4"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_a_grid_counts_channels_and_not_classes(blocks: int, multiple: str) -> None:
    _, dependencies = surveyed(grouped(blocks, 12 * blocks))
    (group,) = [g for g in dependencies.groups if g.name == "stem"]
    assert (group.width, group.unit) == (12, blocks)
    step = {"auto": 4 if 12 * blocks < 32 else 8}.get(multiple) or int(multiple)
    widths = [w for w in range(1, 13) if w * blocks % step == 0 or w == 12]
    assert grid(group, "Conv", multiple).tolist() == widths


# -- copies ----------------------------------------------------------------------------------


def planted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every other class of each group a copy of the one before it."""
    graph, dependencies = surveyed(model)
    copies = {
        int(b): int(a) for g in dependencies.shrinkable for a, b in zip(g.labels[::2], g.labels[1::2], strict=True)
    }
    twin = permuted(graph, dependencies, copies, reads=False)
    x = sample(model)
    assert relative(run(graph.proto, x), run(twin.proto, x)) > 1e-3
    return twin.proto


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_copies_go_without_a_trace(name: str) -> None:
    model = planted(TOPOLOGIES[name]())
    graph, dependencies = surveyed(model)
    result = shrink(model, data(model), width=0.5, multiple="1", refine=0)
    assert {name: (e.width, e.of) for name, e in result.plan.groups.items()} == {
        g.name: (g.width // 2, g.width) for g in dependencies.shrinkable
    }
    x = data(model, 1, 20)
    assert relative(run(model, x), run(result.model, x)) < 1e-4
    halves = dict.fromkeys(result.plan.groups, 0.5)
    assert (
        result.report.after.macs
        == Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters})(halves)[0]
    )


@pytest.mark.parametrize("name", ["inverted residual", "shuffle", "projection", "swiglu"])
def test_copies_go_without_a_trace_by_pivots_too(name: str) -> None:
    model = planted(TOPOLOGIES[name]())
    result = shrink(model, data(model), width=0.5, multiple="1", method="interpolative", refine=0)
    x = data(model, 1, 20)
    assert relative(run(model, x), run(result.model, x)) < 1e-4


@pytest.mark.parametrize("name", ["inverted residual", "shuffle", "two blocks", "gate of convs", "grouped in two"])
def test_what_is_needed_does_not_go_without_a_trace(name: str) -> None:
    model = planted(TOPOLOGIES[name]())
    result = shrink(model, data(model), width=0.25, multiple="1", refine=0)
    x = data(model, 1, 20)
    assert 1e-2 < relative(run(model, x), run(result.model, x)) < 0.7
    assert max(entry.error for entry in result.plan.groups.values()) > 0.1


# -- costs -----------------------------------------------------------------------------------


def test_costs_are_those_counted_by_hand() -> None:
    """At half of every width; what is left is what the report counts in the model that was written."""
    by_hand = {
        residual: 36 * (27 * 4 + 2 * 9 * 4 * 8 + 9 * 4 * K),
        # stem, expand and project, depthwise, the gate's two at one position, the last layer
        inverted_residual: 36 * (27 * 4 + 2 * 4 * 8 + 9 * 8) + 2 * 8 * 2 + 4 * K,
        depthwise: 36 * (27 * 4 + 9 * 8 + 8 * K),
        grouped: 36 * (27 * 8 + 2 * 9 * 4 * 4 + 9 * 8 * K),
    }
    weights = {
        residual: 28 * 4 + (9 * 4 + 1) * 8 + (9 * 8 + 1) * 4 + (9 * 4 + 1) * K,
        inverted_residual: 28 * 4 + 5 * 8 + 10 * 8 + 9 * 2 + 3 * 8 + 9 * 4 + 5 * K,
        depthwise: 28 * 4 + 10 * 8 + 9 * K,
        grouped: 28 * 8 + (9 * 4 + 1) * 8 + (9 * 8 + 1) * K,
    }
    models = [residual(), inverted_residual(), depthwise(2), grouped(2)]
    for maker, model in zip(by_hand, models, strict=True):
        graph, dependencies = surveyed(model)
        costs = Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters})
        assert costs({g.name: 0.5 for g in dependencies.shrinkable})[:2].tolist() == [by_hand[maker], weights[maker]]
        after = shrink(model, data(model), width=0.5, multiple="1", refine=0).report.after
        assert (after.macs, after.parameters) == (by_hand[maker], weights[maker])


@pytest.mark.parametrize("budget", [("macs=0.5",), ("params=0.6", "macs=0.7")])
@pytest.mark.parametrize("name", ["residual of one layer", "inverted residual", "shuffle", "depthwise stream", "dense"])
def test_budgets_hold_for_the_model_that_is_written(name: str, budget: tuple[str, ...]) -> None:
    model = TOPOLOGIES[name]()
    report = shrink(model, data(model), budget=budget, multiple="1", refine=0).report
    shares = {"macs": report.after.macs / report.before.macs}
    shares["params"] = report.after.parameters / report.before.parameters
    limits = {text.partition("=")[0]: float(text.partition("=")[2]) for text in budget}
    assert all(shares[resource] <= limit for resource, limit in limits.items())
    assert max(shares[resource] / limit for resource, limit in limits.items()) > 0.75


# -- what is left alone ----------------------------------------------------------------------


def test_streams_can_be_left_alone() -> None:
    model = two_blocks()
    result = shrink(model, data(model), width=0.5, coupled=False, refine=0)
    assert {name: entry.width for name, entry in result.plan.groups.items()} == {"a1": C, "b1": C}
    why = "several blocks share its channels, and --no-coupled leaves those alone"
    reasons = {name: left.reason for left in result.report.left_alone for name in left.layers}
    assert reasons == {**dict.fromkeys(("stem", "a2", "b2"), why), "y": "it feeds the model's output 'y'"}
    _, before = surveyed(model)
    _, after = surveyed(result.model)
    assert [g.width for g in after.groups] == [before.groups[0].width, C, C, K]


def test_gates_are_not_streams() -> None:
    model = squeeze_excite("conv")
    x = data(model)
    with_streams, without = (shrink(model, x, width=0.5, coupled=coupled, refine=0) for coupled in (True, False))
    assert with_streams.model.SerializeToString() == without.model.SerializeToString()


def test_where_all_is_a_stream_nothing_is_left_to_do() -> None:
    model = TOPOLOGIES["max of three"]()
    with pytest.raises(NothingToShrinkError):
        shrink(model, data(model), width=0.5, coupled=False, refine=0)


def test_streams_can_be_left_alone_on_the_command_line(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(residual(), f"{tmp_path}/model.onnx")
    np.save(f"{tmp_path}/x.npy", data(residual()))
    call = ["shrink", f"{tmp_path}/model.onnx", "--data", f"{tmp_path}/x.npy", "-o", f"{tmp_path}/out.onnx"]
    widths = {}
    for name, option in (("all", []), ("inner", ["--no-coupled"])):
        plan = f"{tmp_path}/{name}.json"
        assert cli.main([*call, "--width", "0.5", "--plan-out", plan, *option]) == 0, capsys.readouterr().err
        with open(plan) as file:
            widths[name] = {group: entry["width"] for group, entry in json.load(file)["groups"].items()}
    assert widths == {"all": {"stem": 4, "a1": 8}, "inner": {"a1": 8}}


def test_new_neurons_take_the_place_of_one_layers_only() -> None:
    model = residual()
    result = shrink(model, data(model), width=0.5, method="pcns", refine=0)
    assert set(result.plan.groups) == {"a1"}
    assert "several layers" in {name: left.reason for left in result.report.left_alone for name in left.layers}["stem"]
    for name, why in (("depthwise", "has per-channel constants"), ("grouped in two", "blocks of one")):
        assert all(why in reason for reason in refused(name))


def refused(name: str) -> list[str]:
    """Why PCNS leaves the groups of a topology alone."""
    graph, dependencies = surveyed(TOPOLOGIES[name]())
    return [refusal(graph, dependencies, group, refit=True) or "" for group in dependencies.shrinkable]


def test_new_neurons_are_not_made_where_a_layer_reads_some_of_them() -> None:
    s = Sketch("N", 5)
    s.op("Split", s.relu(s.gemm("x", "h", (5, C))), "a b", axis=1)
    for name in "ab":
        s.gemm(name, f"{name}2", (C // 2, K))
    s.add("a2", "b2", "y")
    model = s.model()
    with pytest.raises(NothingToShrinkError):
        shrink(model, data(model), width=0.5, method="pcns", refine=0)
    assert shrink(model, data(model), width=0.5, refine=0).plan.groups["h"].width == C // 2


# -- what is listed --------------------------------------------------------------------------


def test_groups_are_listed() -> None:
    found = inspect(inverted_residual())
    rows = {row.name: (row.writers, row.width, row.unit, row.readers, row.coupled, row.reason) for row in found.groups}
    assert rows == {
        "stem": (["stem", "project"], 8, 1, ["expand", "y"], True, None),
        "expand": (["expand", "excite"], 16, 1, ["squeeze", "project"], False, None),
        "squeeze": (["squeeze"], 4, 1, ["excite"], False, None),
        "y": (["y"], 4, 1, [], False, "it feeds the model's output 'y'"),
    }
    shown = {layer.name: (layer.group, layer.reason, layer.width) for layer in found.layers}
    assert shown["project"] == ("stem", None, 8) and shown["excite"] == ("expand", None, 16)
    assert shown["squeeze"] == (None, None, 4)
    assert shown["deep"] == (None, None, 16)  # not solved for, but as narrow as what it follows
    assert found.shrinkable_macs == 1.0
    (row,) = [row for row in inspect(grouped(2)).groups if row.name == "blocks"]
    assert (row.width, row.unit) == (8, 2)


def test_a_depthwise_layer_must_stay_where_its_channels_must() -> None:
    s = Sketch("N", 4, 6, 6)
    s.conv("x", "first", (4, 4), group=4)
    deep = s.conv(s.conv("first", "point", (4, C), 1), "deep", (C, C), group=C)
    s.op("Relu", deep, "y")
    found = {layer.name: layer.reason for layer in inspect(s.model()).layers}
    assert found == {
        "first": "Conv 'first' filters the model's own channels one by one",
        "point": "it feeds the model's output 'y'",
        "deep": "it feeds the model's output 'y'",
    }
    assert inspect(s.model()).shrinkable_macs == 0


@pytest.mark.parametrize("name", ["inverted residual", "shuffle", "two blocks"])
def test_with_data_every_group_has_its_dimensions(name: str) -> None:
    model = TOPOLOGIES[name]()
    found = inspect(model, data(model))
    sizes = {layer.name: (layer.width, layer.dimensions) for layer in found.layers}
    for group in found.groups:
        width, dimensions = sizes[group.name]
        assert dimensions is not None and 1 <= dimensions["0.99"] <= dimensions["0.9999"] <= width
    assert all(layer.samples_per_neuron for layer in found.layers if layer.name != "deep")


def test_what_goes_together_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    onnx.save(TOPOLOGIES["shuffle"](), f"{tmp_path}/model.onnx")
    assert cli.main(["inspect", f"{tmp_path}/model.onnx"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "yes, with 'stem'" in shown
    assert "narrowed together width layers stem 8 x 2 stem, second first 4 x 4 first" in shown


# -- nothing is left empty -------------------------------------------------------------------


def parted() -> onnx.ModelProto:
    """Eight channels of a sum, of which two layers make four each; those of the first hardly matter."""
    s = Sketch("N", 5)
    for name, width in (("a", 4), ("b", 4), ("c", C)):
        s.gemm("x", name, (5, width))
    s.op("Concat", "a b", "ab", axis=1)
    s.gemm(s.op("Tanh", s.add("ab", "c", "sum"), "t"), "y", (C, K))
    s.weights["y.w"][:4] *= np.float32(1e-3)
    return s.model()


@pytest.mark.parametrize("method", ["obs", "interpolative"])
@pytest.mark.parametrize("choice", [{"width": 0.5}, {"width": 0.25}, {"width": 0.01}, {"budget": "macs=0.3"}])
def test_no_tensor_loses_all_its_channels(method: str, choice: dict[str, object]) -> None:
    model = parted()
    result = shrink(model, data(model), method=method, multiple="1", **choice, refine=0)  # type: ignore[arg-type]
    keep = result.plan.groups["a"].keep
    assert keep is not None and min(keep) < 4 <= max(keep)
    widths = [layer.width for layer in surveyed(result.model)[1].layers]
    assert widths == [sum(k < 4 for k in keep), sum(k >= 4 for k in keep), len(keep), K]
    assert len(keep) == {0.5: 4, 0.25: 2, 0.01: 2}.get(choice.get("width"), len(keep))  # type: ignore[call-overload]


def test_a_budget_that_would_empty_a_tensor_is_out_of_reach() -> None:
    model = parted()
    with pytest.raises(InputError, match="out of reach"):
        shrink(model, data(model), budget="macs=0.1", multiple="1", refine=0)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"width": 1, "keep": [5]}, "the plan's width 1 for 'a' is too small: it takes 2 channels to leave none"),
        ({"width": 3, "keep": [4, 5, 7]}, "the plan's lists of channels to keep leave none of 'a'"),
    ],
)
def test_a_plan_that_would_empty_a_tensor_is_refused(tmp_path: object, entry: Mapping[str, object], line: str) -> None:
    model, path = parted(), f"{tmp_path}/plan.json"
    shrink(model, data(model), width=0.5, plan_out=path, refine=0)
    with open(path) as file:
        plan = json.load(file)
    plan["groups"]["a"].update(entry)
    with open(path, "w") as file:
        json.dump(plan, file)
    with pytest.raises(InputError, match=line):
        shrink(model, data(model), plan=path, refine=0)


# -- sums are corrected ----------------------------------------------------------------------


def solved(model: onnx.ModelProto, x: Array, damaged: str, width: int) -> tuple[Graph, Graph, DependencyGraph]:
    """The graph, and what is left of it when group `damaged` keeps its first channels; both for comparison."""
    graph, dependencies = surveyed(model)
    calibration = Calibration(Engine(threads=1), Samples(open_data(x, graph.inputs), 64), 0, Progress())
    (group,) = [g for g in dependencies.groups if g.name == damaged]
    seen: dict[BlockKey, dict[str, ChannelCovariance]] = {}
    for read in read_groups(calibration, graph, dependencies, [group]):
        for place, view in read.covariances().items():
            seen.setdefault(place, {})[group.name] = view
    keep = {group.name: group.labels[:width]}
    patch = narrow(graph, dependencies, keep)
    edits = refit(calibration, graph, apply(graph, patch), dependencies, keep, seen).patch
    return graph, apply(apply(graph, patch), edits), dependencies


def alone(_graph: Graph, _dependencies: DependencyGraph, layer: Layer) -> RegressionTarget:
    return RegressionTarget(layer.output)


def wide_block() -> onnx.ModelProto:
    """Two blocks on a stream; the second is wide enough to make up for what the first has lost."""
    s = Sketch("N", 5)
    stream = s.gemm("x", "stem", (5, C))
    for name, width in (("a", 2 * C), ("b", 12 * C)):
        inner = s.relu(s.gemm(stream, f"{name}1", (C, width)))
        stream = s.add(stream, s.gemm(inner, f"{name}2", (width, C)), name)
    s.gemm(stream, "y", (C, K))
    return s.model()


def test_the_last_layer_of_a_block_corrects_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide_block()
    x, new = data(model, 0, 800), data(model, 1, 300)
    errors = {}
    for how in ("sum", "own branch"):
        if how == "own branch":
            monkeypatch.setattr("pcns_onnx.reconstruction.sequential.regression_target", alone)
        graph, small, _ = solved(model, x, "a1", C // 2)
        errors[how] = [relative(tensor(graph, name, new), tensor(small, name, new)) for name in ("a", "b", "y")]
    assert errors["sum"][0] == pytest.approx(errors["own branch"][0])  # nothing was damaged before it
    assert errors["sum"][1] < 0.5 * errors["own branch"][1]
    assert errors["sum"][1] < 0.5 * errors["sum"][0]
    assert errors["sum"][2] < 0.7 * errors["own branch"][2]


@pytest.mark.parametrize(
    ("name", "damaged", "sums"),
    [("two blocks", "a1", "ab"), ("pre-activation", "a1", "ab"), ("projection", "a1", "ab"),
     ("depthwise stream", "a1", "ab")],
)  # fmt: skip
def test_on_the_samples_a_sum_is_never_worse_for_it(
    name: str, damaged: str, sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TOPOLOGIES[name]()
    x = data(model)
    errors = []
    for goal in (regression_target, alone):
        monkeypatch.setattr("pcns_onnx.reconstruction.sequential.regression_target", goal)
        graph, small, _ = solved(model, x, damaged, 2)
        errors.append([relative(tensor(graph, item, x), tensor(small, item, x)) for item in sums])
    assert errors[0][0] == pytest.approx(errors[1][0], rel=1e-3)
    assert errors[0][1] < 0.99 * errors[1][1]


def broadcast(first: bool) -> onnx.ModelProto:
    """A layer of one position per channel, added to every position; one layer in front of the other or behind."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    s.op("GlobalAveragePool", stem, "mean")
    if first:
        shift = s.conv("mean", "shift", (C, C), 1)
    wide = s.conv(s.relu(s.conv(stem, "inner", (C, 2 * C))), "back", (2 * C, C))
    if not first:
        shift = s.conv("mean", "shift", (C, C), 1)
    return s.head(s.add(wide, shift, "sum"))


@pytest.mark.parametrize("first", [True, False])
def test_what_is_spread_over_positions_is_not_solved_for_the_sum(first: bool) -> None:
    model = planted(broadcast(first))
    graph, dependencies = surveyed(model)
    assert {layer.name: regression_target(graph, dependencies, layer) for layer in dependencies.layers}["back"] == (
        "back",
        "",
    )
    result = shrink(model, data(model), width=0.5, multiple="1", refine=0)
    x = data(model, 1, 20)
    assert relative(run(model, x), run(result.model, x)) < 1e-4


def test_what_a_layer_is_solved_for() -> None:
    found = {}
    for name in ("projection", "inverted residual", "residual rows", "sum of three", "nested sums"):
        graph, dependencies = surveyed(TOPOLOGIES[name]())
        goals = ((layer, regression_target(graph, dependencies, layer)) for layer in dependencies.layers)
        found[name] = {layer.name: goal for layer, goal in goals if goal != (layer.output, "")}
    assert found == {
        "projection": {"a2": ("a", "short"), "b2": ("b", "a.r")},
        "inverted residual": {"project": ("sum", "stem")},
        "residual rows": {},  # a factor and a Tanh lie between its layers and their sums
        "sum of three": {},
        "nested sums": {"b": ("ab", "a")},
    }


# -- one after another -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inverted residual", "shuffle"])
def test_a_shrunk_model_shrinks_again(name: str) -> None:
    model = planted(TOPOLOGIES[name]())
    x = data(model)
    once = shrink(model, x, width=0.5, multiple="1", refine=0)
    again = shrink(once.model, x, width=0.75, multiple="1", refine=0)
    widths = {group: entry.width for group, entry in once.plan.groups.items()}
    assert {group: entry.of for group, entry in again.plan.groups.items()} == {k: v for k, v in widths.items() if v > 1}
    assert again.report.after.macs < once.report.after.macs


def test_replaying_a_plan_gives_the_same_bytes(tmp_path: object) -> None:
    model, path = inverted_residual(), f"{tmp_path}/plan.json"
    first = shrink(model, data(model), width=0.5, plan_out=path, threads=1, refine=0)
    second = shrink(model, data(model), plan=path, threads=1, refine=0)
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_shapes_that_name_channels_are_kept_in_step() -> None:
    """A gate whose Reshape is put together from the batch and a literal number of channels."""
    s = Sketch()
    stem = s.relu(s.conv("x", "stem", (3, C)))
    s.op("Flatten", s.op("GlobalAveragePool", stem, "mean"), "row")
    gate = s.op("Sigmoid", s.gemm("row", "gate", (C, C)), "g")
    s.op("Shape", "x", "sizes", start=0, end=1)
    s.op("Concat", f"sizes {s.keep('rest', ints(C, 1, 1))}", "shape", axis=0)
    model = planted(s.head(s.op("Mul", f"{s.op('Reshape', f'{gate} shape', 'wide')} {stem}", "m")))
    result = shrink(model, data(model), width=0.5, multiple="1", refine=0)
    rest = Graph(result.model).constant("rest")
    assert rest is not None and rest.tolist() == [C // 2, 1, 1]
    x = data(model, 1, 20)
    assert relative(run(model, x), run(result.model, x)) < 1e-4


def test_layers_that_share_a_computed_shape_are_narrowed_apart() -> None:
    """Two layers of one width are flattened by one shape tensor with their number of columns in it."""
    s = Sketch()
    s.op("Shape", "x", "sizes", start=0, end=1)
    s.op("Concat", f"sizes {s.keep('rest', ints(9 * C))}", "shape", axis=0)
    for name in "ab":
        s.relu(s.conv("x", name, (3, C), strides=[2, 2]))
        s.gemm(s.op("Reshape", f"{name}.r shape", f"{name}.f"), f"{name}2", (9 * C, K))
    s.add("a2", "b2", "y")
    graph, dependencies = surveyed(s.model())
    assert [g.name for g in dependencies.shrinkable] == ["a", "b"]
    a, b = (group.labels for group in dependencies.shrinkable)
    keep = {"a": a[:3], "b": b[:6]}
    zeroed = unread(graph, dependencies, np.concatenate([a[3:], b[6:]]))
    small = apply(zeroed, narrow(zeroed, dependencies, keep))
    x = data(graph.proto, count=4)
    assert relative(run(zeroed.proto, x), run(small.proto, x)) < 1e-5


def test_survey_finds_the_same_in_what_was_written() -> None:
    model = TOPOLOGIES["shuffle"]()
    result = shrink(model, data(model), width=0.5, multiple="1", refine=0)
    after = build_dependency_graph(Graph(result.model), {"x": (2, 3, 6, 6)})
    assert [(g.writers, g.width, g.unit) for g in after.groups if g.name != "y"] == [
        (("stem", "second"), 4, 2), (("first",), 2, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "budget"), [("residual", 0.5), ("two blocks", 0.5), ("projection", 0.4)])
def test_streams_are_spared_where_that_serves_the_outputs(name: str, budget: float) -> None:
    """Groups are probed at the outputs, so that a stream's loss counts for all blocks behind."""
    model = TOPOLOGIES[name]()
    x = data(model, count=300)
    chosen = shrink(model, x, budget=f"macs={budget}", multiple=1, refine=0).report
    spared = shrink(model, x, budget=f"macs={budget}", multiple=1, coupled=False, refine=0).report
    assert "try" not in spared.stages
    assert chosen.agreement.error <= 1.25 * spared.agreement.error


@pytest.mark.parametrize("gate", ["Mul", "Add", "Sub", "Max"])
@pytest.mark.parametrize("images", [False, True], ids=["rows", "images"])
def test_what_a_layer_of_one_channel_gates_is_not_its_activation(gate: str, images: bool) -> None:
    """One value per position, spread over all channels of another layer."""
    taps = (1, 1) if images else ()
    op, shape = ("Conv", (3, 4, 4)) if images else ("MatMul", (3,))
    sizes = {"w": (12, 3), "g": (1, 12), "v": (5, 12)}
    weights = {name: random(*(size if images else size[::-1]), *taps) for name, size in sizes.items()}
    nodes = [
        node(op, "x w", "a"), node("Relu", "a", "r"), node(op, "r g", "b"), node("Sigmoid", "b", "c"),
        node(gate, "r c", "d"), node(op, "d v", "y"),
    ]  # fmt: skip
    model = build(nodes, weights, ["N", *shape])
    x = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    assert {layer.width for layer in inspect(model, x, threads=1).layers} == {12, 1, 5}
    graph = Canonical.of(Graph.load(model)).twin
    activations = {group.name: group.activation for group in build_dependency_graph(graph).groups}
    assert activations["b"] == "c"
