"""Importance on disk: what was seen of the data, reused for other budgets without touching the data again.

One .npz without pickles: arrays under names with running numbers, and a JSON index that says what
they are and which model, method and groups they belong to. Which samples they were gathered on is kept as their
hashes: those of other data, of another share held out, and of another seed or count are refused.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pcns_onnx.calibration.columns import ChannelCovariance
from pcns_onnx.calibration.ranking import Ranking
from pcns_onnx.data.fingerprints import Hashes, SampleSummary
from pcns_onnx.errors import InputError
from pcns_onnx.files import write_atomic
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.change_basis import BasisChange

SCHEMA = 1


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    """What the arrays are: per group (name, least, turns as (layer, is_row)), per reader's block the groups it sees."""

    schema: int
    model: str
    method: str
    probed: bool
    widths: dict[str, int]
    least: dict[str, int]
    basis_changes: dict[str, list[tuple[str, bool]]]
    streams: float
    even: bool
    seen: list[tuple[str, int, str]]
    seed: int | None = None


def save(path: str | Path, importance: Importance, model: str, method: str, *, probed: bool, seed: int = 0) -> None:
    """Write findings, atomically."""
    arrays: dict[str, Any] = {}
    for name, ranking in importance.rankings.items():
        at = len(arrays) // 3
        arrays |= {f"order{at}": ranking.order, f"error{at}": ranking.error, f"curve{at}": importance.curves[name]}
    keys = [(layer, block, group) for (layer, block), by_group in importance.covariances.items() for group in by_group]
    for at, (layer, block, group) in enumerate(keys):
        covariance = importance.covariances[layer, block][group]
        arrays |= {f"classes{at}": covariance.classes, f"covariance{at}": to_numpy(covariance.covariance)}
    basis_changes = [change for group in importance.basis_changes.values() for change in group]
    for at, change in enumerate(basis_changes):
        arrays |= {f"places{at}": change.places, f"by{at}": to_numpy(change.by)}
    index = _Index(
        schema=SCHEMA,
        model=model,
        method=method,
        probed=probed,
        widths={name: len(ranking.order) for name, ranking in importance.rankings.items()},
        least={name: ranking.least for name, ranking in importance.rankings.items()},
        basis_changes={
            name: [(change.layer, change.is_row) for change in group]
            for name, group in importance.basis_changes.items()
        },
        streams=importance.stream_weight,
        even=importance.even,
        seen=keys,
        seed=seed,
    )
    arrays["samples"] = importance.samples
    buffer = io.BytesIO()
    np.savez(buffer, index=np.frombuffer(msgspec.json.encode(index), dtype=np.uint8), **arrays)
    write_atomic(path, buffer.getvalue())


def load(
    path: str | Path, problem: Problem, model: str, method: str, *, seed: int = 0, has_data: bool = True
) -> Importance:
    """Read findings; raises `InputError` if they are malformed or of another model, method or choice of layers.

    So it does if they are of other samples than the problem's, or of another seed; without data there are none to
    compare with.
    """
    try:
        arrays = _arrays(path)
        index = msgspec.json.decode(arrays["index"].tobytes(), type=_Index)
        ours = (SCHEMA, model, method)
        if (index.schema, index.model, index.method) != ours or index.seed is None or "samples" not in arrays:
            raise InputError(
                f"statistics '{path}' are of another model, method or version: make them again with --stats"
            )
        if index.widths != {group.name: group.width for group in problem.groups} or not index.probed:
            raise InputError(f"statistics '{path}' are of other layers or options: make them again with --stats")
        importance = _findings(index, arrays, problem)
        _check(importance, problem)
        if has_data:
            _check_samples(path, importance.samples, index.seed, problem.calibration.samples.summary, seed)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read statistics '{path}': {error.strerror or error}") from None
    except Exception as error:  # zip, JSON and missing arrays all raise their own
        raise InputError(f"'{path}' holds no statistics ({type(error).__name__}): make it again with --stats") from None
    return importance


def _check_samples(path: str | Path, hashes: Hashes, seed: int, summary: SampleSummary, own_seed: int) -> None:
    if seed == own_seed and np.array_equal(hashes, summary.hashes):
        return
    what = f"seed {seed}, here {own_seed}" if seed != own_seed else f"{len(hashes)} samples, here {summary.count}"
    same = "" if seed != own_seed or len(hashes) != summary.count else " others"
    raise InputError(
        f"statistics '{path}' are of other data ({what}{same}): give the same --data, --samples, --holdout and --seed, "
        "or make them again with --stats"
    )


def _arrays(path: str | Path) -> dict[str, Any]:
    """What `save` has written: its arrays are not packed, so that they take no more room than the file."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("packed arrays")
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as archive:  # a handle of its own would leak
        return {name: archive[name] for name in archive.files}


def _check(importance: Importance, problem: Problem) -> None:
    """Raise where the arrays are not of the shapes, places and numbers that the groups and layers allow."""
    groups = {group.name: group for group in problem.groups}
    layers = {layer.name: layer for layer in problem.dependencies.layers}
    if importance.rankings.keys() != groups.keys() or not importance.basis_changes.keys() <= groups.keys():
        raise ValueError("other groups")
    for name, ranking in importance.rankings.items():
        width = groups[name].width
        _require(ranking.order.dtype.kind == "i")
        _require(sorted(ranking.order.tolist()) == list(range(width)) and 1 <= ranking.least <= width)
        _require(all(_is_sound(curve, (width + 1,)) for curve in (ranking.error, importance.curves[name])))
    for (layer, block), by_group in importance.covariances.items():
        _require(0 <= block < len(layers[layer].parts))
        for group, covariance in by_group.items():
            classes = covariance.classes
            _require(classes.dtype.kind == "i")
            _require(np.array_equal(classes, np.unique(classes)) and bool(np.isin(classes, groups[group].labels).all()))
            _require(_is_sound(to_numpy(covariance.covariance), (len(classes), len(classes))))
    for change in (change for basis_changes in importance.basis_changes.values() for change in basis_changes):
        linear = layers[change.layer].linear
        count = len(linear.writes) if change.is_row else len(linear.reads) * linear.op.taps
        size = len(change.places)
        _require(change.places.dtype.kind == "i" and set(change.places.tolist()) <= set(range(count)))
        _require(_is_sound(to_numpy(change.by), (size, size)))


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("not what was saved")


def _is_sound(array: Any, shape: tuple[int, ...]) -> bool:
    return array.dtype == np.float64 and array.shape == shape and bool(np.isfinite(array).all())


def _findings(index: _Index, arrays: dict[str, Any], problem: Problem) -> Importance:
    xp = problem.calibration.engine.xp
    rankings, curves = {}, {}
    for at, (name, least) in enumerate(index.least.items()):
        rankings[name] = Ranking(arrays[f"order{at}"], arrays[f"error{at}"], least)
        curves[name] = arrays[f"curve{at}"]
    covariances: dict[tuple[str, int], dict[str, ChannelCovariance]] = {}
    for at, (layer, block, group) in enumerate(index.seen):
        covariance = ChannelCovariance(arrays[f"classes{at}"], xp.asarray(arrays[f"covariance{at}"]))
        covariances.setdefault((layer, block), {})[group] = covariance
    basis_changes, at = {}, 0
    for name, members in index.basis_changes.items():
        basis_changes[name] = tuple(
            BasisChange(layer, arrays[f"places{at + i}"], arrays[f"by{at + i}"], is_row)
            for i, (layer, is_row) in enumerate(members)
        )
        at += len(members)
    samples = arrays["samples"]
    _require(samples.dtype == np.uint64 and samples.ndim == 1)
    return Importance(rankings, curves, covariances, basis_changes, index.streams, samples, index.even)
