"""The fit of what a full run wins back, and its calibration, on records that are made here."""

from __future__ import annotations

import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.advise import calibration, fitted, inside, own, pairs
from pcns_onnx.report.advice.prediction import REFINED

ROOT = Path(__file__).parents[2]


def record(name: str, trial: float, full: float) -> dict[str, Any]:
    sides = [
        {
            "measure": "score",
            "share": float(share),
            "error": float(5 * share),
            "samples": 500,
            "decisions": float(share),
            "score": 90.0,
        }
        for share in (trial, full)
    ]
    row = {"latency": 0.5, "seconds": 10.0}
    return {
        "name": name,
        "share": 0.5,
        "trial": sides[0],
        "full": sides[1],
        "advised": row,
        "latency": 0.6,
        "seconds": 12,
    }


def records(networks: int, spread: float) -> list[dict[str, Any]]:
    """Half of what trials lose is left, times what differs."""
    rng = np.random.default_rng(0)
    trials = rng.uniform(0.02, 0.2, (networks, 4))
    return [
        record(f"net{n}", trial, 0.5 * trial * math.exp(spread * rng.standard_normal()))
        for n in range(networks)
        for trial in trials[n]
    ]


def test_the_fit_finds_what_the_records_were_made_with() -> None:
    correction = fitted(pairs(records(10, 0.2), "error"))
    assert correction.factor == pytest.approx(0.5, rel=0.1)
    assert correction.low == pytest.approx(0.5 * math.exp(-0.2 * 1.28), rel=0.15)
    assert correction.high == pytest.approx(0.5 * math.exp(0.2 * 1.28), rel=0.15)


def test_networks_that_the_fit_has_not_seen_lie_in_the_interval() -> None:
    kept = inside(pairs(records(12, 0.5), "error"))
    assert len(kept) == 48 and 0.7 < np.mean(kept) < 0.95
    strange = [*records(6, 0.1), record("strange", 0.1, 0.9)]
    assert not inside(pairs(strange, "error"))[-1]


def test_what_is_not_known_is_left_out_and_gains_count_as_nothing() -> None:
    odd = record("a", 0.1, -0.05)
    odd["full"]["decisions"] = None
    assert pairs([odd], "decisions") == []
    ((name, loss, full),) = pairs([odd], "score")
    assert (name, loss.share, full) == ("a", 0.1, 0.0)


def test_the_page_has_a_row_for_every_measure_and_every_run() -> None:
    lines = calibration(records(3, 0.1)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| score", "| decisions", "| error"]
    assert len(lines) == 5 + 1 + 2 + 12


def test_the_numbers_in_use_and_the_table_of_the_docs_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "tools" / "results" / "advise" / "advise.json").read_text())
    for measure, correction in REFINED.items():
        fit = fitted(pairs(measured, measure))
        assert [f"{value:.2f}" for value in astuple(correction)] == [f"{value:.2f}" for value in astuple(fit)]
    docs = (ROOT / "docs" / "advise.md").read_text()
    table, runs = calibration(measured).split("\n\n")
    assert table in docs and runs in docs


def test_the_networks_of_the_repository_are_there() -> None:
    assert all(network.model.exists() for network in own())
