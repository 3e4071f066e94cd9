"""The significant dimensions of what layers compute, before the activation.

Rows are output positions: N samples of H x W positions give D = N*H*W rows of M values, one per filter. With the
eigenvalues l_1 >= ... >= l_M of their covariance (centred over the rows), the significant dimensions are

    S = min { m : (l_1 + ... + l_m) / (l_1 + ... + l_M) >= share }        (Garg, Panda and Roy, section III-B)

Line 19 of their Algorithm 1 counts the components whose cumulative share is *below* the threshold, which is one
short: m components that stay below it do not reach it. That count is zero wherever the first component alone passes the
threshold, which may be why the CIFAR-100 curve of their Fig. 9 had to end where layers were left without filters; S
as above never is zero.

Where a BatchNormalization stands between the layer and its activation, what is looked at comes after it. The
paper says 'before the action of the non linearities' and once 'output value upon convolution', and does not say which
of the two it took for its batch-normalised nets. The activation sees the normalised values, and the filters' arbitrary
scales, which the norm removes, would otherwise weigh the components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.dependency.dependency_graph import DependencyGraph
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.numerics.linalg import dimensions_for, eigh_descending
from pcns_onnx.numerics.moments import Moments
from pcns_onnx.runtime.activations import run_batches
from pcns_onnx.runtime.samples import Positions

ENOUGH = 100
"""Rows per filter that the paper found to be enough (D/M, section III-B)."""
MOST = 1000
"""Rows per filter beyond which positions are sampled."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues (M,) float64 from large to small, eigenvectors (M, M) as columns, of D = `rows` rows."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    rows: int

    @cached_property
    def explained(self) -> NDArray[np.float64]:
        """Share of the variance in the first 1, 2, ..., M components, (M,): the paper's PCA graph (Fig. 10)."""
        values = np.clip(self.values, 0.0, None)
        total = values.sum()
        return np.cumsum(values) / total if total > 0 else np.ones(len(values))

    def dimensions(self, share: float) -> int:
        """The significant dimensions at a share of the variance, at least 1."""
        return dimensions_for(self.values, share)

    @property
    def sensitivity(self) -> float:
        """How flat the spectrum is, in [0, 1]: the area above the PCA graph.

        (2 / (M - 1)) * sum of 1 - explained[m]: 0 where one component holds everything, 1 where all
        are equal. The paper reads it off by eye: the steeper the graph, the more can go (section III-E).
        """
        if len(self.values) < 2:
            return 1.0
        return float(2.0 * np.sum(1.0 - self.explained[:-1]) / (len(self.values) - 1))


def preactivation(graph: Graph, dependencies: DependencyGraph, layer: Layer) -> str:
    """The tensor that a layer's activation reads: its output, behind per-channel constants (a norm's)."""
    name = layer.output
    while True:
        readers = graph.consumers.get(name, ())
        if len(readers) != 1 or dependencies.kinds[readers[0].key] != "affine":
            return name
        name = readers[0].key


def positions_of(dependencies: DependencyGraph, layer: Layer) -> int:
    """Rows that one sample gives."""
    shape = tuple(int(size or 1) for size in dependencies.shapes[layer.output])
    return max(layer.linear.op.positions_of(shape), 1)


def samples_needed(dependencies: DependencyGraph, layers: Sequence[Layer]) -> int:
    """Samples that give every layer `ENOUGH` rows per filter."""
    return max(-(-ENOUGH * layer.width // positions_of(dependencies, layer)) for layer in layers)


def spectra(
    calibration: Calibration, graph: Graph, dependencies: DependencyGraph, layers: Sequence[Layer]
) -> dict[str, Spectrum]:
    """The spectrum of every layer's pre-activations, by layer name, from one pass over the samples."""
    names = {layer.name: preactivation(graph, dependencies, layer) for layer in layers}
    count = calibration.samples.count
    moments = {layer.name: Moments(layer.width, 0, calibration.engine.xp) for layer in layers}
    positions = {
        layer.name: Positions(MOST * layer.width, count, (calibration.seed, 6, at)) for at, layer in enumerate(layers)
    }
    batches = run_batches(calibration.engine, graph, calibration.samples, list(dict.fromkeys(names.values())))
    for index, tensors in enumerate(calibration.progress.track(batches, "eigenvalues", calibration.samples.batches)):
        for layer in layers:
            y, op = tensors[names[layer.name]], layer.linear.op
            moments[layer.name].update(op.outputs(y, positions[layer.name].draw(index, op.positions_of(y.shape))))
    by_layer = {}
    for name, layer_moments in moments.items():
        values, vectors = eigh_descending(layer_moments.covariance)
        by_layer[name] = Spectrum(to_numpy(values), to_numpy(vectors), layer_moments.rows)
    return by_layer


def eigenfilters(weight: NDArray[np.floating], spectrum: Spectrum) -> NDArray[np.float64]:
    """The filters (M, C, *kernel) of a layer rotated onto its principal components, strongest first (Fig. 7).

    Convolving with row i of V^T W gives component i of the pre-activations, up to the mean.
    """
    return np.tensordot(spectrum.vectors.T, weight.astype(np.float64), 1)
