"""Layers made wider without changing what the model computes: WeakExpand and zero-weight expansion (Graham 2019).

A group of N channels gets M > N. Channels are ordered by the mean of their outgoing weights, the largest first,
and channel c is there n_c times: the strongest M mod N once more than the others. All that lies between its writers
and its readers (norms, slopes, depthwise kernels, sizes) is repeated with it (`rewrite.repeat`). Then

    weak   rows of the writers are copied, columns of the readers divided by n_c:  sum of n_c shares w/n_c s(x) = w s(x)
    zero   rows and columns of the new channels are 0:                            0 s(0) is added

so both leave the function as it is, to rounding. Where the thesis disagrees with itself: listing 6.2 divides the
weights by the count whichever side of the layer they are on. Divided on the way in too, a neuron would put out
s(x/n), and for no s but a linear one would the shares add up to s(x); only the readers are divided here, as
figure 3.3 has it. The listing repeats each index ceiling(M/N) times, text and figure split the strongest only
until there are M. "Strong" is the signed mean in both, which is followed: it says which split, never what they add
up to. The thesis appends copies behind the layer; here they stand beside their originals.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from typing import TYPE_CHECKING, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.api.inputs import Canonical, census_of, opened, samples_of, stand_in
from pcns_onnx.api.options import Options, Running, check_targets
from pcns_onnx.calibration.layer_inputs import stored_weight
from pcns_onnx.data import DataSource, split
from pcns_onnx.dependency.groups import Census, Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.evaluation.agreement import Agreement
from pcns_onnx.evaluation.gates import size_of, verify
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.methods.registry import expansion_named
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import Expanded, Expansion
from pcns_onnx.rewrite.channels import Patch, SetInput, apply, layout, repeat, stored
from pcns_onnx.rewrite.fold_batch_norm import drop_zero_biases, explicit_biases
from pcns_onnx.runtime.activations import Samples
from pcns_onnx.runtime.engine import Engine, choose_engine

if TYPE_CHECKING:
    from onnx import ModelProto

ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""The largest relative error of an output that counts as rounding, by how weights are stored."""

Copies = NDArray[np.int64]


@dataclass(frozen=True)
class ExpandResult:
    """The wider model (whole, weights of large ones included) and what was done and checked."""

    model: ModelProto
    report: Expansion


def expand(
    model: ModelSource,
    output: str | os.PathLike[str] | None = None,
    *,
    layer: str | Sequence[str],
    by: float = 1.5,
    method: str = "weak",
    data: DataSource | None = None,
    progress: Progress | None = None,
    **running: Unpack[Running],
) -> ExpandResult:
    """Give the layers whose names match `layer` (globs) `by` times their width; with `output` also write the model.

    `method` is 'weak' or 'zero'. Both models are run on `data`, on noise without it, and must agree. `running` are
    those fields of `Options` that say how to run.
    Raises `InputError` (nothing matches, cannot be widened), `UnsupportedError` (the outputs would change).
    """
    options, progress, kind = Options(**running), progress or Progress(), expansion_named(method)
    if isinstance(by, bool) or not isinstance(by, int | float) or not 1 < by < 1e4:
        raise InputError(f"--by {by} is out of range: it is a factor above 1, as in 1.5")
    check_targets((model, data), output)
    engine = choose_engine(options.device, options.threads, options.libraries)
    form = Canonical.of(Graph.load(model), folds=False)
    check_targets(tuple(form.original.files), output)
    given = stand_in(form.original, options) if data is None else opened(form, data, options)
    dataset, _ = split(given, holdout=0.0, seed=options.seed, samples=options.samples)
    census = census_of(form.twin, engine, dataset, options)
    groups, left = _chosen(form.twin, census, (layer,) if isinstance(layer, str) else tuple(layer))
    widths = {group.name: round(by * group.width) for group in groups}
    copies, rows = shared_out(form.twin, census, groups, widths)
    wide = widened(form.typed, census, copies, groups, zero=kind.name == "zero")
    drop_zero_biases(wide, form.added)
    wide.prune()
    wide.set_metadata("pcns_onnx", _provenance(kind.name, rows))
    wide.check(full=form.original.passes_full_check())
    samples = samples_of(dataset, options, form.original)
    agreement, warnings = _proven(engine, form.original, wide, samples, progress)
    after = census_of(explicit_biases(wide)[0].as_float32(), engine, dataset, options)
    sizes = size_of(form.original, census), size_of(wide, after)
    report = Expansion(kind.name, rows, sizes[0], sizes[1], agreement, data is None, left + warnings)
    if output is not None:
        wide.save(output)
    return ExpandResult(wide.proto, report)


def widened(graph: Graph, census: Census, copies: Copies, groups: Sequence[Group], *, zero: bool) -> Graph:
    """A copy of `graph` in which class c is there copies[c] times, readers weighted so that nothing changes."""
    result = apply(graph, repeat(graph, census, copies))
    for layer in census.layers:
        writes = any(layer.name in group.writers for group in groups)
        reads = any(layer.name in group.readers for group in groups)
        result = apply(result, _weighted(graph, result, layer, copies, zero=zero) if writes or reads else ())
    return result


def _proven(
    engine: Engine, original: Graph, wide: Graph, samples: Samples, progress: Progress
) -> tuple[Agreement, list[str]]:
    """How well both agree, and warnings; raises `UnsupportedError` unless it is to rounding."""
    refused = "this layer cannot be widened here; nothing was written"
    try:
        agreement, warnings = verify(engine, original, wide, samples, None, progress)
    except InputError:
        verify(engine, original, original, samples, None, progress)  # raises where it is the samples' fault
        raise UnsupportedError(f"onnxruntime cannot run the model with more channels: {refused}") from None
    limit = ROUNDING[original.storage]
    if not agreement.error <= limit:
        changed = f"the outputs would change by {agreement.error:.2g}, more than rounding ({limit:g})"
        raise UnsupportedError(f"{changed}: {refused}")
    return agreement, warnings


def _chosen(graph: Graph, census: Census, patterns: Sequence[str]) -> tuple[list[Group], list[str]]:
    """The groups that have a writer of such a name, and what is said of those that must stay.

    Raises `InputError`, with a reason, where all that a pattern matches must stay.
    """
    found, left = list[Group](), list[str]()
    for pattern in patterns:
        mine = [g for g in census.groups if any(_is_called(graph, census.layer(n), pattern) for n in g.writers)]
        if not mine:
            raise InputError(f"'{pattern}' matches no layer: `pcns-onnx inspect` lists their names")
        refused = {group.name: reason for group in mine if (reason := _refusal(group)) is not None}
        said = [f"'{name}' cannot be widened: {reason}" for name, reason in refused.items()]
        if len(refused) == len(mine):
            raise InputError(said[0])
        found += [group for group in mine if group.name not in refused and group not in found]
        left += said
    return found, left


def _refusal(group: Group) -> str | None:
    if group.frozen is None and (group.products or not group.readers):
        return "a product of two computed tensors reads it, which has no weights to share out"
    return group.frozen


def _is_called(graph: Graph, layer: Layer, pattern: str) -> bool:
    """Whether a layer has such a name; one without may go by that of the norm that `inspect` folds into it."""
    names, at = [layer.name], layer.key
    while [node.op for node in graph.consumers.get(at, ())] == ["BatchNormalization"]:
        at = graph.consumers[at][0].key
        names.append(at)
    return any(fnmatchcase(name, pattern) for name in names)


def shared_out(
    graph: Graph, census: Census, groups: Sequence[Group], widths: dict[str, int]
) -> tuple[Copies, list[Expanded]]:
    """How often each class is there (one more element, 1, answers for -1), and how many were split by group."""
    copies, rows = np.ones(census.born + 1, dtype=np.int64), list[Expanded]()
    for group in groups:
        width = widths[group.name]
        if width <= group.width:
            raise InputError(f"'{group.name}' would keep its {group.width} channels: give a larger factor with --by")
        each, more = divmod(width, group.width)
        strongest = np.argsort(-strength(graph, census, group), kind="stable")
        counts = np.full(group.width, each)
        counts[strongest[:more]] += 1
        copies[group.labels] = counts
        split = int((counts > 1).sum())
        rows.append(Expanded(group.name, list(group.writers), list(group.readers), group.width, width, split))
    return copies, rows


def strength(graph: Graph, census: Census, group: Group) -> NDArray[np.float64]:
    """Mean of each channel's outgoing weights, over all layers that read the group, (N,)."""
    total, count = np.zeros(group.width), np.zeros(group.width)
    for layer in (census.layer(name) for name in group.readers):
        weight = stored_weight(graph, layer)
        for part in layer.parts:
            owners, matrix = part.op.owners(part.reads), np.asarray(part.op.matrix(weight))
            mine = np.isin(owners, group.labels)
            at = np.searchsorted(group.labels, owners[mine])
            np.add.at(total, at, matrix[:, mine].sum(axis=0))
            np.add.at(count, at, matrix.shape[0])
    return np.asarray(total / np.maximum(count, 1))


def _weighted(before: Graph, after: Graph, layer: Layer, copies: Copies, *, zero: bool) -> Patch:
    """The edits that share a layer's weights out among the copies of what it reads (`zero`: none to the new ones)."""
    linear, weight = layer.linear, stored(after, layer.key, layer.linear.weight)
    sizes = stored(before, layer.key, linear.weight).shape
    shares = np.ones(1)
    for axis, labels, is_input in zip(linear.weight_axes, (linear.writes, linear.reads), (False, True), strict=True):
        index, number = layout(labels[: sizes[axis]], copies)
        factor = (number == 0) * 1.0 if zero else 1.0 / copies[labels[index]] if is_input else np.ones(len(index))
        shares = shares * factor.reshape([-1 if a == axis else 1 for a in range(weight.ndim)])
    edits: Patch = (SetInput(layer.key, linear.weight, weight * shares),)
    if not zero or layer.bias.absent:
        return edits
    bias, (_, number) = stored(after, layer.bias.key, layer.bias.position), layout(linear.writes, copies)
    if bias.ndim and bias.shape[-1] == len(number):
        edits += (SetInput(layer.bias.key, layer.bias.position, bias * (number == 0)),)
    return edits


def _provenance(method: str, rows: Sequence[Expanded]) -> str:
    said = {
        "version": metadata.version("pcns-onnx"),
        "method": method,
        "widths": {row.name: [row.after, row.before] for row in rows},
    }
    return msgspec.json.encode(said, order="sorted").decode()
