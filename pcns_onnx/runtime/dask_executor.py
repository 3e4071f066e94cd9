"""Workers: runs over the data shared out to other processes or machines, by Dask.

    batches ─cut→ shards ─a worker each→ what each observed ─tree→ what all observed

The cut and the tree depend on the samples alone, and every task is a function of its inputs. So any
number of workers gives the same bytes, and what a worker held that died is made again elsewhere. A
shard's samples, and the tensors that are alive at a stream's cut, stay with the worker that has them:
what travels is programs to the workers, and moments back.
"""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from itertools import pairwise
from typing import Any

from threadpoolctl import threadpool_limits

from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.files import Scratch
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.activations import Cut, NotFinite, Runner, Segment, inputs_of, traced
from pcns_onnx.runtime.engine import Engine, Tensors
from pcns_onnx.runtime.executor import ActivationStreams, Executor, G, LocalExecutor
from pcns_onnx.runtime.samples import Samples

SHARDS = (8, 64)
"""Fewest and most shards (never more than batches): between them one for every `BATCHES` batches."""
BATCHES = 8
SECONDS = 10.0
"""How long a scheduler, or its first worker, may take to answer."""
PATIENCE = 6
"""So many times `SECONDS` may pass without any worker."""

_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What a worker runs first: Ctrl-C reaches all processes of a terminal, and it is the parent that ends them."""


@contextmanager
def executor_for(workers: int | None, scheduler: str | None) -> Iterator[Executor]:
    """Who runs the batches: this process, `workers` more on this machine, or those of a Dask `scheduler`.

    Raises `UnsupportedError` without Dask and where workers cannot start, `InputError` where no scheduler answers.
    """
    if workers is None and scheduler is None:
        yield LocalExecutor()
        return
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)  # a worker that imports its parent's script: the parent says what is wrong
    try:
        dask, distributed = importlib.import_module("dask"), importlib.import_module("distributed")
    except ImportError:
        raise UnsupportedError(
            "--workers and --scheduler run on Dask, which is not installed: `pip install 'pcns-onnx[dask]'`"
        ) from None
    with ExitStack() as stack:
        # Samples and programs are parts of the tasks on purpose: what is sent otherwise dies with the worker.
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}))
        stack.enter_context(distributed.utils.silence_logging_cmgr(logging.CRITICAL))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="dask|distributed|tornado")
        if scheduler is not None:
            client = stack.enter_context(_connected(distributed, scheduler))
        else:
            folder = stack.enter_context(Scratch())
            client = stack.enter_context(_started(distributed, int(workers or 1), folder))
        yield _DaskExecutor(client, distributed)


@contextmanager
def _started(distributed: Any, workers: int, folder: str) -> Iterator[Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that disks or networks are slow today
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                local_directory=folder,
                preload=_DEAF,
            )
    except Exception as error:  # whatever keeps a process from starting
        raise UnsupportedError(
            f"cannot start {workers} workers ({error}): they import the script that started them, so there the call "
            "has to stand under `if __name__ == '__main__':`; or there is no memory for so many"
        ) from None
    with cluster, distributed.Client(cluster) as client:
        yield client


@contextmanager
def _connected(distributed: Any, address: str) -> Iterator[Any]:
    # A client that could not connect closes itself when it is collected, and waits for ever if that happens while
    # another one is being made (distributed 2026.8): so what there is of them is collected before.
    gc.collect()
    try:
        client = distributed.Client(address, timeout=SECONDS, set_as_default=False)
    except Exception as error:  # addresses that are none, names that are unknown, nobody there
        why = str(error).strip().splitlines()
        raise InputError(
            f"no Dask scheduler answers at '{address}' ({why[0] if why else type(error).__name__}): start one with "
            "`dask scheduler`, or run on this machine with --workers"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=SECONDS)
            versions = set(client.run(_version).values())
        except TimeoutError:
            raise InputError(f"the scheduler at '{address}' has no workers: start some with `dask worker`") from None
        except ImportError as error:
            raise UnsupportedError(f"the workers at '{address}' lack a library: {error}") from None
        if versions != {_version()}:
            raise UnsupportedError(
                f"the workers at '{address}' have pcns-onnx {', '.join(sorted(versions))}, here is {_version()}"
            )
        yield client


def _version() -> str:
    return metadata.version("pcns-onnx")


@dataclass(frozen=True)
class _Shard:
    """Consecutive batches: the number of the first, how many, and where their feeds are (a future)."""

    first: int
    count: int
    feeds: Any


class _DaskExecutor:
    """The workers of a cluster."""

    def __init__(self, client: Any, distributed: Any) -> None:
        self._client, self._distributed = client, distributed
        self._shards: dict[Samples, list[_Shard]] = {}

    def streams(self, engine: Engine, samples: Samples, progress: Progress, room: int, count: int) -> ActivationStreams:
        """ActivationStreams whose cuts stay with the workers; Dask moves to disk what they have no memory for."""
        if samples not in self._shards:
            self._shards[samples] = self._loaded(samples)
        engine = replace(engine, threads=engine.threads or 1)
        return _DaskStreams(self._client, self._distributed, engine, samples, progress, self._shards[samples], count)

    def _loaded(self, samples: Samples) -> list[_Shard]:
        batches = [batch.feeds for batch in samples]
        least, most = SHARDS
        count = min(len(batches), max(least, min(most, len(batches) // BATCHES)))
        bounds = [at * len(batches) // count for at in range(count + 1)]
        # No worker is named: Dask (2026.8) does not give tasks of a named one that died to its only successor.
        return [
            _Shard(first, end - first, self._client.submit(_unchanged, batches[first:end], pure=False))
            for first, end in pairwise(bounds)
        ]


class _DaskStreams:
    def __init__(
        self,
        client: Any,
        distributed: Any,
        engine: Engine,
        samples: Samples,
        progress: Progress,
        shards: Sequence[_Shard],
        count: int,
    ) -> None:
        self._client, self._distributed, self._engine = client, distributed, engine
        self._samples, self._progress, self._shards = samples, progress, shards
        self._shard_cuts = [self._submit(_started_at, shard.feeds, count) for shard in shards]
        self._live: list[tuple[str, ...]] | None = None

    def advance(self, cuts: Sequence[Cut], into: G, title: str | None = None) -> G:
        sources = [inputs_of(cut.graph) for cut in cuts] if self._live is None else self._live
        segments = [Segment.of(cut, names) for cut, names in zip(cuts, sources, strict=True)]
        job = self._submit(_unchanged, _Job(self._engine, segments))
        begun = self._submit(_begun, job, into, self._shard_cuts[0])
        done = [
            self._submit(_advanced, job, begun, shard.first, shard_cut)
            for shard, shard_cut in zip(self._shards, self._shard_cuts, strict=True)
        ]
        self._shard_cuts = [self._submit(_part, 0, pair) for pair in done]
        self._live = [segment.live for segment in segments]
        observers = [self._submit(_part, 1, pair) for pair in done]
        while len(observers) > 1:
            observers = [self._submit(_merged, *observers[at : at + 2]) for at in range(0, len(observers), 2)]
        arrivals = self._arrivals(done, cuts)
        for _ in arrivals if title is None else self._progress.track(arrivals, title, self._samples.batches):
            pass
        self._require(observers[0], cuts)
        into.merge(observers[0].result())
        return into

    def close(self) -> None:
        self._shard_cuts = []

    def _submit(self, function: Any, *args: Any) -> Any:
        return self._client.submit(function, *args, pure=False)

    def _arrivals(self, done: Sequence[Any], cuts: Sequence[Cut]) -> Iterator[None]:
        """Once for every batch, as shards are done, in order: the first error is the same in every run."""
        for shard, future in zip(self._shards, done, strict=True):
            self._require(future, cuts)
            yield from [None] * shard.count

    def _require(self, future: Any, cuts: Sequence[Cut]) -> None:
        """Wait for a task; raise what went wrong, as it would have been raised here."""
        try:
            error = self._error_of(future)
        except CancelledError:
            raise UnsupportedError("the Dask scheduler has gone away: run again") from None
        if error is None:
            return
        if isinstance(error, NotFinite):
            raise traced(self._engine, cuts[error.side].graph, self._samples, error) from None
        if isinstance(error, self._distributed.KilledWorker):
            raise UnsupportedError(
                "workers died again and again over the same samples, most likely for want of memory: use fewer "
                "--workers or a smaller --batch"
            ) from None
        raise error

    def _error_of(self, future: Any) -> BaseException | None:
        """What a task failed with; raises `UnsupportedError` where no worker has been there for a while."""
        for _ in range(PATIENCE):
            while True:
                try:
                    error: BaseException | None = future.exception(timeout=SECONDS)
                    return error
                except TimeoutError:
                    if not self._client.nthreads():
                        break
        raise UnsupportedError("all workers are gone, and none has come back: run again, with more memory or fewer")


# -- what workers do ---------------------------------------------------------------------------

ShardCut = list[list[Tensors]]
"""By stream, by batch of a shard: the tensors that are alive."""


class _Job:
    """Segments to run, one per stream; compiled once by every worker that has a hand in it."""

    def __init__(self, engine: Engine, segments: Sequence[Segment]) -> None:
        self.engine, self.segments = engine, segments

    def __getstate__(self) -> dict[str, Any]:
        return {"engine": self.engine, "segments": self.segments}

    @cached_property
    def _runners(self) -> list[Runner]:
        return [Runner(self.engine, segment) for segment in self.segments]

    def run(self, index: int, sides: Sequence[Tensors]) -> tuple[list[Tensors], list[Tensors]]:
        """By stream, what stays alive of a batch and what was wanted."""
        live, wanted = [], []
        for side, (runner, tensors) in enumerate(zip(self._runners, sides, strict=True)):
            try:
                kept, observed = runner.run(index, tensors)
            except NotFinite as error:
                error.side = side
                raise
            live.append(kept)
            wanted.append(observed)
        return live, wanted


def _unchanged(value: Any) -> Any:
    return value


def _part(at: int, pair: tuple[Any, ...]) -> Any:
    return pair[at]


def _started_at(feeds: list[Tensors], count: int) -> ShardCut:
    return [feeds] * count


def _begun(job: _Job, blank: G, cut: ShardCut) -> G:
    """A blank observer that has seen the first batch."""
    with threadpool_limits(job.engine.threads):
        _, wanted = job.run(0, [batches[0] for batches in cut])
        into = deepcopy(blank)
        into.begin(wanted)
    return into


def _advanced(job: _Job, begun: G, first: int, cut: ShardCut) -> tuple[ShardCut, G]:
    """A shard's tensors at the next cut, and what was observed there."""
    into, after = deepcopy(begun), ShardCut([] for _ in cut)
    with threadpool_limits(job.engine.threads):
        for index, sides in enumerate(zip(*cut, strict=True), first):
            live, wanted = job.run(index, sides)
            into.update(index, wanted)
            for batches, tensors in zip(after, live, strict=True):
                batches.append(tensors)
    return after, into


def _merged(first: G, *others: G) -> G:
    into = deepcopy(first)
    for other in others:
        into.merge(other)
    return into
