"""Layers made wider without changing what the model computes: WeakExpand and zero-weight expansion (Graham 2019).

A group of N channels gets M > N. Channels are ordered by the mean of their outgoing weights, the largest first,
and channel c is there n_c times: the strongest M mod N once more than the others. All that lies between its writers
and its readers (norms, slopes, depthwise kernels, sizes) is repeated with it (`rewrite.channels.repeat`). Then

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
from typing import TYPE_CHECKING, Unpack

from pcns_onnx.api.inputs import run
from pcns_onnx.api.options import Options, Running
from pcns_onnx.cost.model import model_size
from pcns_onnx.data.sources import DataSource
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.evaluation.agreement import Agreement, verify
from pcns_onnx.evaluation.provenance import note
from pcns_onnx.files import check_targets
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.graph.model_source import ModelFolder
from pcns_onnx.methods.expansion import shared_out, widened
from pcns_onnx.methods.registry import expansion_named
from pcns_onnx.progress import Progress
from pcns_onnx.report.schema import Expansion
from pcns_onnx.report.warnings import put_right
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.explicit_bias import drop_zero_biases, explicit_biases
from pcns_onnx.rewrite.fused.attention import close_attention
from pcns_onnx.rewrite.shared_constants import store_once
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples

if TYPE_CHECKING:
    from onnx import ModelProto

ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""The largest relative error of an output that counts as rounding, by how weights are stored."""


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
    folder = ModelFolder.of(model)
    if folder is not None and output is not None:
        with folder.brought_along(output) as place:
            return expand(
                folder.model, place.target, layer=layer, by=by, method=method, data=data, progress=progress, **running
            )
    options, kind = Options.of(**running), expansion_named(method)
    if isinstance(by, bool) or not isinstance(by, int | float) or not 1 < by < 1e4:
        raise InputError(f"--by {by} is out of range: it is a factor above 1, as in 1.5")
    check_targets((model, data), output)
    with run(options, progress) as current:
        form = Canonical.of(current.load(model), folds=False)
        check_targets(tuple(form.original.files), output)
        if data is not None:
            form, dataset = current.opened(form, data)
        dataset = current.all_of(current.noise(form) if data is None else dataset)
        dependencies = current.dependencies(form.twin, dataset)
        groups, warnings = _chosen(form.twin, dependencies, (layer,) if isinstance(layer, str) else tuple(layer))
        widths = {group.name: round(by * group.width) for group in groups}
        copies, rows = shared_out(form.twin, dependencies, groups, widths)
        wide = widened(form.typed, dependencies, copies, groups, zero=kind.name == "zero")
        drop_zero_biases(wide, form.added)
        close_attention(wide, form.original)
        store_once(wide, form.original, form.typed)
        wide.prune()
        widths_after = {row.name: [row.after, row.before] for row in rows}
        wide.set_metadata("pcns_onnx", note(method=kind.name, widths=widths_after))
        wide.check(full=form.original.passes_check(full=True))
        samples = current.samples(dataset, form.original)
        warnings = put_right(form.original) + warnings
        agreement, more = _proven(current.engine, form.original, wide, samples, current.progress)
        warnings += more
        after = current.dependencies(explicit_biases(wide)[0].as_float32(), dataset)
    sizes = model_size(form.original, dependencies), model_size(wide, after)
    report = Expansion(kind.name, rows, sizes[0], sizes[1], agreement, data is None, current.notes + warnings)
    if output is not None:
        wide.save(output)
    return ExpandResult(wide.proto, report)


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


def _chosen(graph: Graph, dependencies: DependencyGraph, patterns: Sequence[str]) -> tuple[list[Group], list[str]]:
    """The groups that have a writer of such a name, and what is said of those that must stay.

    Raises `InputError`, with a reason, where all that a pattern matches must stay.
    """
    chosen, left = list[Group](), list[str]()
    for pattern in patterns:
        matches = [
            g for g in dependencies.groups if any(_is_called(graph, dependencies.layer(n), pattern) for n in g.writers)
        ]
        if not matches:
            raise InputError(f"'{pattern}' matches no layer: `pcns-onnx inspect` lists their names")
        refused = {group.name: reason for group in matches if (reason := _refusal(group)) is not None}
        messages = [f"'{name}' cannot be widened: {reason}" for name, reason in refused.items()]
        if len(refused) == len(matches):
            raise InputError(messages[0])
        chosen += [group for group in matches if group.name not in refused and group not in chosen]
        left += messages
    return chosen, left


def _refusal(group: Group) -> str | None:
    if group.frozen is None and group.recurrent:
        return "the units of a recurrent layer feed back into it, and are not copied"
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
