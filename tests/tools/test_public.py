"""The public benchmark without a network: its table, its cache, and one run on a package that is made here."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.public_cases.cases import CASES, Arrays, Case, Feeds, Samples, Side
from benchmarks.public_cases.packages import FailedError, Package, _extract
from benchmarks.public_cases.running import prepared, shrunk
from benchmarks.public_cases.tables import HEADINGS, figures, reasons, row
from builders.mlp import mlp
from pcns_onnx.evaluation.metric import load_metric

TOY = Package("toy", "1.0")


def test_every_case_has_a_name_of_its_own_a_version_and_a_score() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 12
    for case in CASES:
        assert case.package.version and min(case.counts) >= 16
        metric = load_metric(case.metric)
        assert callable(getattr(metric, "update", None)), "figures are those of all samples"


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_archives_are_unpacked_without_their_top_folder(tmp_path: Path, kind: str) -> None:
    inner = tmp_path / "toy-1.0" / "toy"
    inner.mkdir(parents=True)
    (inner / "a.onnx").write_bytes(b"model")
    if kind == "wheel":
        archive = tmp_path / "toy.whl"
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.write(inner / "a.onnx", "toy/a.onnx")
    else:
        archive = tmp_path / "toy.tar.gz"
        with tarfile.open(archive, "w:gz") as source:
            source.add(tmp_path / "toy-1.0", "toy-1.0")
    _extract(archive, tmp_path / "out")
    assert (tmp_path / "out" / "toy" / "a.onnx").read_bytes() == b"model"


def test_a_file_that_is_not_there_or_twice_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "toy-1.0").mkdir()
    with pytest.raises(FailedError, match=r"^toy==1.0 has 0 files '\*\*/a.onnx'$"):
        TOY.file(tmp_path, "**/a.onnx")


def arrays(side: Side) -> Arrays:
    return {"x": np.random.default_rng(side.seed).standard_normal((side.count, 6)).astype(np.float32)}


def feeds(side: Side) -> Feeds:
    return [{"x": row[None]} for row in arrays(side)["x"]]


@pytest.mark.parametrize("samples", [arrays, feeds])
def test_a_run_becomes_a_row(tmp_path: Path, samples: Samples) -> None:
    (tmp_path / "toy-1.0").mkdir()
    onnx.save(mlp(), tmp_path / "toy-1.0" / "a.onnx")
    case = Case("toy", "a task", TOY, "a.onnx", samples, "pcns_onnx.metrics:tags", "class", (200, 50))
    ready = prepared(case, tmp_path, tmp_path / "work", 0.5)
    ran = shrunk(ready, "macs=0.7", 1, 120, quick=True)
    record = {"name": "toy", "task": "a task", "asked": "macs=0.7", "decision": "class"} | figures(ran.report)
    record |= {"seconds": ran.seconds, "peak": ran.peak}
    assert record["samples"] == 25 and record["macs"] <= 0.7 and 0 < record["score"] <= 100
    assert row(record).count(" | ") == len(HEADINGS) - 1
    assert "feeds the model's output … (1)" in reasons([record])
    with pytest.raises(FailedError, match=r"^shrink: exit code 2: .*budget"):
        shrunk(ready, "macs=7", 1, 120, quick=True)


def test_a_failure_is_a_row_of_as_many_cells() -> None:
    record = {"name": "toy", "task": "a task", "asked": "macs=0.8", "why": "no | such\nfile"}
    assert row(record).count("|") == len(HEADINGS) + 1 and "no / such file" in row(record)
