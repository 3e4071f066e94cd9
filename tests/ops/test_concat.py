"""Joining and parting: what goes in one tensor goes in all that it is joined to or taken from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders.chains import K, ints, node
from builders.contract import halved, holds, surveyed
from builders.joins import FLOATS, JOINS, OPEN, WRITTEN, W, after, branches, one, option_a, parts, stem
from builders.models import MODELS, Array, relative, run
from builders.surgery import permuted, sample, twins, unread
from pcns_onnx import inspect, shrink
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.graph import Graph, Program
from pcns_onnx.planning.plan import SCHEMA, GroupPlan, Plan, fingerprint
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine

QUICK = ("concat", "dense block", "neck", "shuffle", "split sizes", "slice middle", "option a")
"""What is shrunk from end to end in every run of the tests."""


@pytest.mark.parametrize("name", JOINS)
def test_channels_pass(name: str) -> None:
    model = JOINS[name]()
    holds(model)
    _, dependencies = surveyed(model)
    assert dependencies.groups[-1].frozen and len(dependencies.shrinkable) == len(dependencies.groups) - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINS)
def test_half_of_them_go(name: str) -> None:
    halved(JOINS[name]())


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in JOINS])
def test_copies_go_without_a_trace(name: str, tmp_path: Path) -> None:
    graph, dependencies = surveyed(JOINS[name]())
    alike = [pair for labels in twins(dependencies) for pair in zip(labels[::2], labels[1::2], strict=False)]
    model = permuted(graph, dependencies, {int(b): int(a) for a, b in alike}, reads=False).proto
    x = np.random.default_rng(0).standard_normal((1000, *sample(model).shape[1:])).astype(np.float32)
    copies = [b for _, b in alike]
    widths = {g.name: (g.width - int(np.isin(g.labels, copies).sum()), g.width) for g in dependencies.shrinkable}
    plan = Plan(SCHEMA, fingerprint(Graph.load(model)), "obs", {n: GroupPlan(*both, 0.0) for n, both in widths.items()})
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode(plan))
    result = shrink(model, x, plan=tmp_path / "plan.json", refine=0)
    assert {name: (g.width, g.of) for name, g in result.plan.groups.items()} == widths
    assert relative(run(model, x[:6]), run(result.model, x[:6])) < 1e-3


@pytest.mark.parametrize("name", WRITTEN)
def test_what_exporters_compute_is_no_matter(name: str) -> None:
    model = WRITTEN[name]()
    assert [row.reason for row in inspect(model).groups if row.reason] == ["it feeds the model's output 'y'"]
    halved(model)


# -- what is written -------------------------------------------------------------------------


def narrowed(model: onnx.ModelProto, **gone: list[int]) -> tuple[Graph, Graph, DependencyGraph]:
    """Before and after, with some of the channels of some groups gone; nothing reads them before."""
    graph, dependencies = surveyed(model)
    labels = {group.name: group.labels for group in dependencies.groups}
    lost = np.concatenate([labels[name][places] for name, places in gone.items()])
    zeroed = unread(graph, dependencies, lost)
    small = apply(zeroed, narrow(zeroed, dependencies, {name: np.setdiff1d(labels[name], lost) for name in gone}))
    small.prune()
    small.check(full=True)
    x = sample(model)
    assert relative(run(zeroed.proto, x), run(small.proto, x)) < 1e-5
    return zeroed, small, dependencies


def stored(graph: Graph, key: str, position: int) -> list[int]:
    value = graph.constant(graph.node(key).inputs[position])
    assert value is not None
    return [int(v) for v in value.reshape(-1)]


def test_columns_of_a_concat_are_found_by_their_offsets() -> None:
    before, small, _ = narrowed(branches(8, 6, 10), b0=[0, 3], b1=[5], b2=[1, 2, 9])
    old, new = (graph.constant(graph.node("z").inputs[1]) for graph in (before, small))
    assert old is not None and new is not None
    gone = [0, 3, 8 + 5, 14 + 1, 14 + 2, 14 + 9]
    np.testing.assert_array_equal(new, np.delete(old, gone, axis=1))


@pytest.mark.parametrize(
    ("spelled", "opset", "attribute"),
    [
        ("input", 17, None),
        ("attribute", 11, "split"),
        ("equal", 11, "split"),
        ("equal", 13, None),
        ("uneven", 18, None),
    ],
)
def test_a_split_gets_its_sizes(spelled: str, opset: int, attribute: str | None) -> None:
    name = "wider" if spelled == "uneven" else "h"
    _, small, _ = narrowed(parts(spelled, opset), **{name: [0, 3, 4, 11]})
    split = small.node("p0")
    sizes = split.attrs[attribute] if attribute else stored(small, "p0", 1)
    expected = {"input": [2, 3, 3], "attribute": [2, 3, 3], "equal": [2, 3, 3], "uneven": [2, 5, 3]}
    assert list(sizes) == expected[spelled]
    assert "num_outputs" not in split.attrs and small.proto.opset_import[0].version == opset
    if not attribute:
        assert small.constant(split.inputs[1]).dtype == np.int64  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3, 9, (1, 6)), (4, OPEN, (2, OPEN)), (4, 12, (2, 8)), (4, 50, (2, 50)), (0, -3, (0, 6)),
        (-8, OPEN, (2, OPEN)), (-9, -2, (1, 6)), (0, 5, (0, 3)), (-50, -4, (-50, 5)), (-2, 12, (6, 8)),
    ],
)  # fmt: skip
def test_a_slice_counts_what_is_left(start: int, end: int, expected: tuple[int, int]) -> None:
    width = len(range(W)[start:end])
    model = one([node("Slice", "h.r s e a")], width, {"s": ints(start), "e": ints(end), "a": ints(1)})
    _, small, _ = narrowed(model, h=[0, 1, 7, 9])
    assert (stored(small, "m", 1), stored(small, "m", 2)) == ([expected[0]], [expected[1]])


def test_an_end_counted_from_behind_follows_what_goes_there() -> None:
    model = one([node("Slice", "h.r s e a")], 8, {"s": ints(-10), "e": ints(-2), "a": ints(1)})
    _, small, _ = narrowed(model, h=[0, 10, 11])
    assert (stored(small, "m", 1), stored(small, "m", 2)) == ([1], [9])


def test_places_are_looked_up_anew() -> None:
    model = one([node("Gather", "h.r i", axis=1)], 5, {"i": ints(1, 4, -1, -2, 0)})
    _, small, _ = narrowed(model, h=[0, 3, 4])
    assert stored(small, "m", 1) == [0, 8, 7]


def test_channels_of_zeros_go_with_the_stream_that_they_are_added_to() -> None:
    _, small, dependencies = narrowed(option_a(), h=[0, 5, 12, 13, 23])
    group = dependencies.groups[0]
    assert group.coupled and group.width == W + 12 and group.writers == ("h", "b0", "b1", "b2")
    widths = [small.constant(small.node(key).inputs[1]).shape[0] for key in group.writers]  # type: ignore[union-attr]
    assert widths[:2] == [W - 2] * 2 and widths[3] == W + 12 - 5
    pads = [stored(small, f"p{i}", 1) for i in (1, 2)]
    assert [sum(p) for p in pads] == [widths[2] - widths[1], widths[3] - widths[2]]


@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "resnet20_cifar10_dynamo.onnx"])
def test_the_stages_of_a_resnet_share_one_stream(name: str) -> None:
    path = MODELS / name
    if not path.exists():
        path = MODELS.parent.parent / "shared" / "models" / name
    if not path.exists():
        pytest.skip("the model is not here")
    rows = inspect(path).groups
    stream = max(rows, key=lambda row: len(row.writers))
    assert (stream.reason, stream.coupled, stream.width, len(stream.writers)) == (None, True, 64, 10)
    assert [row.reason for row in rows if row.reason] == ["it feeds the model's output 'logits'"]


# -- half of them must stay ------------------------------------------------------------------


def exposed_half() -> onnx.ModelProto:
    """The first of two pieces is an output of the model, the second is read on."""
    s, h = stem()
    s.op("Split", f"{h} {s.keep('sizes', ints(5, 7))}", "left right", axis=1)
    model = after(s, "right", 7)
    model.graph.output.append(helper.make_tensor_value_info("left", TensorProto.FLOAT, ["N", 5, 6, 6]))
    return model


def test_the_piece_that_nobody_sees_can_shrink() -> None:
    model = exposed_half()
    graph, dependencies = surveyed(model)
    group = dependencies.groups[0]
    assert group.frozen is None and group.width == 7
    zeroed = unread(graph, dependencies, group.labels[[1, 2, 6]])
    small = apply(zeroed, narrow(zeroed, dependencies, {group.name: group.labels[[0, 3, 4, 5]]}))
    small.prune()
    small.check(full=True)
    assert stored(small, "left", 1) == [5, 4]
    x = sample(model)
    before, now = (Engine().session(g.program()).run({"x": x}) for g in (zeroed, small))
    for name in ("y", "left"):
        assert relative(np.asarray(before[name]), np.asarray(now[name])) < 1e-5
    samples = np.random.default_rng(0).standard_normal((60, 3, 6, 6)).astype(np.float32)
    solved = shrink(model, samples, width=0.5, refine=0)
    found = Engine().session(Program(solved.model.SerializeToString())).run({"x": x})
    assert np.asarray(found["left"]).shape == (6, 5, 6, 6)
    assert relative(np.asarray(now["left"]), np.asarray(found["left"])) < 1e-5


def test_one_channel_that_is_taken_alone_must_stay() -> None:
    s, h = stem()
    s.keep("i", np.array(4)), s.keep("o", ints(1))
    s.op("Gather", f"{h} i", "a", axis=1)
    model = after(s, s.op("Mul", f"{s.conv('x', 'g', (3, 6))} {s.op('Unsqueeze', 'a o', 'b')}", "m"), 6)
    s.nodes.pop(), s.nodes.pop()
    s.conv("m", "z1", (6, K), 1), s.conv(h, "z2", (W, K), 1)
    s.op("GlobalAveragePool", s.add("z1", "z2", "z"), "y")
    model = s.model()
    _, dependencies = surveyed(model)
    assert {group.name: group.width for group in dependencies.shrinkable} == {"h": W - 1, "g": 6}
    _, small, _ = narrowed(model, h=[0, 1, 7])
    assert stored(small, "a", 1) == [2]


# -- what cannot follow ----------------------------------------------------------------------


def computed(value: Array, name: str) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A tensor that is not a constant although it never changes."""
    made = [node("Abs", f"{name}.c", name)]
    return made, {f"{name}.c": value}


def blocked(spelled: str, width: int = W, opset: int = 17, **stored_values: Any) -> onnx.ModelProto:
    """One node behind the stem; values given in brackets are computed."""
    nodes, values = list[onnx.NodeProto](), dict[str, Array]()
    for name, value in stored_values.items():
        if isinstance(value, list):
            more, constants = computed(np.asarray(value[0]), name)
            nodes += more
            values |= constants
        elif not isinstance(value, dict):
            values[name] = value
    op, inputs = spelled.split(" ", 1)
    nodes.append(node(op, inputs, **stored_values.get("attributes", {})))
    return one(nodes, width, values, opset)


def two_axes() -> onnx.ModelProto:
    """Joined along the channels and, tied by nothing, beside ones that lie on another axis."""
    s, h = stem()
    turned = s.op("Transpose", s.conv(h, "g", (W, 6)), "t", perm=[0, 2, 1, 3])
    return after(s, s.op("Concat", f"{h} {turned}", "m", axis=1), W + 6)


def beside_input() -> onnx.ModelProto:
    s, h = stem()
    wide = s.op("Concat", "x x x x", "x4", axis=1)
    return after(s, s.op("Concat", f"{h} {wide}", "m", axis=2), W)


def foreign() -> onnx.ModelProto:
    """A number of channels that becomes the size of something else."""
    s, h = stem()
    s.op("Shape", h, "shape"), s.keep("one", ints(1)), s.keep("lead", ints(-1)), s.keep("hw", ints(36))
    s.op("Gather", "shape one", "c")
    s.op("Reshape", f"g {s.op('Concat', 'lead c hw', 'target', axis=0)}", "t")
    s.nodes.insert(2, node("Conv", "x g.w", "g", pads=[1] * 4))
    s.store("g.w", W, 3, 3, 3), s.keep("back", ints(0, W, 6, 6))
    s.op("Reshape", "t back", "u")
    s.op("Sum", f"{s.conv(h, 'z1', (W, 6))} {s.conv('u', 'z2', (W, 6))}", "m")
    return after(s, "m", 6)


FIXED: dict[str, tuple[Any, str]] = {
    "slice from a computed start": (
        lambda: blocked("Slice h.r s e a", 8, s=[ints(4)], e=ints(W), a=ints(1)), "computes which channels it takes",
    ),
    "slice along computed axes": (
        lambda: blocked("Slice h.r s e a", s=ints(0), e=ints(6), a=[ints(2)]), "computes which channels it takes",
    ),
    "slice backwards": (
        lambda: blocked("Slice h.r s e a t", 4, s=ints(8), e=ints(4), a=ints(1), t=ints(-1)), "channels backwards",
    ),
    "gather at computed places": (
        lambda: blocked("Gather h.r i", 3, i=[ints(1, 2, 5)], attributes={"axis": 1}), "computed or form a table",
    ),
    "pad by reflection": (
        lambda: blocked("Pad h.r p", W + 2, p=ints(0, 1, 0, 0, 0, 1, 0, 0), attributes={"mode": "reflect"}),
        "pads the channel axis",
    ),
    "pad by less than nothing": (
        lambda: blocked("Pad h.r p", W - 2, p=ints(0, -1, 0, 0, 0, -1, 0, 0)), "pads the channel axis",
    ),
    "pad by computed sizes": (lambda: blocked("Pad h.r p", p=[ints(*(0,) * 8)]), "pads by sizes that are computed"),
    "resize channels": (
        lambda: blocked("Resize h.r - k", 2 * W, k=np.array([1, 2, 1, 1], FLOATS)), "resizes the channel axis",
    ),
    "resize by computed scales": (
        lambda: blocked("Resize h.r - k", k=[np.array([1, 1, 2, 2], FLOATS)]), "resizes the channel axis",
    ),
    "resize to other channels": (
        lambda: blocked("Resize h.r - - k", 2 * W, k=ints(2, 2 * W, 6, 6)), "changes the number of channels",
    ),
    "resize to computed sizes": (
        lambda: blocked("Resize h.r - - k", k=[ints(6, W, 6, 6)]), "computes the size of the channel axis",
    ),
    "tile channels by a computed number": (
        lambda: blocked("Tile h.r k", k=[ints(1, 1, 1, 1)]), "computes how often it repeats its channels",
    ),
    "channels on several axes": (two_axes, "joins channels that lie on several axes"),
    "beside the model's input": (beside_input, "with a tensor's that must stay"),
    "size of other channels": (lambda: foreign(), "the number of channels is read by Reshape 't'"),
}  # fmt: skip
"""Models whose first layer must stay, and what its reason says."""


@pytest.mark.parametrize("name", FIXED)
def test_what_cannot_follow_stays_with_the_reason(name: str) -> None:
    make, reason = FIXED[name]
    model = make()
    Engine().session(Program(model.SerializeToString()))
    _, dependencies = surveyed(model)
    frozen = dependencies.groups[0].frozen
    assert frozen is not None and reason in frozen


def test_computed_places_on_other_axes_are_no_matter() -> None:
    holds(blocked("Slice h.r s e a", s=[ints(1, 0)], e=[ints(5, 4)], a=ints(2, 3)))
    holds(blocked("Gather h.r i", i=[ints(1, 2, 5)], attributes={"axis": 3}))
    holds(blocked("Resize h.r - k", opset=18, k=[np.array([2, 2], FLOATS)], attributes={"axes": [2, 3]}))
