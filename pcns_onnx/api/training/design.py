"""The story of a design: read, look once, choose widths, depth and share of variance, write a net to train.

After Garg, Panda and Roy, 'A Low Effort Approach to Structured CNN Design Using PCA' (IEEE Access). Nothing of the
trained weights is kept: they are looked at, and the net that comes out starts anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

import msgspec
import numpy as np
from numpy.typing import NDArray

from pcns_onnx.api.inputs import Run, run
from pcns_onnx.api.options import Options
from pcns_onnx.architecture.blueprint import Architecture, Blueprint, DesignedLayer
from pcns_onnx.architecture.chain import Chain, sequence
from pcns_onnx.architecture.depth import Rule, rule_named
from pcns_onnx.architecture.fresh import initialise, ungroup
from pcns_onnx.architecture.spectra import ENOUGH, Spectrum, eigenfilters, preactivation, samples_needed, spectra
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.data.conform import Normalize
from pcns_onnx.data.dataset import Dataset, split
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.files import check_targets, write_atomic
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.plan import fingerprint
from pcns_onnx.progress import Progress
from pcns_onnx.report.warnings import put_right
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.rewrite.fold_batch_norm import fold_batch_norms
from pcns_onnx.runtime.samples import Samples, fixed_batch

if TYPE_CHECKING:
    from onnx import ModelProto

VARIANCE = 0.999
"""The paper's threshold: half a point to a point of accuracy for 'a considerable gain' (section IV-E)."""
DEPTH = "monotone"
_COUNTED = ("macs", "params")
"""What a draft is counted in."""


class DesignChoices(TypedDict, total=False):
    """Keyword arguments of `design` that mean what they mean to `shrink`; see `Options`."""

    shape: str | Sequence[str]
    samples: int
    batch: int
    normalize: Normalize
    seed: int
    device: str
    threads: int


@dataclass(frozen=True)
class DesignResult:
    """A net to train and what it was designed from.

    `eigenfilters` are the first layer's filters on their principal components, strongest first:
    (M, C, *kernel), or (M, C) where it is a Gemm.
    """

    model: ModelProto
    blueprint: Blueprint
    eigenfilters: NDArray[np.float64]


def design(
    model: ModelSource,
    data: DataSource,
    output: str | os.PathLike[str] | None = None,
    *,
    variance: float | None = None,
    budget: str | Sequence[str] = (),
    depth: str = DEPTH,
    config: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **choices: Unpack[DesignChoices],
) -> DesignResult:
    """Design a smaller net of `model`'s kind from the pre-activations that it has on `data`.

    Every hidden Conv and Gemm becomes as wide as its significant dimensions at `variance` (0.999 by default), or at
    the largest share up to that which meets `budget` ('macs=0.5', 'params=0.4' or a list: fractions
    of the original). `depth` ('monotone', 'first-contraction', 'none') drops Convs, see `architecture.depth`. As
    many samples are used as give every layer 100 rows per filter, unless `samples` says how many.

    The new net, with fresh weights (seeded), is written to `output`, the record of the design as JSON to
    `config`; both are also returned. Raises `InputError` for bad input and `UnsupportedError` for nets that are no
    chains; nothing is written then.
    """
    if variance is not None and budget:
        raise InputError("--variance and --budget each say how small: give one of them")
    options = Options.of(budget=budget, **({} if variance is None else {"variance": variance}), **choices)
    budgets = [Budget.parse(text) for text in options.goal.budgets]
    if any(b.resource not in _COUNTED for b in budgets):
        raise InputError("a design is drawn up for --budget macs=F or params=F")
    rule = rule_named(depth)
    check_targets((model, data), output, config)
    with run(options, progress) as running:
        form = Canonical.of(running.load(model))
        check_targets(tuple(form.original.files), output, config)
        form, everything = running.opened(form, data)
        original = form.original
        samples, chain = _looked_at(running, original, everything)
        calibration = Calibration(running.engine, samples, options.data.seed, running.progress, options.runtime.budget)
        layer_spectra = spectra(calibration, chain.graph.as_float32(), chain.dependencies, chain.hidden)
        drafts = _Drafts(chain, layer_spectra, rule)
        share = options.goal.variance or VARIANCE
        if budgets:
            with running.progress.stage("budget"):
                share = drafts.largest_share(budgets)
        widths = drafts.widths(share)
        new = chain.fresh_net(widths, options.data.seed)
        blueprint = _blueprint(original, drafts, share, widths, budgets, depth, samples, options.data.seed)
        blueprint = msgspec.structs.replace(blueprint, warnings=running.notes + blueprint.warnings)
    new.set_metadata("pcns_onnx", _provenance(blueprint))
    new.check(full=original.passes_check(full=True))
    if config is not None:
        write_atomic(config, blueprint.json())
    if output is not None:
        new.save(output)
    return DesignResult(new.proto, blueprint, _first_eigenfilters(chain, layer_spectra))


def ungrouped(
    model: ModelSource, output: str | os.PathLike[str] | None = None, *, seed: int = 0
) -> tuple[ModelProto, tuple[str, ...]]:
    """`model` with fresh weights and no grouped Conv, and the names of those that were grouped.

    The paper's workaround for MobileNet (section IV-D): train this net, then design from it. Raises `InputError` where
    no Conv is grouped.
    """
    check_targets((model,), output)
    original = Graph.load(model)
    graph = original.copy()
    names = ungroup(graph)
    if not names:
        raise InputError("--ungroup found no grouped Conv: design from this model as it is")
    initialise(graph, Options.of(seed=seed).data.seed)
    graph.prune()
    graph.check(full=original.passes_check(full=True))
    if output is not None:
        graph.save(output)
    return graph.proto, names


@dataclass(frozen=True)
class _Drafts:
    """Architectures by share of variance. What a draft costs depends on which layers stay: `_skeletons` keeps those."""

    chain: Chain
    layer_spectra: Mapping[str, Spectrum]
    rule: Rule
    _skeletons: dict[tuple[bool, ...], Chain] = field(default_factory=dict)

    def significant(self, share: float) -> list[int]:
        """Significant dimensions of every hidden layer."""
        return [self.layer_spectra[layer.name].dimensions(share) for layer in self.chain.hidden]

    def stays(self, dimensions: Sequence[int]) -> tuple[bool, ...]:
        """Which hidden layers stay; the paper's rule is one for convolutions, all else does."""
        is_conv = [layer.kind == "Conv" for layer in self.chain.hidden]
        kept = iter(self.rule([s for s, conv in zip(dimensions, is_conv, strict=True) if conv]))
        return tuple(next(kept) if conv else True for conv in is_conv)

    def widths(self, share: float) -> dict[str, int]:
        """Width of every hidden layer that stays."""
        dimensions = self.significant(share)
        return sequence(dimensions, self.chain.hidden, self.stays(dimensions))

    def costs(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """(MACs, parameters) of the net that has these layers only."""
        stays = tuple(layer.name in widths for layer in self.chain.hidden)
        if stays not in self._skeletons:
            full = sequence([layer.width for layer in self.chain.hidden], self.chain.hidden, stays)
            self._skeletons[stays] = (
                self.chain if all(stays) else Chain.of(self.chain.fresh_net(full), self.chain.feeds)
            )
        return self._skeletons[stays].costs(widths)

    def largest_share(self, budgets: Sequence[Budget]) -> float:
        """The largest share of variance, up to 0.999, whose net meets all budgets; raises `InputError` if none does.

        Widths change only where some layer's PCA graph has a point, so these points are all that need be looked at.
        They are gone through from the top and not bisected: with a rule for the depth costs need not fall with
        the share, since fewer dimensions may contract later. Above 0.999 layers come to their full widths and seem not
        to expand.
        """
        original = self.chain.costs({layer.name: layer.width for layer in self.chain.hidden})
        limits = [(_COUNTED.index(b.resource), b.limit) for b in budgets]
        points = np.unique(np.concatenate([[VARIANCE], *(s.explained for s in self.layer_spectra.values())]))
        previous = None
        for share in points[points <= VARIANCE][::-1]:
            widths = self.widths(float(share))
            if widths == previous:
                continue
            previous, cost = widths, self.costs(widths)
            if all(cost[at] <= fraction * original[at] for at, fraction in limits):
                return float(share)
        assert previous is not None, "there is a point at 0.999"
        least = ", ".join(f"{r}={c / o:.3g}" for r, c, o in zip(_COUNTED, self.costs(previous), original, strict=True))
        raise InputError(f"the budget is out of reach: the smallest design has {least}")


def _looked_at(running: Run, original: Graph, everything: Dataset) -> tuple[Samples, Chain]:
    """The samples that are looked at, enough of them, and the chain as it is on such samples."""
    options = running.options
    feeds = {name: array.shape for name, array in next(everything.batches(1)).feeds.items()} | options.scope.shapes()
    chain = Chain.of(original, feeds)
    fixed = fixed_batch(original)
    needed = samples_needed(chain.dependencies, chain.hidden)
    if fixed is not None:
        needed = -(-needed // fixed) * fixed
    chosen, _ = split(everything, holdout=0.0, seed=options.data.seed, samples=options.data.samples or needed)
    return running.samples(chosen, original), chain


def _blueprint(
    original: Graph,
    drafts: _Drafts,
    share: float,
    widths: Mapping[str, int],
    budgets: Sequence[Budget],
    depth: str,
    samples: Samples,
    seed: int,
) -> Blueprint:
    chain, dimensions = drafts.chain, drafts.significant(share)
    names = [layer.name for layer in chain.hidden]
    layers = [
        DesignedLayer(
            name=layer.name,
            kind=layer.kind,
            filters=layer.width,
            significant=significant,
            stays=layer.name in widths,
            rows=drafts.layer_spectra[layer.name].rows,
            sensitivity=round(drafts.layer_spectra[layer.name].sensitivity, 6),
            explained=drafts.layer_spectra[layer.name].explained.tolist(),
        )
        for layer, significant in zip(chain.hidden, dimensions, strict=True)
    ]
    full = {layer.name: layer.width for layer in chain.hidden}
    first = drafts.costs(full)
    rows = [_row(drafts, first, chosen) for chosen in (full, dict(zip(names, dimensions, strict=True)), widths)]
    return Blueprint(
        model=fingerprint(original),
        variance=share,
        budget=[str(b) for b in budgets],
        depth=depth,
        samples=samples.count,
        seed=seed,
        initial=rows[0],
        significant=rows[1],
        final=rows[2],
        layers=layers,
        prunable=[layer.name for layer in sorted(layers, key=lambda layer: layer.sensitivity)],
        warnings=[*put_right(chain.graph), *_few(chain, layers, samples), *_shallower(drafts, widths)],
    )


def _row(drafts: _Drafts, first: tuple[int, int], widths: Mapping[str, int]) -> Architecture:
    macs, parameters = drafts.costs(widths)
    vector = drafts.chain.configuration(widths)
    return Architecture(vector, macs, parameters, first[0] / macs, first[1] / parameters)


def _few(chain: Chain, layers: Sequence[DesignedLayer], samples: Samples) -> Iterator[str]:
    few = [layer for layer in layers if layer.rows_per_filter < ENOUGH]
    if few:
        worst = min(few, key=lambda layer: layer.rows_per_filter)
        yield (
            f"few samples: {len(few)} of {len(layers)} layers have D/M under {ENOUGH} (least: '{worst.name}' with "
            f"{worst.rows_per_filter:.1f}), so their significant dimensions come out low; "
            f"{samples_needed(chain.dependencies, chain.hidden):,} samples would do, here are {samples.count:,}"
        )


def _shallower(drafts: _Drafts, widths: Mapping[str, int]) -> Iterator[str]:
    """Which layers go at this share only: where two dimensions are close, the depth hangs by a thread."""
    names = [name for name in drafts.widths(VARIANCE) if name not in widths]
    if names:
        yield f"dropped at this share of variance, and not at {VARIANCE}: {', '.join(names)}"


def _provenance(blueprint: Blueprint) -> str:
    """What the new net says about itself: JSON that depends on model, data and options only."""
    facts = {
        "method": "design",
        "model": blueprint.model,
        "variance": blueprint.variance,
        "depth": blueprint.depth,
        "seed": blueprint.seed,
        "configuration": blueprint.final.configuration,
    }
    return msgspec.json.encode(facts, order="deterministic").decode()


def _first_eigenfilters(chain: Chain, layer_spectra: Mapping[str, Spectrum]) -> NDArray[np.float64]:
    """Those of the first layer, its norm folded in where that stands in front of the activation."""
    layer = chain.layers[0]
    folded, _ = fold_batch_norms(chain.graph)
    end = folded.producers[preactivation(chain.graph, chain.dependencies, layer)]
    node = end if end.op == layer.kind else folded.node(layer.key)
    weight = folded.constant(node.inputs[layer.linear.weight])
    assert weight is not None, "a layer has a stored weight"
    return eigenfilters(np.moveaxis(weight, layer.linear.weight_axes[0], 0), layer_spectra[layer.name])
