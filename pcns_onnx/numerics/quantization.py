"""Numbers in few bits: how tensors are quantised, in ONNX's forms.

    w = s (q - z)       one s and z for the tensor, for each place along an axis, or for each block of an axis

Of a block whose z lies in the middle of its range (or is 0) s is that of its largest number,

    s = max(max w / (q_max - z), max -w / (z - q_min)),

in 4 bits or fewer the best of some smaller ones (the one whose squares miss least), since there a clipped outlier
costs less than a coarse grid. Where z differs from block to block, it is such that 0 is stored exactly. Sources:
ONNX's DequantizeLinear; onnxruntime's weight-only quantisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Takes = Sequence[tuple[int, NDArray[np.int64]]]
"""Axes of a tensor with the places along each that are taken."""

FEW_BITS = 4
"""Up to so many bits several scales are tried."""
_SHRUNK = np.linspace(1.0, 0.7, 7)
_EXACT = 1 << 24
"""Largest number that stands for one of 32 bits (a bias): float32 holds it."""


@dataclass(frozen=True)
class Quantized:
    """q, s and z (None: 0) of one tensor; `axis` where s has more than one element, `block` 0 for no blocks.

    s and z have one element, shape (D,) along the axis of length D, or the shape of q with D / `block`, rounded up,
    in its place.
    """

    q: Array
    scale: Array
    zero: Array | None
    axis: int
    block: int

    @property
    def value(self) -> Array:
        """w, in the type of s."""
        q = self.q.astype(np.int32 if self._is_integer else np.float32)
        if self.zero is not None:
            q = q - self._spread(self.zero.astype(q.dtype), q.shape)
        value = q.astype(np.float32) * self._spread(self.scale.astype(np.float32), q.shape)
        return value.astype(self.scale.dtype)

    def take(self, takes: Takes) -> Quantized | None:
        """The same at some places; None where that cuts through blocks."""
        taken = self
        for axis, index in takes:
            q = np.take(taken.q, index, axis=axis)
            scale, zero = taken.scale, taken.zero
            if scale.size > 1 and (self.block or axis == self.axis):
                if self.block and axis == self.axis:
                    blocks = _whole_blocks(index, taken.q.shape[axis], self.block)
                    if blocks is None:
                        return None
                    index = blocks
                at = axis if self.block else 0
                scale = np.take(scale, index, axis=at)
                zero = None if zero is None else np.take(zero, index, axis=at)
            taken = replace(taken, q=q, scale=scale, zero=zero)
        return taken

    def like(self, value: NDArray[np.floating]) -> Quantized:
        """`value`, of any sizes, stored in this form."""
        w = np.asarray(value, dtype=np.float64)
        high, low = self._reduced(np.maximum, w), self._reduced(np.minimum, w)
        if not self._is_integer:
            return self._best(w, [np.maximum(high, -low) / float(_limits(self.q.dtype).max)], np.zeros(()))
        least, most = self._range
        zeros = np.zeros(1) if self.zero is None else np.unique(self.zero.astype(np.float64))
        middle = float(zeros[0]) if len(zeros) else 0.0
        if len(zeros) == 1 and (least < middle < most or low.min(initial=0) >= 0):
            room = np.maximum(high, 0) / max(most - middle, 1), np.maximum(-low, 0) / max(middle - least, 1)
            scale, zero = np.maximum(*room), np.full(high.shape, middle)
        else:
            high, low = np.maximum(high, 0), np.minimum(low, 0)
            scale = (high - low) / (most - least)
            zero = np.clip(np.rint(least - low / np.where(scale > 0, scale, 1)), least, most)
        few = self.bits <= FEW_BITS
        return self._best(w, [scale * factor for factor in (_SHRUNK if few else _SHRUNK[:1])], zero)

    @property
    def bits(self) -> int:
        """Bits of one element of q."""
        return int(_limits(self.q.dtype).bits)

    @property
    def _is_integer(self) -> bool:
        return "int" in self.q.dtype.name

    @property
    def _range(self) -> tuple[float, float]:
        info = _limits(self.q.dtype)
        return max(float(info.min), -_EXACT), min(float(info.max), _EXACT)

    def _best(self, w: NDArray[np.float64], scales: list[NDArray[np.float64]], zero: NDArray[Any]) -> Quantized:
        """Quantised with the scale, block by block, that misses least."""
        best, least = scales[0], np.full(scales[0].shape, np.inf)
        for scale in scales if len(scales) > 1 else ():
            missed = self._reduced(np.add, (self._quantised(w, scale, zero).value.astype(np.float64) - w) ** 2)
            best, least = np.where(missed < least, scale, best), np.minimum(missed, least)
        return self._quantised(w, best, zero)

    def _quantised(self, w: NDArray[np.float64], scale: NDArray[np.float64], zero: NDArray[Any]) -> Quantized:
        rounded = scale.astype(self.scale.dtype)
        rounded = np.where(np.isfinite(rounded) & (rounded > 0), rounded, np.ones_like(rounded))
        q = w / self._spread(rounded.astype(np.float64), w.shape)
        if self._is_integer:
            q = np.clip(np.rint(q) + self._spread(zero, w.shape), *self._range)
        else:
            most = float(_limits(self.q.dtype).max)
            q = np.clip(q, -most, most)
        has_zero = self.zero is not None or zero.any()
        dtype = self.q.dtype if self.zero is None else self.zero.dtype
        stored_zero = np.broadcast_to(zero, rounded.shape).astype(dtype) if has_zero else None
        return replace(self, q=q.astype(self.q.dtype), scale=rounded, zero=stored_zero)

    def _spread(self, parameter: Array, shape: tuple[int, ...]) -> Array:
        """s, z or the like, to be broadcast to a tensor of this shape."""
        if parameter.size == 1:
            return parameter.reshape(())
        if not self.block:
            return parameter.reshape([-1 if axis == self.axis else 1 for axis in range(len(shape))])
        return np.repeat(parameter, self.block, axis=self.axis).take(range(shape[self.axis]), axis=self.axis)

    def _reduced(self, how: np.ufunc, w: NDArray[np.float64]) -> NDArray[np.float64]:
        """`w` reduced to what s has of it: as many elements as there are blocks."""
        if self.scale.size == 1 and not self.block:
            return np.asarray(how.reduce(w, axis=None)).reshape(self.scale.shape)
        if self.block:
            starts = np.arange(0, w.shape[self.axis], self.block)
            return np.asarray(how.reduceat(w, starts, axis=self.axis))
        return np.asarray(how.reduce(w, axis=tuple(axis for axis in range(w.ndim) if axis != self.axis)))


def _limits(dtype: np.dtype[Any]) -> Any:
    """Bits, least and largest value of a type."""
    limits: Any = ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo
    return limits(dtype)


def _whole_blocks(index: NDArray[np.int64], length: int, block: int) -> NDArray[np.int64] | None:
    """The blocks that make up these places, None where some are not whole; the last one may be shorter."""
    blocks = index[::block] // block
    places = [np.arange(b * block, min((b + 1) * block, length)) for b in blocks]
    whole = bool(places) and all(len(part) == block for part in places[:-1])
    return blocks if whole and np.array_equal(np.concatenate(places), index) else None
