"""Keyword arguments of the public functions, as types; `options.Options` says what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from pcns_onnx.data import DataSource, Normalize
from pcns_onnx.evaluation.metric import Metric


class Running(TypedDict, total=False):
    """Keyword arguments that say how to run a model; see `Options` for their meaning."""

    heads: str
    shape: str | Sequence[str]
    samples: int
    batch_latency: int
    stats: str | Path
    batch: int
    normalize: Normalize
    preprocess: str
    seed: int
    device: str
    threads: int
    memory: str | int
    custom_ops: str | Path | Sequence[str]


class Choices(Running, total=False):
    """Keyword arguments of `shrink`, `inspect` and `compare`; see `Options` for their meaning."""

    method: str
    budget: str | Sequence[str]
    width: float
    variance: float
    plan: str | Path
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    multiple: str | int
    order: str
    refit: bool
    rank_ratio: float
    refine: int
    coupled: bool
    depth: bool
    low_rank: bool
    holdout: float
    eval: DataSource
    trials: int
    max_error: float
    max_drop: float
    metric: str | Metric
    plan_out: str | Path
    report: str | Path
    html: str | Path
    command: str
    workers: int
    scheduler: str
    int8: bool
    fp16: bool
