"""What goes in: the model in the form that is solved, samples as it takes them, and what is known of its sizes.

Where there are no samples, noise in the shape of the inputs stands in: it shows sizes and speed, and nothing else.
"""

from __future__ import annotations

import numpy as np

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.shapes import stated_shapes
from pcns_onnx.data.dataset import Dataset, open_data, split
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.samples import Samples, fixed_batch


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
