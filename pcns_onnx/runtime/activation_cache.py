"""Activations kept between two cuts: in memory up to a budget, on disk beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcns_onnx.errors import InputError
from pcns_onnx.files import Scratch
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.runtime.engine import Tensors


class ActivationCache:
    """Batches of named tensors: in memory up to `budget` bytes, as .npy files beyond it."""

    def __init__(self, budget: int) -> None:
        self._budget, self._used = budget, 0
        self._batches: list[dict[str, Array | Path]] = []
        self._folder: Scratch | None = None

    def write(self, index: int, tensors: Tensors) -> None:
        """Keep batch number `index`, instead of what was kept of it; raises `InputError` where the disk is full."""
        if index == len(self._batches):
            self._batches.append({})
        self._forget(self._batches[index])
        kept: dict[str, Array | Path] = {}
        for name, array in tensors.items():
            size = int(array.nbytes)
            if self._used + size <= self._budget or array.dtype.hasobject:  # texts would be spilled as pickles
                self._used += size
                kept[name] = array
            else:
                kept[name] = self._spill(index, len(kept), array)
        self._batches[index] = kept

    def read(self) -> Iterator[Tensors]:
        """All batches, in order."""
        for batch in self._batches:
            yield {name: np.load(item) if isinstance(item, Path) else item for name, item in batch.items()}

    def close(self) -> None:
        """Let go of everything, on disk too."""
        self._batches.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _forget(self, batch: dict[str, Array | Path]) -> None:
        for item in batch.values():
            if isinstance(item, Path):
                item.unlink()
            else:
                self._used -= int(item.nbytes)

    def _spill(self, index: int, position: int, array: Array) -> Path:
        if self._folder is None:
            self._folder = Scratch()
        path = Path(self._folder.name) / f"{index}-{position}.npy"
        try:
            np.save(path, to_numpy(array))
        except OSError as error:
            raise InputError(
                f"cannot spill activations to '{path.parent}': {error.strerror or error}; set TMPDIR to a larger disk"
            ) from None
        return path
