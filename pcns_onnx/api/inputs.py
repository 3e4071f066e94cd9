"""How every command begins: options, an engine, threads, and samples as the model takes them.

Where there are no samples, noise in the shape of the inputs stands in: it shows sizes and speed, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.shapes import dependency_graph_of, stated_shapes
from pcns_onnx.data.dataset import Dataset, open_data, split
from pcns_onnx.data.sources import DataSource
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.progress import WHOLE, Progress
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.dask_executor import executor_for
from pcns_onnx.runtime.engine import Engine, choose_engine
from pcns_onnx.runtime.executor import Executor
from pcns_onnx.runtime.samples import Samples, at_latency_batch, fixed_batch, samples_of


@dataclass(frozen=True)
class Run:
    """What one call of a public function runs with."""

    options: Options
    engine: Engine
    executor: Executor
    progress: Progress

    def opened(self, form: Canonical, data: DataSource) -> Dataset:
        """The samples of a source, conformed to the model's inputs."""
        chosen = self.options.data
        return open_data(data, form.twin.inputs, normalize=chosen.normalize, preprocess=chosen.preparing())

    def all_of(self, dataset: Dataset) -> Dataset:
        """As many of the samples as were asked for, none held out."""
        return split(dataset, holdout=0.0, seed=self.options.data.seed, samples=self.options.data.samples)[0]

    def samples(self, dataset: Dataset, *graphs: Graph) -> Samples:
        """Batches as the models take them."""
        return samples_of(dataset, self.options.data.batch, *graphs)

    def timed(self, samples: Samples) -> Samples:
        """The same samples in the batches that latency is measured at."""
        return at_latency_batch(samples, self.options.runtime.batch_latency)

    def calibration(self, dataset: Dataset, graph: Graph) -> Calibration:
        """What every pass over `dataset` needs to know."""
        return Calibration(
            self.engine,
            self.samples(dataset, graph),
            self.options.data.seed,
            self.progress,
            self.options.runtime.budget,
            self.executor,
        )

    def dependencies(self, graph: Graph, dataset: Dataset) -> DependencyGraph:
        """Which channels of `graph` go together."""
        return dependency_graph_of(graph, self.engine, dataset, self.options.scope)


@contextmanager
def run(options: Options, progress: Progress | None = None) -> Iterator[Run]:
    """Choose the engine, limit threads and start the workers that are asked for; timed as the stage 'total'."""
    chosen, progress = options.runtime, progress or Progress()
    engine = choose_engine(chosen.device, chosen.threads, chosen.libraries)
    with (
        threadpool_limits(chosen.threads or None),
        progress.stage(WHOLE),
        executor_for(chosen.workers, chosen.scheduler) as executor,
    ):
        yield Run(options, engine, executor, progress)


def datasets(run: Run, form: Canonical, data: DataSource | None, *, solves: bool) -> tuple[Dataset, Dataset | None]:
    """What the solve sees, and what the check sees: `eval`, or a share held out, None where there is nothing else.

    Where nothing is solved (`solves` false), the check sees all of the data. Without data noise stands in for it.
    """
    chosen = run.options.data
    if data is None:
        return stand_in(form.original, run.options), None if chosen.eval is None else run.opened(form, chosen.eval)
    holdout = chosen.holdout if chosen.eval is None and solves else 0.0
    everything = run.opened(form, data)
    train, held_out = split(everything, holdout=holdout, seed=chosen.seed, samples=chosen.samples)
    if chosen.eval is not None:
        return train, run.opened(form, chosen.eval)
    if not solves:
        return train, train
    if held_out is not None and _is_empty(held_out, fixed_batch(form.original)):
        return run.all_of(everything), None
    return train, held_out


def stand_in(graph: Graph, options: Options) -> Dataset:
    """One batch of seeded noise in the shape of the inputs; integers are ones, which most models take."""
    stated, count = stated_shapes(graph, options.scope), fixed_batch(graph) or options.data.batch
    generator, feeds = np.random.default_rng(options.data.seed), {}
    for spec in graph.inputs:
        known = stated.get(spec.name, (None,) * len(spec.shape))
        sizes = [own or stated_size for own, stated_size in zip(spec.shape[1:], known[1:], strict=False)]
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
