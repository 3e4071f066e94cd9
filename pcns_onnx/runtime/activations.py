"""Running models over samples: whole prefixes, or segment by segment behind a moving cut.

An `ActivationStream` runs one graph from its inputs to its outputs while layers further on may still be
rewritten. At each `Cut` it runs only the `Segment` since the last one, from the tensors that are
still alive there; those are kept in memory up to a budget and on disk beyond it, so a whole
sequential re-fit costs one forward pass and the memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pcns_onnx.data.batch import joined
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.activation_cache import ActivationCache
from pcns_onnx.runtime.engine import Engine, Tensors
from pcns_onnx.runtime.nonfinite import is_finite, source_of
from pcns_onnx.runtime.samples import Samples


@dataclass(frozen=True)
class Cut:
    """Where a stream goes next: in front of node `before` (its key), None for the end of `graph`.

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
    """What a stream runs on its way to a cut, without the graph: another process can run it, too.

    `program` makes `live`, which stays alive there, and `wanted` of what was alive before; None where nothing has
    to be made.
    """

    program: Program | None
    live: tuple[str, ...]
    wanted: tuple[str, ...]
    finite: bool

    @classmethod
    def of(cls, cut: Cut, sources: Sequence[str]) -> Segment:
        """From the tensors `sources` to a cut."""
        live = _live_at(cut.graph, cut.before, sources, cut.wanted, cut.later)
        computed = [name for name in dict.fromkeys((*live, *cut.wanted)) if name and name not in sources]
        program = cut.graph.extract(sources, computed).program() if computed else None
        return cls(program, live, tuple(name for name in cut.wanted if name), cut.finite)


class NotFinite(Exception):
    """Some of these tensors hold NaN or Inf, in a batch of this number (of stream number `side`)."""

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
        computed = self._session.run(tensors) if self._session is not None else {}
        current, segment = {**tensors, **computed}, self._segment
        if segment.finite:
            bad = [name for name in segment.wanted if not is_finite(current[name])]
            if bad:
                raise NotFinite(index, bad)
        live = {name: current[name] for name in segment.live}
        return live, {name: self._engine.xp.asarray(current[name]) for name in segment.wanted}


def run_batches(
    engine: Engine, graph: Graph, samples: Samples, outputs: Sequence[str], *, finite: bool = True
) -> Iterator[Tensors]:
    """The named tensors of `graph`, batch by batch; only what they need is computed.

    Raises `InputError` where one of them is not finite and has to be.
    """
    return ActivationStream(engine, samples, 0).advance(Cut(graph, outputs, finite=finite))


def traced(engine: Engine, graph: Graph, samples: Samples, not_finite: NotFinite) -> InputError:
    """The error that says where NaN or Inf come from."""
    return source_of(engine, graph, next(islice(samples, not_finite.index, None)), not_finite.names[0])


def measure(engine: Engine, graph: Graph, samples: Samples, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors that cannot be inferred, from a run on one sample and one on two.

    A size that grows with the batch is negative: that of one sample. What else changes is left out. Samples that are
    to be run one by one are, and no size is known to grow.
    """
    batch = next(iter(samples), None)
    if batch is None:
        return {}
    session = engine.session(graph.extract(inputs_of(graph), names).program())
    one = {name: tuple(tensor.shape) for name, tensor in session.run(batch.feeds).items() if hasattr(tensor, "shape")}
    if samples.fixed or samples.data.is_single:
        return one
    twice = session.run(joined([batch, batch]).feeds)
    shapes = {}
    for name, sizes in one.items():
        both = list(zip(sizes, twice[name].shape, strict=False))
        if len(sizes) == twice[name].ndim and all(b in (a, 2 * a) for a, b in both):
            shapes[name] = tuple(a if a == b else -a for a, b in both)
    return shapes


class ActivationStream:
    """Live tensors of one graph over all samples, at a cut that moves forward."""

    def __init__(self, engine: Engine, samples: Samples, budget: int) -> None:
        self._engine, self._samples = engine, samples
        self._store = ActivationCache(budget)
        self._live: tuple[str, ...] | None = None

    def advance(self, cut: Cut) -> Iterator[Tensors]:
        """Move on to `cut` and yield what is wanted there for every batch; raises `InputError`."""
        first = self._live is None
        segment = Segment.of(cut, self._sources(cut.graph))
        runner = Runner(self._engine, segment)
        source: Iterator[Tensors] = (b.feeds for b in self._samples) if first else self._store.read()
        for index, tensors in enumerate(source):
            try:
                live, wanted = runner.run(index, tensors)
            except NotFinite as not_finite:
                raise traced(self._engine, cut.graph, self._samples, not_finite) from None
            self._store.write(index, live)
            yield wanted
        self._live = segment.live

    def live(self, graph: Graph, before: str, later: Sequence[str]) -> tuple[str, ...]:
        """The tensors made in front of node `before` that `later` needs."""
        return _live_at(graph, before, self._sources(graph), (), later)

    def _sources(self, graph: Graph) -> tuple[str, ...]:
        return inputs_of(graph) if self._live is None else self._live

    def close(self) -> None:
        """Remove what was written to disk."""
        self._store.close()


def inputs_of(graph: Graph) -> tuple[str, ...]:
    """The names of a graph's inputs, from which a stream starts."""
    return tuple(spec.name for spec in graph.inputs)


def _live_at(
    graph: Graph, before: str | None, sources: Sequence[str], wanted: Sequence[str], later: Sequence[str]
) -> tuple[str, ...]:
    """Tensors made up to the cut that `later` still needs, in a fixed order; of `Graph.anew` what these are made of.

    Made are all nodes in front of `before` and whatever `wanted` takes beyond it; what is in `sources`
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
    visited: set[str] = set()
    pending = list(later)
    while pending:
        name = pending.pop()
        if name in visited or not name:
            continue
        visited.add(name)
        maker = made_by.get(name)
        is_made = name in sources or (maker is not None and maker.key in done)
        if is_made and (maker is None or name not in graph.anew):
            if not graph.is_constant(name):
                live[name] = None
        elif maker is not None:
            pending += [*maker.inputs, *maker.captures]
    return tuple(sorted(live))
