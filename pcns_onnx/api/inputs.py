"""What goes in: the model in the form that is solved, samples as it takes them, and what is known of its sizes.

Where there are no samples, noise in the shape of the inputs stands in: it shows sizes and speed, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pcns_onnx.api.options import HEADS, Options
from pcns_onnx.data import Dataset, DataSource, open_data, split
from pcns_onnx.dependency.groups import Census, survey
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.ops import Heads
from pcns_onnx.rewrite.constant_shapes import settled
from pcns_onnx.rewrite.fold_batch_norm import explicit_biases, fold_batch_norms
from pcns_onnx.runtime.activations import Samples, measure
from pcns_onnx.runtime.engine import Engine


@dataclass(frozen=True)
class Canonical:
    """The original, and the form that is solved: norms folded, every layer with a bias.

    `typed` has the original's storage types, `twin` is float32.
    """

    original: Graph
    typed: Graph
    twin: Graph
    folded: tuple[str, ...]
    added: tuple[str, ...]

    @classmethod
    def of(cls, original: Graph, *, folds: bool = True) -> Canonical:
        """The forms of a model; with `folds` false its norms stay as they are."""
        start = settled(original)
        norms_folded, folded = fold_batch_norms(start) if folds else (start, ())
        typed, added = explicit_biases(norms_folded)
        return cls(original, typed, typed.as_float32(), folded, added)


def opened(form: Canonical, data: DataSource, options: Options) -> Dataset:
    """The samples of a source, conformed to the model's inputs."""
    return open_data(data, form.twin.inputs, normalize=options.normalize, preprocess=options.preparing())


def datasets(
    form: Canonical, data: DataSource | None, options: Options, *, solves: bool
) -> tuple[Dataset, Dataset | None]:
    """What the solve sees, and what the check sees: `eval`, or a share held out, None where there is nothing else.

    Where nothing is solved (`solves` false), the check sees all of the data. Without data noise stands in for it.
    """
    if data is None:
        return stand_in(form.original, options), None if options.eval is None else opened(form, options.eval, options)
    holdout = options.holdout if options.eval is None and solves else 0.0
    everything = opened(form, data, options)
    train, held_out = split(everything, holdout=holdout, seed=options.seed, samples=options.samples)
    if options.eval is not None:
        return train, opened(form, options.eval, options)
    if not solves:
        return train, train
    if held_out is not None and _is_empty(held_out, fixed_batch(form.original)):
        return split(everything, holdout=0.0, seed=options.seed, samples=options.samples)
    return train, held_out


def stand_in(graph: Graph, options: Options) -> Dataset:
    """One batch of seeded noise in the shape of the inputs; integers are ones, which most models take."""
    stated, count = stated_shapes(graph, options), fixed_batch(graph) or options.batch
    generator, feeds = np.random.default_rng(options.seed), {}
    for spec in graph.inputs:
        known = stated.get(spec.name, (None,) * len(spec.shape))
        sizes = [own or given for own, given in zip(spec.shape[1:], known[1:], strict=False)]
        if None in sizes:
            raise InputError(f"input '{spec.name}' has open sizes: say them with --shape {spec.name}=1x3x224x224")
        shape = (count, *(int(size or 1) for size in sizes))
        is_float = spec.dtype.kind not in "biu"
        noise = generator.standard_normal(shape) if is_float else np.ones(shape)
        feeds[spec.name] = noise.astype(np.float32 if is_float else spec.dtype)
    return open_data(feeds, graph.inputs)


def _is_empty(dataset: Dataset, fixed: int | None) -> bool:
    """Whether there is not even one batch; data that cannot be read is refused where it is used."""
    try:
        return next(iter(Samples(dataset, fixed or 1, fixed is not None)), None) is None
    except InputError:
        return True


def fixed_batch(*graphs: Graph) -> int | None:
    """The batch that the first of these models with a fixed one takes."""
    return next((s.shape[0] for g in graphs for s in g.inputs if s.shape and s.shape[0] is not None), None)


def samples_of(dataset: Dataset, options: Options, *graphs: Graph) -> Samples:
    """Batches as the models take them: a model with a fixed batch is fed in that."""
    fixed = fixed_batch(*graphs)
    samples = Samples(dataset, fixed or options.batch, fixed is not None)
    if samples.count == 0:
        raise InputError(f"the model takes batches of exactly {fixed} samples and the data holds fewer: give more")
    return samples


def at_latency_batch(samples: Samples, options: Options) -> Samples:
    """The same samples in the batches that latency is measured at."""
    batch = samples.batch if samples.fixed else options.batch_latency or samples.batch
    return replace(samples, batch=batch, _kept=[])


def stated_shapes(graph: Graph, options: Options) -> dict[str, tuple[int, ...]]:
    """The shapes of --shape, each of an input and of its rank."""
    ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
    for name, shape in options.shapes().items():
        if name not in ranks:
            raise InputError(f"--shape names '{name}', which is no input: the model has {names_of(graph)}")
        if ranks[name] not in (0, len(shape)):
            raise InputError(f"--shape gives '{name}' {len(shape)} sizes, the input has {ranks[name]}")
    return options.shapes()


def heads_of(options: Options) -> Heads:
    """What to take from attention."""
    return next(choice for choice in HEADS if choice == options.heads)


def census_of(graph: Graph, engine: Engine, dataset: Dataset, options: Options) -> Census:
    """The survey; shapes that cannot be inferred (behind a custom operator) are measured on some samples."""
    shapes = {name: array.shape for name, array in next(dataset.batches(1)).feeds.items()}
    shapes |= stated_shapes(graph, options)
    census = survey(graph, shapes, heads=heads_of(options))
    made = (name for node in graph.nodes for name in node.outputs if name and not graph.is_constant(name))
    unknown = [name for name in made if None in census.shapes.get(name, (None,))]
    if not unknown:
        return census
    fixed = fixed_batch(graph)
    measured = measure(engine, graph, Samples(dataset, fixed or 1, fixed is not None), unknown)
    return survey(graph, shapes | measured, heads=heads_of(options))


def names_of(graph: Graph) -> str:
    """The inputs, as messages list them."""
    return ", ".join(spec.name for spec in graph.inputs)
