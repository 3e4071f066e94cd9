"""The original's outputs over the samples of a check: run once to see how they vary, kept as far as there is room."""

from __future__ import annotations

from pcns_onnx.calibration.output_layout import OutputLayout
from pcns_onnx.calibration.output_scale import OutputScale, SpreadTally
from pcns_onnx.data.batch import Batch
from pcns_onnx.data.padding import Live, PositionAxes
from pcns_onnx.dependency.data_dependence import DataDependence
from pcns_onnx.evaluation.batch_axis import batch_axes, with_samples_first
from pcns_onnx.evaluation.counts import on_host
from pcns_onnx.evaluation.decisions import decision_rules
from pcns_onnx.evaluation.output_tally import OutputTally
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Engine, Tensors
from pcns_onnx.runtime.padding import find_places
from pcns_onnx.runtime.samples import Samples

ROOM = 1 << 27
"""Bytes of outputs that are kept; others are made anew when they are compared."""


class Original:
    """What a model's outputs are, and what errors of `other` at them are measured by.

    `fronts`: what stands in front of outputs whose size depends on what is found, with the output that each stands for.
    With `leaves_out` errors on padding are none, where it is known which positions are.
    """

    def __init__(
        self,
        engine: Engine,
        model: Graph,
        other: Graph,
        samples: Samples,
        layout: OutputLayout,
        *,
        leaves_out: bool = False,
    ) -> None:
        self._model, self._layout = model, layout
        self.padding = samples.data.padding if leaves_out else None
        dependence = DataDependence(model)
        self.fronts = counted_fronts(model, other, dependence)
        self._counted = dependence.counted | dependence.strange | model.containers
        self._names = [spec.name for spec in model.outputs]
        self._session = engine.session((model.exposing(self.fronts) if self.fronts else model).program())
        self._axes: dict[str, int | None] = {}
        if self.padding is not None:
            find_places(engine, model, self.padding, self.fronts)
        self._kept: list[Tensors] = []
        self._scales = self._seen(samples)

    def _seen(self, samples: Samples) -> dict[str, OutputScale]:
        names, room = (*self._names, *self.fronts), ROOM
        spreads = {name: SpreadTally(name, self._layout, is_counted=name in self._counted) for name in names}
        for index, batch in enumerate(samples):
            outputs = self._session.run(batch.feeds)
            arrays = {name: on_host(outputs[name]) for name in spreads}
            if not self._axes:
                self._axes = batch_axes(self._session, self._model, batch, arrays, fixed=samples.fixed)
                self._axes |= {name: place.samples for name in names if (place := self._place(name)) is not None}
            for name, spread in spreads.items():
                rows = with_samples_first(arrays[name], self._axes[name])
                count = batch.size if len(rows) % batch.size == 0 else 1
                place, live = self._place(name), self.live(batch)
                if place is not None and live is not None and place.fits(arrays[name].shape, live):
                    rows, count = with_samples_first(place.only(arrays[name], live), place.samples), batch.size
                spread.update(rows, self._axes[name], count)
            room -= sum(array.nbytes for array in arrays.values())
            if room > 0 and index == len(self._kept):
                self._kept.append(outputs)
        return {name: spread.scale() for name, spread in spreads.items()}

    def live(self, batch: Batch) -> Live | None:
        """Which positions of a batch count, None for all."""
        return None if self.padding is None else self.padding.live(batch.feeds)

    def _place(self, name: str) -> PositionAxes | None:
        return None if self.padding is None else self.padding.places.get(name)

    def outputs(self, index: int, batch: Batch) -> Tensors:
        """The outputs for batch number `index`."""
        return self._kept[index] if index < len(self._kept) else self._session.run(batch.feeds)

    def tallies(self) -> list[OutputTally]:
        """An empty tally of every output, and of what stands for some."""
        rules = decision_rules(self._model)
        outputs = [
            OutputTally(
                name,
                self._axes.get(name),
                rules.get(name),
                self._scales[name],
                is_counted=name in self._counted,
                place=self._place(name),
            )
            for name in self._names
        ]
        return outputs + [
            OutputTally(
                name,
                self._axes.get(name),
                None,
                self._scales[name],
                is_counted=True,
                stands_for=output,
                place=self._place(name),
            )
            for name, output in self.fronts.items()
        ]


def counted_fronts(a: Graph, b: Graph, dependence: DataDependence) -> dict[str, str]:
    """What stands in front of counted outputs in both models, by name, with the first output that it stands for."""
    outputs, fronts = {spec.name for spec in a.outputs}, dict[str, str]()
    for output, names in dependence.judged.items():
        for name in names if output in dependence.counted else ():
            if name in b.producers and name not in outputs:
                fronts.setdefault(name, output)
    return fronts
