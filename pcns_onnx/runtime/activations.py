"""Running models over samples: whole prefixes, or segment by segment behind a moving cut.

A `ActivationStream` walks one graph from its inputs to its outputs while layers further on may still be
rewritten. At each `Cut` it runs only the `Segment` since the last one, from the tensors that are
still alive there; those are kept in memory up to a budget and on disk beyond it, so a whole
sequential re-fit costs one forward pass and the memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.activation_cache import ActivationCache
from pcns_onnx.runtime.engine import Engine, Tensors
from pcns_onnx.runtime.nonfinite import is_finite, source_of
from pcns_onnx.runtime.samples import Samples


@dataclass(frozen=True)
class Cut:
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
    def of(cls, stop: Cut, given: Sequence[str]) -> Segment:
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
    return ActivationStream(engine, samples, 0).advance(Cut(graph, outputs))


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


class ActivationStream:
    """Live tensors of one graph over all samples, at a cut that moves forward."""

    def __init__(self, engine: Engine, samples: Samples, budget: int) -> None:
        self._engine, self._samples = engine, samples
        self._store = ActivationCache(budget)
        self._live: tuple[str, ...] | None = None

    def advance(self, stop: Cut) -> Iterator[Tensors]:
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
