"""Eigenvectors of a layer's outputs, centred across neurons."""

from __future__ import annotations

from dataclasses import dataclass

from pcns_onnx.numerics.arrays import Array, namespace_of
from pcns_onnx.numerics.linalg import dimensions_for, eigh_descending


@dataclass(frozen=True)
class Basis:
    """Eigenvalues (N,) from large to small and vectors U (N, N) of outputs centred across neurons.

    Each vector's largest entry is positive: the sign matters behind a MaxPool, and must not be LAPACK's whim.
    """

    values: Array
    vectors: Array

    @classmethod
    def of(cls, mean: Array, covariance: Array) -> Basis:
        """From mean (N,) and covariance (N, N) over samples of the outputs."""
        xp = namespace_of(covariance)
        moment = covariance + mean[:, None] * mean[None, :]
        moment = moment - xp.mean(moment, axis=0)[None, :]
        moment = moment - xp.mean(moment, axis=1)[:, None]
        values, vectors = eigh_descending((moment + moment.T) / 2)
        upright = xp.max(vectors, axis=0) >= -xp.min(vectors, axis=0)
        return cls(xp.clip(values, 0.0, None), xp.where(upright[None, :], vectors, -vectors))

    def components(self, variance: float) -> int:
        """M: how many eigenvectors reach the variance threshold."""
        return dimensions_for(self.values, variance)
