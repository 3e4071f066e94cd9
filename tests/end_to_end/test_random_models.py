"""Models put together at random: whatever goes together is found, and goes without a trace."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from builders.chains import K
from builders.contract import surveyed
from builders.models import relative, run
from builders.surgery import narrowed, permuted, sample, twins, unread
from builders.topologies import Sketch
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.columns import BlockKey, ChannelCovariance
from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.cost.model import Costs
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph, kept_classes
from pcns_onnx.progress import Progress
from pcns_onnx.reconstruction.sequential import refit
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples


class Wild(Sketch):
    """A model that grows step by step; `tensors` are all that can be built on, with their channels."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = np.random.default_rng(seed)
        self.tensors: list[tuple[str, int]] = []
        self.made = 0

    def name(self) -> str:
        self.made += 1
        return f"t{self.made}"

    def any(self) -> tuple[str, int]:
        """One of the tensors, mostly a late one."""
        return self.tensors[-1 - int(self.random.integers(0, min(4, len(self.tensors))))]

    def two(self) -> tuple[str, str, int]:
        """Two tensors of one width."""
        a, width = self.any()
        others = [name for name, w in self.tensors if w == width]
        return a, str(self.random.choice(others)), width

    def step(self) -> None:
        kinds = ("layer", "layer", "layer", "blocks", "deep", "act", "norm", "factor", "join", "join", "stack", "gate",
                 "shuffle", "slice", "choose")  # fmt: skip
        getattr(self, f"_{self.random.choice(kinds)}")()

    def put(self, name: str, width: int) -> None:
        self.tensors.append((name, width))

    def _layer(self) -> None:
        source, width = self.any()
        out = int(self.random.choice([4, 8]))
        bias = bool(self.random.random() < 0.7)
        self.put(self.conv(source, self.name(), (width, out), int(self.random.choice([1, 3])), bias=bias), out)

    def _blocks(self) -> None:
        source, width = self.any()
        group = int(self.random.choice([2, 4]))
        if width % group == 0:
            self.put(self.conv(source, self.name(), (width, 8), 1, group=group), 8)

    def _deep(self) -> None:
        source, width = self.any()
        times = int(self.random.choice([1, 1, 2]))
        self.put(self.conv(source, self.name(), (width, times * width), group=width), times * width)

    def _act(self) -> None:
        source, width = self.any()
        self.put(self.op(str(self.random.choice(["Relu", "Tanh", "HardSwish", "Neg"])), source, self.name()), width)

    def _norm(self) -> None:
        source, width = self.any()
        self.put(self.norm(source, self.name(), width), width)

    def _factor(self) -> None:
        source, width = self.any()
        name = self.name()
        constant = self.store(f"{name}.c", width, 1, 1, mean=1.0, spread=0.3)
        self.put(self.op(str(self.random.choice(["Mul", "Add"])), f"{source} {constant}", name), width)

    def _join(self) -> None:
        a, b, width = self.two()
        self.put(self.op(str(self.random.choice(["Add", "Mul", "Max", "Sub"])), f"{a} {b}", self.name()), width)

    def _stack(self) -> None:
        (a, one), (b, two) = self.any(), self.any()
        if one + two <= 24:
            self.put(self.op("Concat", f"{a} {b}", self.name(), axis=1), one + two)

    def _gate(self) -> None:
        source, width = self.any()
        mean = self.op("GlobalAveragePool", source, self.name())
        gate = self.op("Sigmoid", self.conv(mean, self.name(), (width, width), 1), self.name())
        self.put(self.op("Mul", f"{source} {gate}", self.name()), width)

    def _shuffle(self) -> None:
        source, width = self.any()
        if width % 4:
            return
        name = self.name()
        split, whole = np.array([0, 2, width // 2, 6, 6]), np.array([0, width, 6, 6])
        self.op("Reshape", f"{source} {self.keep(f'{name}.s', split)}", f"{name}.a")
        self.op("Transpose", f"{name}.a", f"{name}.b", perm=[0, 2, 1, 3, 4])
        self.put(self.op("Reshape", f"{name}.b {self.keep(f'{name}.w', whole)}", name), width)

    def _slice(self) -> None:
        source, width = self.any()
        if width < 4:
            return
        start = int(self.random.integers(0, width // 2))
        name = self.name()
        ends = {"s": start, "e": start + width // 2, "a": 1}
        given = (self.keep(f"{name}.{key}", np.array([value])) for key, value in ends.items())
        self.put(self.op("Slice", " ".join((source, *given)), name), width // 2)

    def _choose(self) -> None:
        a, b, width = self.two()
        over = self.op("Greater", f"{a} {b}", self.name())
        self.put(self.op("Where", f"{over} {a} {b}", self.name()), width)


def wild(seed: int, steps: int) -> onnx.ModelProto:
    """A random model of so many steps; the last layer reads what nothing else does."""
    w = Wild(seed)
    w.put("x", 3)
    w._layer()
    w._layer()
    while w.made < steps:
        w.step()
    read = {name for item in w.nodes for name in item.input}
    ends = [(name, width) for name, width in w.tensors if name not in read and name != "x"]
    w.op("Concat", " ".join(name for name, _ in ends), "end", axis=1)
    w.conv("end", "y", (sum(width for _, width in ends), K))
    return w.model()


def alike(dependencies: DependencyGraph) -> list[NDArray[np.int64]]:
    """Classes that could change places: those that lie in the same tensors, and only once in each."""
    often: set[int] = set()
    for labels in dependencies.labels.values():
        found, counts = np.unique(labels, return_counts=True)
        often.update(found[counts > 1].tolist())
    return [labels[~np.isin(labels, list(often))] for labels in twins(dependencies)]


def halves(dependencies: DependencyGraph, random: np.random.Generator) -> tuple[dict[int, int], NDArray[np.int64]]:
    """Classes that become copies of others: copy -> original, and the copies."""
    copies: dict[int, int] = {}
    for labels in alike(dependencies):
        mixed = random.permutation(labels)
        half = len(mixed) // 2
        copies |= zip(mixed[half : 2 * half].tolist(), mixed[:half].tolist(), strict=True)
    return copies, np.array(sorted(copies), dtype=np.int64)


def some(dependencies: DependencyGraph, random: np.random.Generator) -> NDArray[np.int64]:
    """Any classes, as long as every tensor keeps one."""
    gone: set[int] = set()
    for group in dependencies.shrinkable:
        gone.update(random.permutation(group.labels)[: random.integers(1, group.width)].tolist())
    for labels in dependencies.labels.values():
        if gone.issuperset(labels.ravel().tolist()):
            gone.discard(int(labels.flat[0]))
    return np.array(sorted(gone), dtype=np.int64)


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))])
def test_whatever_goes_together_goes_without_a_trace(seed: int) -> None:
    model = wild(seed, 14)
    graph, dependencies = surveyed(model)
    assert narrow(graph, dependencies, {group.name: group.labels for group in dependencies.groups}) == ()
    random = np.random.default_rng(seed)
    x = sample(model)
    expected = run(graph.proto, x)
    assert np.isfinite(expected).all()

    order = dict[int, int]()
    for labels in alike(dependencies):
        order |= zip(labels.tolist(), random.permutation(labels).tolist(), strict=True)
    assert relative(expected, run(permuted(graph, dependencies, order).proto, x)) < 1e-4

    gone = some(dependencies, random)
    keep = narrowed(dependencies, gone)
    zeroed = unread(graph, dependencies, gone)
    small = apply(zeroed, narrow(zeroed, dependencies, keep))
    small.prune()
    small.check(full=True)
    assert relative(run(zeroed.proto, x), run(small.proto, x)) < 1e-4

    after = build_dependency_graph(small)
    costs = Costs(dependencies, {"params": graph.parameters}, {"params": graph.parameters}).of_classes(
        kept_classes(dependencies, keep)
    )
    counted = sum(layer.macs for layer in after.layers) + sum(node.macs for node in after.unsolved)
    assert costs[0] == pytest.approx(counted, abs=len(after.layers))

    copies, gone = halves(dependencies, random)
    keep = narrowed(dependencies, gone)
    twin = permuted(graph, dependencies, copies, reads=False)
    data = np.random.default_rng(5).standard_normal((64, 3, 6, 6)).astype(np.float32)
    calibration = Calibration(Engine(threads=1), Samples(open_data(data, twin.inputs), 32), 0, Progress())
    seen: dict[BlockKey, dict[str, ChannelCovariance]] = {}
    for read in read_groups(calibration, twin, dependencies, [g for g in dependencies.shrinkable if g.name in keep]):
        for place, view in read.covariances().items():
            seen.setdefault(place, {})[read.group.name] = view
    patch = narrow(twin, dependencies, keep)
    edits = refit(calibration, twin, apply(twin, patch), dependencies, keep, seen).patch
    assert relative(run(twin.proto, x), run(apply(apply(twin, patch), edits).proto, x)) < 1e-3
