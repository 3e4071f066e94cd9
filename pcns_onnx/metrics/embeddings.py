"""Embeddings: does the small model find the same things alike?

The cosines between all pairs of samples are ranked in both models; Spearman's rank correlation of them is the score.
With `nearest` it is how often the nearest other sample is the same. Token embeddings (N, T, D) are averaged over T.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from pcns_onnx.metrics.decisions import Array, DecisionMetric, Outputs, unlike

_WANTED = "embeddings (N, D) or (N, tokens, D)"
_MOST = 2000
"""Samples whose pairs are compared; later ones are left out, since pairs grow with the square."""
_SAME = 1e-6
"""Cosines that differ by less are a tie: another order of additions changes as much."""


@dataclass
class Retrieval(DecisionMetric):
    """Agreement on what is alike: rank correlation of cosines, or with `nearest` the share of same neighbours."""

    nearest: bool = False
    _name: str | None = field(default=None, init=False, repr=False)
    _pairs: list[tuple[Array, Array]] = field(default_factory=list, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def update(self, outputs: Outputs, labels: Array | None, *, reference: Outputs, size: int) -> None:
        """Keep the embeddings of one batch."""
        if self._name is None:
            self._name = _output(reference)
        room = _MOST - self._count
        if room > 0:
            kept = tuple(_vectors(outputs_of[self._name])[:room] for outputs_of in (reference, outputs))
            self._pairs.append((kept[0], kept[1]))
            self._count += len(kept[0])

    def compute(self) -> float:
        """The score in percent; NaN for fewer than three samples, or where all are equally alike."""
        if self._count < 3:
            return float("nan")
        a, b = (_cosines(np.concatenate(side)) for side in zip(*self._pairs, strict=True))
        if self.nearest:
            return 100 * float(np.mean(_same_neighbour(a, b)))
        above = np.triu_indices(len(a), 1)
        first, second = (_centred(stats.rankdata(np.round(cosines[above] / _SAME))) for cosines in (a, b))
        if not first.any():
            return float("nan")
        return 100 * float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-300))

    def reset(self) -> None:
        """Forget the embeddings."""
        self._name, self._pairs, self._count = None, [], 0


def _output(outputs: Outputs) -> str:
    """Pooled embeddings, if there are any, or else those of the tokens."""
    for axes in (2, 3):
        for name, array in outputs.items():
            if _squeezed(array).ndim == axes and array.dtype.kind == "f" and array.shape[-1] > 1:
                return name
    raise unlike("retrieval", outputs, _WANTED)


def _squeezed(embeddings: Array) -> Array:
    """Without the axes of length 1 between the first and the last: places that were pooled."""
    return embeddings.squeeze(tuple(axis for axis in range(1, embeddings.ndim - 1) if embeddings.shape[axis] == 1))


def _centred(ranks: Array) -> Array:
    return np.asarray(ranks - ranks.mean())


def _vectors(embeddings: Array) -> Array:
    vectors = _squeezed(embeddings).astype(np.float64)
    return vectors if vectors.ndim == 2 else np.asarray(vectors.mean(axis=1))


def _cosines(vectors: Array) -> Array:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    return np.asarray(unit @ unit.T)


def _same_neighbour(a: Array, b: Array) -> Array:
    """Whether the nearest other sample in `b` is a nearest one in `a`, too; samples said twice are ties."""
    for cosines in (a, b):
        np.fill_diagonal(cosines, -np.inf)
    return np.asarray(a[np.arange(len(a)), b.argmax(axis=1)] >= a.max(axis=1) - _SAME)
