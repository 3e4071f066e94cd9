"""Labels of channels, and the classes that ties merge them into."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pcns_onnx.ops import Labels


@dataclass
class Classes:
    """Labels and the ties between them."""

    born: int = 0
    _ends: list[NDArray[np.int64]] = field(default_factory=list)
    _roots: NDArray[np.int64] | None = None

    def fresh(self, count: int) -> Labels:
        """`count` labels that were not used before."""
        self.born += count
        self._roots = None
        return np.arange(self.born - count, self.born, dtype=np.int64)

    def tie(self, a: Labels, b: Labels) -> None:
        """Merge a[i] with b[i] (same shape, no -1)."""
        pairs = np.unique(np.stack([a.reshape(-1), b.reshape(-1)]), axis=1)
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.size:
            self._ends.append(pairs)
            self._roots = None

    @property
    def roots(self) -> NDArray[np.int64]:
        """Label -> the smallest label of its class; one more element answers -1 for -1."""
        if self._roots is None:
            roots = np.arange(self.born + 1, dtype=np.int64)
            if self._ends:
                a, b = np.concatenate(self._ends, axis=1)
                links = coo_array((np.ones(len(a)), (a, b)), shape=(self.born, self.born))
                _, component = connected_components(links, directed=False)
                first = np.full(self.born, self.born, dtype=np.int64)
                np.minimum.at(first, component, np.arange(self.born))
                roots[: self.born] = first[component]
            roots[self.born] = -1
            self._roots = roots
        return self._roots

    def of(self, labels: Labels) -> Labels:
        """The classes of labels, in the same shape."""
        return self.roots[labels]

    def compact(self, labels: Labels) -> Labels:
        """The classes of labels, with size one along every axis along which they do not change."""
        classes = self.of(labels)
        for axis, size in enumerate(classes.shape):
            first = np.take(classes, [0], axis=axis)
            if size > 1 and (classes == first).all():
                classes = first
        return classes
