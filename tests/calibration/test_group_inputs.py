"""How layers read groups, against brute force: columns by class, their covariance, the prior without what goes."""

from __future__ import annotations

import array_api_strict
import numpy as np
import onnx
import pytest

from builders.chains import C, ints
from builders.contract import surveyed
from builders.models import Array, run
from builders.surgery import sample, tensor
from builders.topologies import TOPOLOGIES, Sketch
from pcns_onnx.calibration import calibration
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import ChannelCovariance, Columns, mixed_prior
from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.calibration.live_rows import RowChoice
from pcns_onnx.calibration.ranking import mixing
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import ConvGroup, Layer
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.ridge import Fit, fit
from pcns_onnx.ops.linear import ConvOp, RowOp
from pcns_onnx.progress import Progress
from pcns_onnx.reconstruction.targets import TargetObserver
from pcns_onnx.rewrite.layer_weights import stored_weight
from pcns_onnx.runtime.activations import ActivationStream, Cut
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Positions, Samples

CONV = ConvOp((2,), (1,), (1,), None, "NOTSET")


def part(reads: list[int], op: RowOp | ConvOp | None = None) -> ConvGroup:
    return ConvGroup(op or RowOp(False), np.array(reads), np.arange(3), slice(0, 3))


# -- columns ---------------------------------------------------------------------------------


def test_columns_are_grouped_by_class() -> None:
    found = Columns.of(part([7, -1, 3, 5, 3]), np.array([3, 7]))
    assert found.classes.tolist() == [3, 7]
    assert found.index.tolist() == [[2, 4], [0, -1]]  # 7 has one column less, which a column of zeros makes up for
    assert found.taps == 2 and found.places(np.array([7])).tolist() == [1]


def test_columns_of_a_kernel_are_all_its_taps() -> None:
    found = Columns.of(part([4, 9, 4], CONV), np.array([4, 9]))
    assert found.index.tolist() == [[0, 2, 3, 5], [1, 4, -1, -1]]


def test_a_class_that_is_not_read_has_no_columns() -> None:
    found = Columns.of(part([1, 2]), np.array([5, 6]))
    assert (len(found.classes), found.taps) == (0, 0)


# -- what is seen ----------------------------------------------------------------------------


def repeated() -> onnx.ModelProto:
    """A layer that reads some channels twice, some once, others not at all, and two of the model's own."""
    s = Sketch("N", 5)
    h = s.relu(s.gemm("x", "h", (5, C)))
    for name, values in (("start", ints(0)), ("six", ints(6)), ("three", ints(3)), ("two", ints(2)), ("axis", ints(1))):
        s.keep(name, values)
    s.op("Slice", f"{h} start six axis", "a")
    s.op("Slice", f"{h} start three axis", "b")
    s.op("Slice", "x start two axis", "c")
    s.op("Concat", "a c b", "joined", axis=1)
    s.gemm("joined", "u", (11, 3))
    s.gemm(h, "v", (C, 3))
    s.add("u", "v", "y")
    return s.model()


MODELS = {
    "repeated": repeated,
    **{name: TOPOLOGIES[name] for name in ("grouped in two", "residual flattened", "shuffle", "inverted residual")},
}


def setup_of(graph: Graph, x: Array) -> Calibration:
    return Calibration(Engine(threads=1), Samples(open_data(x, graph.inputs), 32), 0, Progress())


def by_class(columns: Array, owners: Array, labels: Array) -> tuple[Array, Array]:
    """Columns (R, n) in the order of their classes, and the classes; gaps are zero."""
    classes = np.unique(owners[np.isin(owners, labels)])
    most = max(int((owners == label).sum()) for label in classes)
    found = []
    for label in classes:
        mine = columns[:, owners == label]
        found.append(np.pad(mine, ((0, 0), (0, most - mine.shape[1]))))
    return np.concatenate(found, axis=1), classes


@pytest.mark.parametrize("name", MODELS)
def test_readings_are_the_covariance_of_the_columns_by_class(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ROWS_PER_COLUMN", (10**6, 10**6))  # every position
    graph, dependencies = surveyed(MODELS[name]())
    x = np.random.default_rng(3).standard_normal((60, *sample(graph.proto).shape[1:])).astype(np.float32)
    found = list(read_groups(setup_of(graph, x), graph, dependencies, dependencies.shrinkable))
    assert [read.group for read in found] == list(dependencies.shrinkable)
    for read in found:
        group = read.group
        assert {name for name, _ in read.layers} == set(group.readers)
        for (reader, block), reading in read.layers.items():
            layer = dependencies.layer(reader)
            mine = layer.parts[block]
            source = x if layer.source == "x" else tensor(graph, layer.source, x)
            rows, owners = mine.op.inputs(source, None).astype(np.float64), mine.op.owners(mine.reads)
            expected, classes = by_class(rows, owners, group.labels)
            matrix, _ = by_class(mine.op.matrix(stored_weight(graph, layer)), owners, group.labels)
            np.testing.assert_array_equal(group.labels[reading.among(group.width)], classes)
            np.testing.assert_allclose(reading.covariance, np.cov(expected.T, bias=True), rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(reading.matrix, matrix)
            seen = read.covariances()[reader, block]
            np.testing.assert_array_equal(seen.classes, classes)
            assert reading.rows == len(rows)


def test_a_layer_that_reads_some_of_a_group_says_which() -> None:
    graph, dependencies = surveyed(repeated())
    x = sample(graph.proto)
    (read,) = read_groups(setup_of(graph, x), graph, dependencies, dependencies.shrinkable)
    some, every = read.layers["u", 0], read.layers["v", 0]
    assert some.places is not None and some.places.tolist() == [0, 1, 2, 3, 4, 5]
    assert (some.channels, some.taps, every.channels, every.taps) == (6, 2, C, 1)
    assert every.places is None


# -- the prior -------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
def test_the_prior_is_brute_force(xp: object) -> None:
    """Two groups beside each other, one in part and with a gap, beside channels of the model's own."""
    rng = np.random.default_rng(0)
    reads = [10, 11, 12, -1, 20, 10, 21, 11]  # 12 stands once, 10 and 11 twice
    x = rng.standard_normal((50, 9))
    views = {
        "a": ChannelCovariance(np.array([10, 11, 12]), np.cov(x[:, :3].T, bias=True)),
        "b": ChannelCovariance(np.array([20, 21]), np.cov(x[:, 3:5].T, bias=True)),
    }
    keep = {"a": np.array([10, 12, 14]), "b": np.array([21])}
    matrix = rng.standard_normal((3, 8))
    seen = {name: ChannelCovariance(view.classes, xp.asarray(view.covariance)) for name, view in views.items()}  # type: ignore[attr-defined]
    found = to_numpy(mixed_prior(xp.asarray(matrix), part(reads), seen, keep))  # type: ignore[attr-defined]
    a, b = mixing(views["a"].covariance, np.array([0, 2])), mixing(views["b"].covariance, np.array([1]))
    first = {10: matrix[:, 0], 11: matrix[:, 1], 12: matrix[:, 2]}
    second = {10: matrix[:, 5], 11: matrix[:, 7], 12: np.zeros(3)}
    expected = {
        0: sum(first[label] * a[i, 0] for i, label in enumerate((10, 11, 12))),
        2: sum(first[label] * a[i, 1] for i, label in enumerate((10, 11, 12))),
        3: matrix[:, 3],
        5: sum(second[label] * a[i, 0] for i, label in enumerate((10, 11, 12))),
        6: matrix[:, 6] + matrix[:, 4] * b[0, 0],
    }
    np.testing.assert_allclose(found, np.stack(list(expected.values()), axis=1), atol=1e-8)


def test_a_group_that_is_not_narrowed_leaves_the_prior_alone() -> None:
    matrix = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_array_equal(mixed_prior(matrix, part([1, 2, 3, 3]), {}, {}), matrix)


# -- the evidence ----------------------------------------------------------------------------


def evidence_of(blocks: int, had: bool, rows: list[Array]) -> tuple[list[Array], list[Fit], Array, Array]:
    """Rows of a grouped 1x1 Conv, solved block by block from its exact outputs plus what is there already."""
    rng = np.random.default_rng(1)
    op = ConvOp((1,), (1,), (1,), None, "NOTSET", blocks)
    weight, x = rng.standard_normal((6, 4 // blocks, 1)), rng.standard_normal((200, 4, 3)).astype(np.float32)
    parts = [ConvGroup(op.part(b), np.arange(4), np.arange(6), slice(0, 1)) for b in range(blocks)]
    y = np.concatenate(
        [np.einsum("kc,ncp->nkp", p.op.matrix(weight), x[:, b * 4 // blocks : (b + 1) * 4 // blocks])
         for b, p in enumerate(parts)], axis=1
    )  # fmt: skip
    stays = np.concatenate([b * (6 // blocks) + np.asarray(r) for b, r in enumerate(rows)])
    there = rng.standard_normal((200, len(stays), 3)) if had else None
    target = y.copy()
    if there is not None:
        target[:, stays] += there
    sides: list[dict[str, Array]] = [{"x": x} if there is None else {"x": x, "had": there}, {"y": target}]
    batches = [[{name: a[i : i + 50] for name, a in side.items()} for side in sides] for i in (0, 50, 100)]
    choice = RowChoice(Positions(10**6, 150, (0,)), parts[0].op)
    gathered = TargetObserver(parts, [np.asarray(r) for r in rows], choice, "x", "y", "had")
    for index, batch in enumerate(batches):
        if index == 0:
            gathered.begin(batch)
        gathered.update(index, batch)
    fits = [fit(e, np.zeros((len(r), 4 // blocks))) for e, r in zip(gathered.evidence, rows, strict=True)]
    return [p.op.matrix(weight)[r] for p, r in zip(parts, rows, strict=True)], fits, weight, x


@pytest.mark.parametrize("had", [True, False])
@pytest.mark.parametrize(
    ("blocks", "rows"), [(1, [[0, 1, 2, 3, 4, 5]]), (1, [[1, 4]]), (2, [[0, 1, 2], [0, 1, 2]]), (2, [[0, 2], [0, 2]])]
)
def test_every_block_is_solved_from_its_own_channels(blocks: int, rows: list[Array], had: bool) -> None:
    expected, fits, _, _ = evidence_of(blocks, had, rows)
    for matrix, found in zip(expected, fits, strict=True):
        np.testing.assert_allclose(found.matrix, matrix, atol=1e-4)
        np.testing.assert_allclose(found.bias, 0, atol=1e-4)
        assert found.error < 1e-6 and found.rows == 450
    whole = Fit.joined(fits)
    np.testing.assert_array_equal(whole.matrix, np.concatenate([f.matrix for f in fits]))
    np.testing.assert_array_equal(whole.bias, np.concatenate([f.bias for f in fits]))
    assert whole.ridge == max(f.ridge for f in fits) and whole.error == np.mean([f.error for f in fits])


# -- the cut beyond a layer ------------------------------------------------------------------


def test_what_lies_beyond_the_cut_is_there_when_it_is_wanted() -> None:
    """The target of a block's last layer is the sum behind it, and the next layer's input lies behind that."""
    model = TOPOLOGIES["two blocks"]()
    graph, dependencies = surveyed(model)
    x = np.random.default_rng(0).standard_normal((10, 3, 6, 6)).astype(np.float32)
    stream = ActivationStream(Engine(threads=1), Samples(open_data(x, graph.inputs), 4), 1 << 20)
    stops = [("a1", ["a1"]), ("a2", ["a", "stem.r"]), ("b1", ["a.r", "b1"]), ("b2", ["b", "b1.r"]), ("y", ["y"])]
    try:
        for at, (layer, wanted) in enumerate(stops):
            later = [name for _, names in stops[at + 1 :] for name in names]
            batches = list(stream.advance(Cut(graph, wanted, dependencies.layer(layer).key, later)))
            assert len(batches) == 3
            for name in wanted:
                together = np.concatenate([to_numpy(batch[name]) for batch in batches])
                np.testing.assert_allclose(together, tensor(graph, name, x), rtol=1e-4, atol=1e-5)
    finally:
        stream.close()


def test_what_was_made_beyond_the_cut_is_not_made_again() -> None:
    graph, dependencies = surveyed(TOPOLOGIES["late sum"]())
    x = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float32)
    stream = ActivationStream(Engine(threads=1), Samples(open_data(x, graph.inputs), 4), 1 << 20)
    try:
        for layer, wanted, later in (("a2", "sum", ["b", "c", "y"]), ("b", "b", ["c", "y"]), ("c", "c", ["y"])):
            (batch,) = stream.advance(Cut(graph, [wanted], dependencies.layer(layer).key, later))
            np.testing.assert_allclose(to_numpy(batch[wanted]), tensor(graph, wanted, x), rtol=1e-4, atol=1e-5)
    finally:
        stream.close()


def test_the_readers_of_a_part_are_told_apart_from_those_of_all(rng: np.random.Generator) -> None:
    """A model in which one layer reads half of a group still runs at any width."""
    model = repeated()
    graph, dependencies = surveyed(model)
    assert [layer.name for layer in readers(dependencies)] == ["u", "v"]
    x = rng.standard_normal((5, 5)).astype(np.float32)
    assert run(graph.proto, x).shape == (5, 3)


def readers(dependencies: DependencyGraph) -> list[Layer]:
    return [dependencies.layer(name) for name in dependencies.shrinkable[0].readers]


def test_a_mixture_leans_on_no_channel_that_hardly_moves() -> None:
    """With few samples, the last thousandth of a channel goes with anything: elsewhere it would be multiplied up."""
    rng = np.random.default_rng(0)
    seen, other = (rng.standard_normal((rows, 20)) for rows in (14, 2000))
    size = np.ones(20)
    size[:3] = 1e-3
    seen, other = seen * size, other * np.where(size < 1, 0.05, 1.0)  # and elsewhere it moves
    keep = np.arange(12)
    mixture = mixing(np.cov(seen.T, bias=True), keep)
    missed = other - other[:, keep] @ mixture.T
    np.testing.assert_array_equal(mixture[keep], np.eye(12))
    assert np.abs(mixture[:, :3]).max() <= 1 / 0.03
    assert (missed**2).sum() < 10 * (other[:, 12:] ** 2).sum()
