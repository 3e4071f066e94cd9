"""Greedy decoding as samples: `--decode N` lets a decoder go on from each prompt by N tokens, behind its own cache.

    logits, cache_1 = model(prompt, empty)
    token_t = arg-max logits[last],   logits, cache_t+1 = model(token_t, cache_t)

The prompt is one sample and each token another, with the cache that the original had there. So what is gathered, solved
and checked sees what decoding sees: few prompts, many single tokens. Masks get a one for every token, positions go on.
A cache is the beginning of the next one, so the last of a prompt is kept, and the others are cut from it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from tempfile import SpooledTemporaryFile

import numpy as np

from pcns_onnx.data.batch import Batch, Feeds, recut
from pcns_onnx.data.columns import Array
from pcns_onnx.data.dataset import Dataset
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, TensorSpec
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.runtime.carry import IN_MEMORY
from pcns_onnx.runtime.engine import Engine, Session


@dataclass(frozen=True)
class Roles:
    """What a decoder takes and gives: tokens (N, S), masks (N, P + S), positions (..., S), logits (N, S, V)."""

    tokens: str
    masks: tuple[str, ...]
    positions: tuple[str, ...]
    logits: str

    @classmethod
    def of(cls, graph: Graph, carries: Mapping[str, str]) -> Roles:
        """By name, kind and rank; raises `InputError` where tokens or logits cannot be told."""
        inputs = [spec for spec in graph.inputs if spec.name not in carries]
        masks = tuple(spec.name for spec in inputs if "mask" in spec.name.lower() and len(spec.shape) == 2)
        positions = tuple(spec.name for spec in inputs if "position" in spec.name.lower())
        integers = [spec for spec in inputs if spec.dtype.kind in "iu" and len(spec.shape) == 2]
        tokens = _one([s.name for s in integers if s.name not in (*masks, *positions)], "input_ids")
        outputs = [spec for spec in graph.outputs if spec.name not in carries.values() and spec.dtype.kind in "fV"]
        logits = _one([spec.name for spec in outputs if len(spec.shape) == 3], "logits")
        if tokens is None or logits is None:
            lacks = "input of tokens (N, S), as `input_ids`" if tokens is None else "output of logits (N, S, tokens)"
            raise InputError(f"--decode goes on by the model's own tokens, and it has no one {lacks}")
        return cls(tokens, masks, positions, logits)


def _one(names: list[str], usual: str) -> str | None:
    """The usual name if it is there, else the only one."""
    return usual if usual in names else names[0] if len(names) == 1 else None


def empty_caches(graph: Graph, carries: Mapping[str, str]) -> dict[str, Array]:
    """What each carried input takes in front of the first token of one sample; raises `InputError`."""
    specs = {spec.name: spec for spec in graph.inputs}
    return {name: _empty(specs[name], graph.layout.axes.get(name)) for name in carries}


def _empty(spec: TensorSpec, axis: int | None) -> Array:
    sizes = [1 if at == axis and size is None else size for at, size in enumerate(spec.shape)]
    if sizes.count(None) > 1:
        raise InputError(f"--decode: input '{spec.name}' has several open sizes, and only its length may be open")
    return np.zeros([size or 0 for size in sizes], spec.dtype)


def with_decoding(dataset: Dataset, engine: Engine, graph: Graph, carries: Mapping[str, str], tokens: int) -> Dataset:
    """The prompts of `dataset`, each followed by `tokens` greedy steps of `graph`, as samples of their own."""
    decoded = _Decoded(dataset, engine, graph, carries, tokens)

    def steps(run: Batch) -> Iterator[Batch]:
        numbers = run.index if run.index is not None else np.arange(run.size)
        for row, prompt in enumerate(map(int, numbers)):
            sample = replace(run.rows(slice(row, row + 1)), labels=None)
            for step in range(tokens + 1):
                feeds = {**sample.feeds, **decoded.at(prompt, step)}
                yield replace(sample, feeds=feeds, index=np.array([prompt * (tokens + 1) + step]))

    def stream(size: int) -> Iterator[Batch]:
        return recut(chain.from_iterable(map(steps, dataset.stream(size))), size)

    result = dataset.streaming(stream)
    result.has_labels = False
    result.count = None if dataset.count is None else dataset.count * (tokens + 1)
    return result


@dataclass(frozen=True)
class _Kept:
    """Where an array lies in the file, and how much of axis `axis` belongs to the step (None: all)."""

    offset: int
    shape: tuple[int, ...]
    axis: int | None = None
    length: int = 0


class _Decoded:
    """The feeds of all steps of all prompts: made when they are first asked for."""

    def __init__(self, dataset: Dataset, engine: Engine, graph: Graph, carries: Mapping[str, str], tokens: int) -> None:
        self._dataset, self._engine, self._graph, self._carries, self._tokens = dataset, engine, graph, carries, tokens
        self._roles = Roles.of(graph, carries)
        self._specs = {spec.name: spec for spec in graph.inputs}
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - it lives as long as the samples
        weakref.finalize(self, self._file.close)
        self._kept: list[list[dict[str, _Kept]]] = []
        self._fresh: Iterator[list[Feeds]] | None = None

    def at(self, prompt: int, step: int) -> Feeds:
        """What step `step` of a prompt is fed with."""
        while prompt >= len(self._kept):
            self._fresh = self._fresh or self._run()
            self._kept.append(self._written(next(self._fresh)))
        feeds = Feeds()
        for name, kept in self._kept[prompt][step].items():
            dtype = self._specs[name].dtype
            self._file.seek(kept.offset)
            content = self._file.read(int(np.prod(kept.shape)) * dtype.itemsize)
            whole = np.frombuffer(content, dtype).reshape(kept.shape)
            if kept.axis is not None:
                whole = np.ascontiguousarray(np.take(whole, np.arange(kept.length), axis=kept.axis))
            feeds[name] = whole
        return feeds

    def _written(self, steps: list[Feeds]) -> list[dict[str, _Kept]]:
        last, ends = steps[-1], dict[str, int]()
        kept = list[dict[str, _Kept]]()
        for feeds in steps:
            places = dict[str, _Kept]()
            for name, value in feeds.items():
                axis = _grown(value.shape, last[name].shape) if name in self._carries else None
                if axis is None:
                    places[name] = _Kept(self._write(value), value.shape)
                    continue
                ends[name] = ends[name] if name in ends else self._write(last[name])
                places[name] = _Kept(ends[name], last[name].shape, axis, value.shape[axis])
            kept.append(places)
        return kept

    def _write(self, value: Array) -> int:
        offset = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(value).tobytes())
        return offset

    def _run(self) -> Iterator[list[Feeds]]:
        """The feeds of all steps of one prompt after the other."""
        wanted = [self._roles.logits, *self._carries.values()]
        session = self._engine.session(self._graph.extract(self._specs, wanted).program())
        for prompt in self._dataset.batches(1):
            yield self._steps(session, dict(prompt.feeds))

    def _steps(self, session: Session, feeds: Feeds) -> list[Feeds]:
        steps = [feeds]
        for _ in range(self._tokens):
            outputs = {name: to_numpy(value) for name, value in session.run(feeds).items()}
            feeds = self._next(feeds, outputs)
            steps.append(feeds)
        return steps

    def _next(self, feeds: Feeds, outputs: Mapping[str, Array]) -> Feeds:
        roles, length = self._roles, feeds[self._roles.tokens].shape[1]
        at = length - 1
        for name in roles.masks:  # padding behind the prompt is not gone on from
            shown = np.flatnonzero(feeds[name][0, -length:])
            at = int(shown[-1]) if len(shown) else at
        token = outputs[roles.logits][:, at].argmax(axis=-1)[:, None]
        later = dict(feeds)
        later[roles.tokens] = token.astype(feeds[roles.tokens].dtype)
        for name in roles.masks:
            later[name] = np.concatenate([feeds[name], np.ones_like(feeds[name][:, :1])], axis=1)
        for name in roles.positions:
            later[name] = feeds[name][..., at : at + 1] + np.ones(1, feeds[name].dtype)
        for name, source in self._carries.items():
            later[name] = np.ascontiguousarray(outputs[source].astype(self._specs[name].dtype, copy=False))
        return later


def _grown(shape: tuple[int, ...], last: tuple[int, ...]) -> int | None:
    """The axis along which a cache has grown since it had this shape; None where that cannot be told."""
    axes = [axis for axis, (size, end) in enumerate(zip(shape, last, strict=True)) if size != end]
    return axes[0] if len(axes) == 1 and shape[axes[0]] < last[axes[0]] else None
