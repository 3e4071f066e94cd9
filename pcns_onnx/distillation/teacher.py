"""The original, asked in onnxruntime: the same session that verification runs, whatever operators it has.

Where a sample is shown in few forms (as it is, mirrored), and more samples are shown than there are, it is asked once
about each and remembered, as far as there is room, and unless its answers have positions of which some are padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.data.padding import Live, Padding, PositionAxes
from pcns_onnx.distillation.augmentation import Augmentation
from pcns_onnx.distillation.pool import Block, Shown
from pcns_onnx.evaluation.batch_axis import batch_axes
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.padding import find_places

Array = NDArray[Any]
Outputs = dict[str, Array]

_RUN = 64
"""Samples per run when all are asked about."""


def exposed(graph: Graph, tensors: Sequence[str]) -> Graph:
    """The model with these tensors among its outputs, in a form that onnxruntime runs."""
    graph = graph.as_float32() if graph.storage == "bfloat16" else graph
    more = [name for name in dict.fromkeys(tensors) if name not in {spec.name for spec in graph.outputs}]
    return graph.exposing(more) if more else graph


class Teacher:
    """Gives `tensors` of the original for samples, of which it may be known what is `padding`."""

    def __init__(self, engine: Engine, original: Graph, tensors: Sequence[str], padding: Padding | None = None) -> None:
        self._graph = exposed(original, tensors)
        self._session = engine.session(self._graph.program())
        self._tensors = list(dict.fromkeys(tensors))
        self._padding = padding
        if padding is not None:
            find_places(engine, self._graph, padding, self._tensors)
        self._known: list[dict[int, Outputs]] = []

    def __call__(self, batch: Batch) -> Outputs:
        """What the original says of a batch."""
        outputs = self._session.run(batch.feeds)
        return {name: np.asarray(to_numpy(outputs[name])) for name in self._tensors}

    def live(self, batch: Batch) -> Live | None:
        """Which positions of a batch count, None for all."""
        return None if self._padding is None else self._padding.live(batch.feeds)

    @property
    def places(self) -> dict[str, PositionAxes | None]:
        """Where the tensors have positions of which some may be padding."""
        places = {} if self._padding is None else self._padding.places
        return {name: places.get(name) for name in self._tensors}

    def batch_axes(self, batch: Batch, *, fixed: bool) -> dict[str, int | None]:
        """The axis that counts samples, by tensor."""
        outputs = {name: to_numpy(values) for name, values in self._session.run(batch.feeds).items()}
        axes = batch_axes(self._session, self._graph, batch, outputs, fixed=fixed)
        return axes | {name: place.samples for name, place in self.places.items() if place is not None}

    def remember(
        self, block: Block, augmentation: Augmentation, axes: Mapping[str, int | None], room: int, progress: Progress
    ) -> bool:
        """Ask about all samples in all forms, where there is room for the answers, and `axes` tell samples apart."""
        if any(place is not None for place in self.places.values()):
            return False
        versions, first = augmentation.versions or 0, next(block.chunks(1))[1]
        answers = self(first)
        by_sample = all(axes[name] == 0 and len(values) == first.size for name, values in answers.items())
        size = sum(values.nbytes for values in answers.values()) * sum(group.size for group in block.groups)
        if not versions or not by_sample or size * versions > room * first.size:
            return False
        known: list[dict[int, list[Outputs]]] = [{} for _ in range(versions)]
        runs = [(version, *chunk) for version in range(versions) for chunk in block.chunks(_RUN)]
        for version, group, batch in progress.track(runs, "ask the original", len(runs)):
            forms = np.tile(np.array([[0, version]]), (batch.size, 1))
            known[version].setdefault(group, []).append(self(augmentation.apply(batch, forms)))
        self._known = [
            {group: {n: np.concatenate([part[n] for part in parts]) for n in self._tensors} for group, parts in
             by_group.items()} for by_group in known
        ]  # fmt: skip
        return True

    def answers(self, piece: Shown, batch: Batch, drawn: Array) -> Outputs:
        """For a piece as it is shown: remembered, or asked for."""
        if not self._known:
            return self(batch)
        plain = self._known[0][piece.group]
        if len(self._known) == 1:
            return {name: values[piece.rows] for name, values in plain.items()}
        other = self._known[1][piece.group]
        return {name: _chosen(plain[name], other[name], piece.rows, drawn[:, 1] > 0) for name in self._tensors}


def _chosen(plain: Array, other: Array, rows: Array, is_other: Array) -> Array:
    values = plain[rows]
    values[is_other] = other[rows[is_other]]
    return values
