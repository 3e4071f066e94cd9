"""Running models over samples: whole prefixes, or segment by segment behind a moving cut.

A `Tape` walks one graph from its inputs to its outputs while layers further on may still be
rewritten. At each `Stop` it runs only the `Segment` since the last one, from the tensors that are
still alive there; those are kept in memory up to a budget and on disk beyond it, so a whole
sequential re-fit costs one forward pass and the memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data import Batch, Dataset
from pcns_onnx.errors import InputError
from pcns_onnx.files import Scratch
from pcns_onnx.graph import Graph, Program
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.nonfinite import is_finite, source_of

Tensors = dict[str, Array]


KEPT = 1 << 25
"""Bytes of batches that are kept from one pass to the next; larger data is read anew."""


@dataclass(frozen=True)
class Samples:
    """A dataset as one model takes it: in batches of `batch`, whole ones only if `fixed`."""

    data: Dataset
    batch: int
    fixed: bool = False
    _kept: list[Batch] = field(default_factory=list, repr=False, compare=False)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        held: list[Batch] = []
        size = 0
        for batch in self.data.batches(self.batch):
            if self.fixed and batch.size != self.batch:
                continue
            size += sum(array.nbytes for array in batch.feeds.values())
            if size <= KEPT:
                held.append(batch)
            yield batch
        if size <= KEPT and not self._kept:
            self._kept.extend(held)

    @property
    def batches(self) -> int:
        """Number of batches in one pass, for progress."""
        return -(-self.count // self.batch)

    @property
    def count(self) -> int:
        """Samples that are used; reads the data once where its length is not known."""
        if self.data.count is None:
            return sum(batch.size for batch in self)
        return self.data.count - (self.data.count % self.batch if self.fixed else 0)


@dataclass(frozen=True)
class Stop:
    """Where a tape goes next: in front of node `before` (its key), None for the end of `graph`.

    `wanted` are the tensors to see there; they may also be made by `before` itself or behind it, whose nodes are
    then run too. `later` are those that will be wanted further on: only what they need stays alive. `finite`:
    whether it is an error where one of the wanted is not.
    """

    graph: Graph
    wanted: Sequence[str]
    before: str | None = None
    later: Sequence[str] = ()
    finite: bool = True


@dataclass(frozen=True)
class Segment:
    """What a tape runs on its way to a stop, without the graph: another process can run it, too.

    `program` makes `live`, which stays alive there, and `wanted` of what was alive before; None where nothing has
    to be made.
    """

    program: Program | None
    live: tuple[str, ...]
    wanted: tuple[str, ...]
    finite: bool

    @classmethod
    def of(cls, stop: Stop, given: Sequence[str]) -> Segment:
        """From the tensors `given` to a stop."""
        live = _live_at(stop.graph, stop.before, given, stop.wanted, stop.later)
        computed = [name for name in dict.fromkeys((*live, *stop.wanted)) if name and name not in given]
        program = stop.graph.extract(given, computed).program() if computed else None
        return cls(program, live, tuple(name for name in stop.wanted if name), stop.finite)


class NotFinite(Exception):
    """Some of these tensors hold NaN or Inf, in a batch of this number (of tape number `side`)."""

    side = 0

    def __init__(self, index: int, names: Sequence[str]) -> None:
        super().__init__(index, names)
        self.index, self.names = index, names


class Runner:
    """A segment, compiled."""

    def __init__(self, engine: Engine, segment: Segment) -> None:
        self._engine, self._segment = engine, segment
        self._session = None if segment.program is None else engine.session(segment.program)

    def run(self, index: int, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """What stays alive of batch number `index`, and what was wanted; raises `NotFinite`."""
        made = self._session.run(tensors) if self._session is not None else {}
        current, segment = {**tensors, **made}, self._segment
        if segment.finite:
            bad = [name for name in segment.wanted if not is_finite(current[name])]
            if bad:
                raise NotFinite(index, bad)
        live = {name: current[name] for name in segment.live}
        return live, {name: self._engine.xp.asarray(current[name]) for name in segment.wanted}


def run_batches(engine: Engine, graph: Graph, samples: Samples, outputs: Sequence[str]) -> Iterator[Tensors]:
    """The named tensors of `graph`, batch by batch; only what they need is computed.

    Raises `InputError` where one of them is not finite.
    """
    return Tape(engine, samples, 0).advance(Stop(graph, outputs))


def traced(engine: Engine, graph: Graph, samples: Samples, found: NotFinite) -> InputError:
    """The error that says where NaN or Inf come from."""
    return source_of(engine, graph, next(islice(samples, found.index, None)), found.names[0])


def measure(engine: Engine, graph: Graph, samples: Samples, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors that cannot be inferred, from a run on one sample and one on two.

    A size that grows with the batch is negative: that of one sample. What else changes is left out.
    """
    batch = next(iter(samples), None)
    if batch is None:
        return {}
    session = engine.session(graph.extract(inputs_of(graph), names).program())
    one = {name: tuple(made.shape) for name, made in session.run(batch.feeds).items() if hasattr(made, "shape")}
    if samples.fixed:
        return one
    twice = session.run({name: np.concatenate([array, array]) for name, array in batch.feeds.items()})
    found = {}
    for name, sizes in one.items():
        both = list(zip(sizes, twice[name].shape, strict=False))
        if len(sizes) == twice[name].ndim and all(b in (a, 2 * a) for a, b in both):
            found[name] = tuple(a if a == b else -a for a, b in both)
    return found


class Tape:
    """Live tensors of one graph over all samples, at a cut that moves forward."""

    def __init__(self, engine: Engine, samples: Samples, budget: int) -> None:
        self._engine, self._samples = engine, samples
        self._store = _Store(budget)
        self._live: tuple[str, ...] | None = None

    def advance(self, stop: Stop) -> Iterator[Tensors]:
        """Move the cut to `stop` and yield what is wanted there for every batch; raises `InputError`."""
        first = self._live is None
        segment = Segment.of(stop, self._given(stop.graph))
        runner = Runner(self._engine, segment)
        source: Iterator[Tensors] = (b.feeds for b in self._samples) if first else self._store.read()
        for index, tensors in enumerate(source):
            try:
                live, wanted = runner.run(index, tensors)
            except NotFinite as found:
                raise traced(self._engine, stop.graph, self._samples, found) from None
            self._store.write(index, live)
            yield wanted
        self._live = segment.live

    def live(self, graph: Graph, before: str, later: Sequence[str]) -> tuple[str, ...]:
        """The tensors made in front of node `before` that `later` needs."""
        return _live_at(graph, before, self._given(graph), (), later)

    def _given(self, graph: Graph) -> tuple[str, ...]:
        return inputs_of(graph) if self._live is None else self._live

    def close(self) -> None:
        """Remove what was written to disk."""
        self._store.close()


def inputs_of(graph: Graph) -> tuple[str, ...]:
    """The names of a graph's inputs, from which a tape starts."""
    return tuple(spec.name for spec in graph.inputs)


def _live_at(
    graph: Graph, before: str | None, given: Sequence[str], wanted: Sequence[str], later: Sequence[str]
) -> tuple[str, ...]:
    """Tensors made up to the cut that `later` still needs, in a fixed order.

    Made are all nodes in front of `before` and whatever `wanted` takes beyond it; what is `given`
    was made earlier, perhaps beyond this cut too.
    """
    made_by = graph.producers
    done: set[str] = set()
    for node in graph.nodes:
        if node.key == before:
            break
        done.add(node.key)
    pending = list(wanted)
    while pending:
        maker = made_by.get(pending.pop())
        if maker is not None and maker.key not in done:
            done.add(maker.key)
            pending += [*maker.inputs, *maker.captures]
    live: dict[str, None] = {}
    seen: set[str] = set()
    pending = list(later)
    while pending:
        name = pending.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        maker = made_by.get(name)
        if name in given or (maker is not None and maker.key in done):
            if not graph.is_constant(name):
                live[name] = None
        elif maker is not None:
            pending += [*maker.inputs, *maker.captures]
    return tuple(sorted(live))


class _Store:
    """Batches of named tensors: in memory up to `budget` bytes, as .npy files beyond it."""

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._batches: list[dict[str, Array | Path]] = []
        self._folder: Scratch | None = None

    def write(self, index: int, tensors: Tensors) -> None:
        if index == len(self._batches):
            self._batches.append({})
        self._forget(self._batches[index])
        kept: dict[str, Array | Path] = {}
        for name, array in tensors.items():
            size = int(array.nbytes)
            if self._used + size <= self._budget:
                self._used += size
                kept[name] = array
            else:
                kept[name] = self._spill(index, len(kept), array)
        self._batches[index] = kept

    def read(self) -> Iterator[Tensors]:
        for batch in self._batches:
            yield {name: np.load(item) if isinstance(item, Path) else item for name, item in batch.items()}

    def close(self) -> None:
        self._batches.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _forget(self, batch: dict[str, Array | Path]) -> None:
        for item in batch.values():
            if isinstance(item, Path):
                item.unlink()
            else:
                self._used -= int(item.nbytes)

    def _spill(self, index: int, position: int, array: Array) -> Path:
        if self._folder is None:
            self._folder = Scratch()
        path = Path(self._folder.name) / f"{index}-{position}.npy"
        try:
            np.save(path, to_numpy(array))
        except OSError as error:
            raise InputError(
                f"cannot spill activations to '{path.parent}': {error.strerror or error}; set TMPDIR to a larger disk"
            ) from None
        return path


class Positions:
    """Which output positions of a layer are sampled in each batch: seeded, the same for any run.

    `per_sample` positions are drawn anew for every batch, out of as many as its samples have.
    """

    def __init__(self, wanted_rows: int, samples: int, seed: tuple[int, ...]) -> None:
        self._per_sample = max(1, -(-wanted_rows // max(samples, 1)))
        self.samples = samples
        self._seed = seed

    def draw(self, batch: int, available: int) -> NDArray[np.int64] | None:
        """Sorted positions out of `available` for one batch; None means all of them."""
        if self._per_sample >= available:
            return None
        generator = np.random.default_rng([*self._seed, batch])
        return np.sort(generator.choice(available, self._per_sample, replace=False)).astype(np.int64)
