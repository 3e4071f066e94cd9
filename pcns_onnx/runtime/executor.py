"""What is observed over the data adds up: so it can be observed batch by batch, or in shards.

    observed(batches) = merge(observed(shard 1), observed(shard 2), ...)

An `Observer` is told every batch and can be merged with another one. `ActivationStreams` run one or two graphs over
the samples, side by side, and show what comes out to an observer. An `Executor` says where: `LocalExecutor`, in this
process, batch after batch; the one in `dask_executor` shares the batches out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, Self, TypeVar

from pcns_onnx.progress import Progress
from pcns_onnx.runtime.activations import ActivationStream, Cut
from pcns_onnx.runtime.engine import Engine, Tensors
from pcns_onnx.runtime.samples import Samples

Sides = Sequence[Tensors]
"""Of one batch, what was wanted of every stream."""


class Observer(Protocol):
    """What is known of some batches. It may be copied and sent to other processes."""

    def begin(self, sides: Sides) -> None:
        """See the very first batch, once, before any is observed: settle all that shards have to agree on."""

    def update(self, index: int, sides: Sides) -> None:
        """Take in batch number `index`."""

    def merge(self, other: Self) -> None:
        """Add what was observed of later batches; where nothing has begun here, take over what `other` settled."""


G = TypeVar("G", bound=Observer)


class ActivationStreams(Protocol):
    """ActivationStreams over the same samples, side by side."""

    def advance(self, cuts: Sequence[Cut], into: G, title: str | None = None) -> G:
        """Move each stream to its cut and show what is wanted there to `into`, which is blank; returns it.

        With a title it counts as that stage of the run. Raises `InputError`.
        """

    def close(self) -> None:
        """Let go of what is kept between cuts."""


class Executor(Protocol):
    """Who runs the batches."""

    def streams(self, engine: Engine, samples: Samples, progress: Progress, room: int, count: int) -> ActivationStreams:
        """`count` streams that start at the inputs; `room` is how many bytes each may keep in memory here."""


class LocalExecutor:
    """This process, batch after batch, in order."""

    def streams(self, engine: Engine, samples: Samples, progress: Progress, room: int, count: int) -> ActivationStreams:
        """ActivationStreams of this process."""
        return _LocalStreams([ActivationStream(engine, samples, room) for _ in range(count)], samples, progress)


class _LocalStreams:
    def __init__(self, streams: Sequence[ActivationStream], samples: Samples, progress: Progress) -> None:
        self._streams, self._samples, self._progress = streams, samples, progress

    def advance(self, cuts: Sequence[Cut], into: G, title: str | None = None) -> G:
        sides = [stream.advance(cut) for stream, cut in zip(self._streams, cuts, strict=True)]
        batches: Iterator[Sides] = zip(*sides, strict=True)
        if title is not None:
            batches = self._progress.track(batches, title, self._samples.batches)
        for index, tensors in enumerate(batches):
            if index == 0:
                into.begin(tensors)
            into.update(index, tensors)
        return into

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
