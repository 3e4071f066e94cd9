"""What tells samples apart, and what says nothing about them: a hash of each, and inputs that never change.

A sample's hash is BLAKE2b, 64 bits, over name, dtype, shape and bytes of all that the model is fed with it, so that the
same image in two files is the same sample; padding is no part of it. A sketch of a set of samples
is the `k` smallest of their hashes ("bottom-k", Cohen and Kaplan 2007): hashes are as good as random, so a sketch of k
says of any share of the samples whether it overlaps, but for a chance of (1 - share)^k; a set of up to k samples is
kept whole.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.data.columns import Array
from pcns_onnx.data.conform import is_floating
from pcns_onnx.data.padding import Padding

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class SampleSummary:
    """The `hashes` (n,) of samples in their order, and the float inputs that are `constant`, or `zero`, in all."""

    hashes: Hashes
    constant: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    inputs: int = 1

    @property
    def count(self) -> int:
        """All samples."""
        return len(self.hashes)

    @property
    def distinct(self) -> int:
        """Samples that are different from each other."""
        return len(np.unique(self.hashes))

    @property
    def digest(self) -> str:
        """Hash of all samples in their order: other data, shares held out, seeds and counts have another."""
        return hashlib.sha256(self.hashes.astype("<u8").tobytes()).hexdigest()[:32]


def summarize(
    batches: Iterable[Batch], settings: Collection[str] = (), padding: Padding | None = None
) -> SampleSummary:
    """One pass over samples. `settings` are inputs that are meant to be the same in all: they say nothing of these."""
    hashes: list[Hashes] = []
    first, constant, zero = dict[str, Array](), dict[str, bool](), dict[str, bool]()
    inputs = 0
    for batch in batches:
        hashes.append(_hashes(batch) if padding is None else _hashes_of_live(batch, padding))
        varying = [name for name in batch.feeds if name not in settings]
        inputs = len(varying)
        for name in varying:
            array = batch.feeds[name]
            if not is_floating(array.dtype):
                continue
            rows = _rows(batch, name)
            rows = array[None] if rows is None else rows
            reference = first.setdefault(name, rows[:1])
            constant[name] = constant.get(name, True) and bool(
                reference.shape[1:] == rows.shape[1:] and (rows == reference).all()
            )
            zero[name] = zero.get(name, True) and not array.any()
    return SampleSummary(
        np.concatenate(hashes) if hashes else np.zeros(0, np.uint64),
        tuple(name for name, same in constant.items() if same),
        tuple(name for name, none in zero.items() if none),
        inputs,
    )


def sketch(hashes: Hashes, size: int) -> str:
    """The smallest `size` of the hashes, as text."""
    return base64.b64encode(np.unique(hashes)[:size].astype("<u8").tobytes()).decode()


def in_sketch(text: str, hashes: Hashes) -> NDArray[np.bool_]:
    """Which of the hashes a sketch holds; raises `ValueError` where the text is none."""
    return np.isin(hashes, np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8").astype(np.uint64))


def _rows(batch: Batch, name: str) -> Array | None:
    """What is fed to an input, sample by sample; None where it is the same for all of them."""
    axis = batch.axes.get(name, 0)
    return None if axis is None else np.moveaxis(batch.feeds[name], axis, 0)


def _hashes(batch: Batch) -> Hashes:
    hashers = [hashlib.blake2b(digest_size=8) for _ in range(batch.size)]
    for name, array in sorted(batch.feeds.items()):
        rows = _rows(batch, name)
        head = f"{name} {array.dtype.str} {array.shape if rows is None else rows.shape[1:]}\n".encode()
        whole = _bytes(array) if rows is None else b""
        for at, hasher in enumerate(hashers):
            hasher.update(head)
            hasher.update(whole if rows is None else _bytes(rows[at]))
    return np.array([int.from_bytes(hasher.digest(), "little") for hasher in hashers], dtype=np.uint64)


def _hashes_of_live(batch: Batch, padding: Padding) -> Hashes:
    if not padding.cuts:
        return _hashes(padding.blanked(batch))
    return np.concatenate([_hashes(padding.cut(batch.rows(slice(at, at + 1)))) for at in range(batch.size)])


def _bytes(values: Array) -> bytes:
    array = np.asarray(values)
    return repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
