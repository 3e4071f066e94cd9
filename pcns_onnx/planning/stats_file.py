"""Importance on disk: what was seen of the data, reused for other budgets without touching the data again.

One .npz without pickles: arrays under names with running numbers, and a JSON index that says what
they are and which model, method and groups they belong to.
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
    seen: list[tuple[str, int, str]]


def save(path: str | Path, found: Importance, model: str, method: str, *, probed: bool) -> None:
    """Write findings, atomically."""
    arrays: dict[str, Any] = {}
    for name, ranking in found.rankings.items():
        at = len(arrays) // 3
        arrays |= {f"order{at}": ranking.order, f"error{at}": ranking.error, f"curve{at}": found.curves[name]}
    seen = [(layer, block, group) for (layer, block), views in found.seen.items() for group in views]
    for at, (layer, block, group) in enumerate(seen):
        view = found.seen[layer, block][group]
        arrays |= {f"classes{at}": view.classes, f"covariance{at}": to_numpy(view.covariance)}
    basis_changes = [turn for group in found.basis_changes.values() for turn in group]
    for at, turn in enumerate(basis_changes):
        arrays |= {f"places{at}": turn.places, f"by{at}": to_numpy(turn.by)}
    index = _Index(
        schema=SCHEMA,
        model=model,
        method=method,
        probed=probed,
        widths={name: len(ranking.order) for name, ranking in found.rankings.items()},
        least={name: ranking.least for name, ranking in found.rankings.items()},
        basis_changes={
            name: [(turn.layer, turn.is_row) for turn in group] for name, group in found.basis_changes.items()
        },
        streams=found.stream_weight,
        seen=seen,
    )
    held = io.BytesIO()
    np.savez(held, index=np.frombuffer(msgspec.json.encode(index), dtype=np.uint8), **arrays)
    write_atomic(path, held.getvalue())


def load(path: str | Path, problem: Problem, model: str, method: str) -> Importance:
    """Read findings; raises `InputError` if they are malformed or of another model, method or choice of layers."""
    try:
        arrays = _arrays(path)
        index = msgspec.json.decode(arrays["index"].tobytes(), type=_Index)
        if (index.schema, index.model, index.method) != (SCHEMA, model, method):
            raise InputError(
                f"statistics '{path}' are of another model, method or version: make them again with --stats"
            )
        if index.widths != {group.name: group.width for group in problem.groups} or not index.probed:
            raise InputError(f"statistics '{path}' are of other layers or options: make them again with --stats")
        found = _findings(index, arrays, problem)
        _check(found, problem)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read statistics '{path}': {error.strerror or error}") from None
    except Exception as error:  # zip, JSON and missing arrays all raise their own
        raise InputError(f"'{path}' holds no statistics ({type(error).__name__}): make it again with --stats") from None
    return found


def _arrays(path: str | Path) -> dict[str, Any]:
    """What `save` has written: its arrays are not packed, so that they take no more room than the file."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("packed arrays")
    with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as held:  # a handle of its own would leak
        return {name: held[name] for name in held.files}


def _check(found: Importance, problem: Problem) -> None:
    """Raise where the arrays are not of the shapes, places and numbers that the groups and layers allow."""
    groups = {group.name: group for group in problem.groups}
    layers = {layer.name: layer for layer in problem.dependencies.layers}
    if found.rankings.keys() != groups.keys() or not found.basis_changes.keys() <= groups.keys():
        raise ValueError("other groups")
    for name, ranking in found.rankings.items():
        width = groups[name].width
        _require(ranking.order.dtype.kind == "i")
        _require(sorted(ranking.order.tolist()) == list(range(width)) and 1 <= ranking.least <= width)
        _require(all(_is_sound(curve, (width + 1,)) for curve in (ranking.error, found.curves[name])))
    for (layer, block), views in found.seen.items():
        _require(0 <= block < len(layers[layer].parts))
        for group, view in views.items():
            classes = view.classes
            _require(classes.dtype.kind == "i")
            _require(np.array_equal(classes, np.unique(classes)) and bool(np.isin(classes, groups[group].labels).all()))
            _require(_is_sound(to_numpy(view.covariance), (len(classes), len(classes))))
    for turn in (turn for basis_changes in found.basis_changes.values() for turn in basis_changes):
        linear = layers[turn.layer].linear
        count = len(linear.writes) if turn.is_row else len(linear.reads) * linear.op.taps
        size = len(turn.places)
        _require(turn.places.dtype.kind == "i" and set(turn.places.tolist()) <= set(range(count)))
        _require(_is_sound(to_numpy(turn.by), (size, size)))


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
    seen: dict[tuple[str, int], dict[str, ChannelCovariance]] = {}
    for at, (layer, block, group) in enumerate(index.seen):
        view = ChannelCovariance(arrays[f"classes{at}"], xp.asarray(arrays[f"covariance{at}"]))
        seen.setdefault((layer, block), {})[group] = view
    basis_changes, at = {}, 0
    for name, members in index.basis_changes.items():
        basis_changes[name] = tuple(
            BasisChange(layer, arrays[f"places{at + i}"], arrays[f"by{at + i}"], is_row)
            for i, (layer, is_row) in enumerate(members)
        )
        at += len(members)
    return Importance(rankings, curves, seen, basis_changes, index.streams)
