"""Findings on disk: they say what they said, and nothing else is taken for them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from builders.chains import Chain
from builders.importance import branches, looked, rows
from builders.models import Array
from builders.topologies import residual, swiglu
from pcns_onnx import InputError, shrink
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.planning import stats_file as stats
from pcns_onnx.planning.plan import fingerprint


def samples(model: onnx.ModelProto, count: int = 60) -> Array:
    shape = [d.dim_value or count for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


MODELS = {
    "branches": branches(1.0, 0.3),
    "residual": residual(),
    "swiglu": swiglu(),
    "no activation": Chain(front="gemm", back="gemm").build(),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_is_read_is_what_was_written(model: onnx.ModelProto, tmp_path: Path) -> None:
    problem, found = looked(model, samples(model))
    path = tmp_path / "stats.npz"
    stats.save(path, found, "m", "obs", probed=True)
    read = stats.load(path, problem, "m", "obs")
    for name, ranking in found.rankings.items():
        assert read.rankings[name].least == ranking.least
        np.testing.assert_array_equal(read.rankings[name].order, ranking.order)
        np.testing.assert_array_equal(read.rankings[name].error, ranking.error)
        np.testing.assert_array_equal(read.curves[name], found.curves[name])
    assert read.rankings.keys() == found.rankings.keys()
    assert {place: set(views) for place, views in read.covariances.items()} == {
        p: set(v) for p, v in found.covariances.items()
    }
    for place, views in found.covariances.items():
        for name, view in views.items():
            np.testing.assert_array_equal(read.covariances[place][name].classes, view.classes)
            np.testing.assert_array_equal(to_numpy(read.covariances[place][name].covariance), to_numpy(view.covariance))
    assert {name for name, group in read.basis_changes.items() if group} == {
        name for name, g in found.basis_changes.items() if g
    }
    for name, group in found.basis_changes.items():
        for mine, other in zip(group, read.basis_changes[name], strict=True):
            assert (mine.layer, mine.is_row) == (other.layer, other.is_row)
            np.testing.assert_array_equal(mine.places, other.places)
            np.testing.assert_array_equal(to_numpy(mine.by), to_numpy(other.by))
    stats.save(tmp_path / "again.npz", found, "m", "obs", probed=True)
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_where_nothing_lies_between_layers_there_are_turns_to_keep() -> None:
    """Else the round trip above says nothing of them."""
    model = MODELS["no activation"]
    assert any(looked(model, samples(model))[1].basis_changes.values())


@pytest.mark.parametrize("method", ["obs", "interpolative"])
def test_other_budgets_from_the_same_statistics_give_the_same_model(method: str, tmp_path: Path) -> None:
    model, path = branches(1.0, 0.3), tmp_path / "stats.npz"
    choices: dict[str, Any] = {"refine": 5, "method": method, "multiple": "1"}
    shrink(model, rows(100), budget="macs=0.8", stats=path, **choices)
    seen = path.read_bytes()
    kept = shrink(model, rows(100), budget="macs=0.5", stats=path, **choices)
    fresh = shrink(model, rows(100), budget="macs=0.5", **choices)
    assert path.read_bytes() == seen
    assert kept.plan == fresh.plan
    assert kept.model.SerializeToString() == fresh.model.SerializeToString()


# -- files that are refused ------------------------------------------------------------------


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 40]) + content[middle + 40 :]


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """The file with its index, and with it the arrays, changed."""

    def edit(content: bytes) -> bytes:
        with np.load(io.BytesIO(content)) as held:
            arrays = {name: held[name] for name in held.files}
        arrays["index"] = msgspec.json.decode(arrays["index"].tobytes())
        change(arrays)
        arrays["index"] = np.frombuffer(msgspec.json.encode(arrays["index"]), dtype=np.uint8)
        written = io.BytesIO()
        np.savez(written, **arrays)
        return written.getvalue()

    return edit


def pickled(content: bytes) -> bytes:
    written = io.BytesIO()
    np.savez(written, index=np.array([{"schema": 1}], dtype=object))
    return written.getvalue()


def other_arrays(content: bytes) -> bytes:
    written = io.BytesIO()
    np.savez(written, x=np.zeros(3))
    return written.getvalue()


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": truncated,
    "flipped bytes": flipped,
    "text": lambda content: b"statistics",
    "pickles": pickled,
    "other arrays": other_arrays,
    "an array alone": lambda content: _npy(),
    "a missing array": edited(lambda arrays: arrays.pop("curve1")),
    "an unknown field": edited(lambda arrays: arrays["index"].update(spare=1)),
    "a curve of another length": edited(lambda arrays: arrays.update(curve0=np.zeros(3))),
    "an order that is none": edited(lambda arrays: arrays.update(order0=np.zeros(12, np.int64))),
    "a curve that is no number": edited(lambda arrays: arrays.update(curve0=np.full(13, np.nan))),
    "a covariance of another size": edited(lambda arrays: arrays.update(covariance0=np.eye(2))),
}
FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "another schema": edited(lambda arrays: arrays["index"].update(schema=2)),
    "another model": edited(lambda arrays: arrays["index"].update(model="0" * 16)),
    "another method": edited(lambda arrays: arrays["index"].update(method="interpolative")),
    "not probed": edited(lambda arrays: arrays["index"].update(probed=False)),
}


def _npy() -> bytes:
    written = io.BytesIO()
    np.save(written, np.zeros(3))
    return written.getvalue()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Statistics of `branches`."""
    model, path = branches(1.0, 0.3), tmp_path_factory.mktemp("stats") / "stats.npz"
    _, found = looked(model, rows())
    stats.save(path, found, fingerprint(Graph.load(model)), "obs", probed=True)
    return path.read_bytes()


@pytest.mark.parametrize("harm", [*DAMAGED, *FOREIGN])
def test_other_files_are_refused_in_a_line(harm: str, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    content = {**DAMAGED, **FOREIGN}[harm](kept)
    path.write_bytes(content)
    with pytest.raises(InputError) as failed:
        shrink(branches(1.0, 0.3), rows(), tmp_path / "small.onnx", budget="macs=0.5", stats=path, refine=0,
               holdout=0.0, multiple="1", plan_out=tmp_path / "plan.json")  # fmt: skip
    line = str(failed.value)
    assert "\n" not in line and "stats.npz" in line and line.endswith("again with --stats")
    assert ("holds no statistics" in line) == (harm in DAMAGED)
    assert os.listdir(tmp_path) == ["stats.npz"] and path.read_bytes() == content


def test_statistics_that_fit_are_taken(kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    path.write_bytes(kept)
    shrink(branches(1.0, 0.3), rows(), budget="macs=0.5", stats=path, refine=0, holdout=0.0, multiple="1")


def test_a_folder_is_no_statistics(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read statistics "):
        shrink(branches(1.0, 0.3), rows(), budget="macs=0.5", stats=tmp_path, refine=0)
    with pytest.raises(InputError, match=r"^cannot write '.*': there is no folder"):
        shrink(branches(1.0, 0.3), rows(), budget="macs=0.5", stats=tmp_path / "none" / "stats.npz", refine=0)
    assert not os.listdir(tmp_path)


def test_statistics_are_not_written_over_an_input(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(branches(1.0, 0.3), path)
    content = path.read_bytes()
    with pytest.raises(InputError):
        shrink(path, rows(), budget="macs=0.5", stats=path, refine=0)
    with pytest.raises(InputError):
        shrink(path, rows(), tmp_path / "o", budget="macs=0.5", stats=tmp_path / "o", refine=0)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["model.onnx"]


def test_statistics_of_a_choice_of_layers_are_for_that_choice(kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    path.write_bytes(kept)
    with pytest.raises(InputError, match=r"are of other layers or options: make them again with --stats$"):
        shrink(branches(1.0, 0.3), rows(), budget="macs=0.9", stats=path, include="a", refine=0, multiple="1")


def altered(x: Array) -> Array:
    x = x.copy()
    x[7, 0] += 1e-3
    return x


OTHER_DATA: dict[str, tuple[Array, dict[str, Any]]] = {
    "one number of one sample": (altered(rows()), {}),
    "another order": (rows()[::-1].copy(), {}),
    "more samples": (rows(70), {}),
    "a choice of samples": (rows(), {"samples": 50}),
    "a share held out": (rows(), {"holdout": 0.1}),
    "another seed": (rows(), {"seed": 1}),
}


@pytest.mark.parametrize("case", OTHER_DATA)
def test_statistics_are_of_their_data(case: str, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    path.write_bytes(kept)
    x, more = OTHER_DATA[case]
    choices: dict[str, Any] = {"budget": "macs=0.5", "refine": 0, "multiple": "1", "holdout": 0.0} | more
    with pytest.raises(InputError, match=r"^statistics '.*' are of other data \(.*again with --stats$"):
        shrink(branches(1.0, 0.3), x, tmp_path / "small.onnx", stats=path, **choices)
    assert os.listdir(tmp_path) == ["stats.npz"]


def test_statistics_without_samples_are_of_another_version(kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    path.write_bytes(edited(lambda arrays: arrays.pop("samples"))(kept))
    with pytest.raises(InputError, match="are of another model, method or version"):
        shrink(branches(1.0, 0.3), rows(), budget="macs=0.5", stats=path, refine=0, holdout=0.0, multiple="1")
