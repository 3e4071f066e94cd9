"""Choosing between plans by trying them: each is solved on a few samples and judged at the outputs.

Error curves see a group through the layers that read it. What a residual stream loses is missed by
all blocks behind, and by how much more than its readers see depends on the network. So `decide`
proposes plans that spare the streams more or less, and the one whose outputs stay closest to the
original's, on samples that its trial has not seen, is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pcns_onnx.backend import Array, namespace_of
from pcns_onnx.capture import Samples, run_batches
from pcns_onnx.data import split
from pcns_onnx.graph import Graph
from pcns_onnx.options import Options
from pcns_onnx.passes import Setup
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite import apply
from pcns_onnx.shrinking import Decision, Work, solve

SAMPLES = 192
"""At most so many samples are used for a trial, a third of them to judge by."""


def best(work: Work, plans: Sequence[Decision], options: Options) -> Decision:
    """The plan whose model is closest to the original; ties go to the first."""
    if len(plans) == 1:
        return plans[0]
    setup = work.setup
    batch = setup.samples.batch
    solved, judged = split(setup.samples.data, holdout=1 / 3, seed=options.seed, samples=max(SAMPLES, 3 * batch))
    if judged is None:
        return plans[0]
    some, others = (replace(setup.samples, data=data, _kept=[]) for data in (solved, judged))
    if not some.count or not others.count:
        return plans[0]
    trial = replace(work, setup=replace(setup, samples=some, progress=Progress()))
    with setup.progress.stage("try"):
        errors = [_error(trial.setup, work.graph, others, _made(trial, plan, options)) for plan in plans]
    return plans[min(range(len(plans)), key=lambda at: (errors[at], at))]


def _made(work: Work, plan: Decision, options: Options) -> Graph:
    patch, _ = solve(work, plan, options)
    return apply(work.graph, patch)


def _error(setup: Setup, original: Graph, samples: Samples, small: Graph) -> float:
    """Squared relative error, averaged over the outputs."""
    names = [output.name for output in original.outputs]
    miss, size = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1e-30)
    runs = (run_batches(setup.engine, graph, samples, names) for graph in (original, small))
    for expected, found in zip(*runs, strict=True):
        for name in names:
            size[name] += _squares(expected[name])
            miss[name] += _squares(expected[name] - found[name])
    return sum(miss[name] / size[name] for name in names) / len(names)


def _squares(values: Array) -> float:
    xp = namespace_of(values)
    return float(xp.sum(xp.astype(values, xp.float64) ** 2))
