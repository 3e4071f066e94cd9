"""Rows of results: kept as JSON from run to run, written as CSV and as Markdown tables."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from benchmarks.frontier_cases.judge import Verdict

Key = tuple[str, str, str, float]


class Row(msgspec.Struct):
    """One contender with one setting at one point of one case.

    `target` is the fraction of MACs that was allowed; `seconds` is wall time, `searching` the part of it that
    went into matching MACs; `mib` is peak memory; `failed` is the reason where there is no verdict.
    """

    case: str
    contender: str
    setting: str
    target: float
    version: str
    threads: int
    base: float
    seconds: float = 0.0
    searching: float = 0.0
    mib: float = 0.0
    verdict: Verdict | None = None
    failed: str = ""

    @property
    def key(self) -> Key:
        return self.case, self.contender, self.setting, self.target


class Results:
    """All rows of an output folder, saved after each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "frontier.json"
        known = msgspec.json.decode(self._file.read_bytes(), type=list[Row]) if self._file.exists() else []
        self._rows = {row.key: row for row in known}

    def has(self, key: Key, version: str, threads: int) -> bool:
        row = self._rows.get(key)
        return row is not None and (row.version, row.threads) == (version, threads)

    def add(self, row: Row) -> None:
        """Keep a row in place of an older one, and write everything."""
        self._rows[row.key] = row
        _write(self._file, msgspec.json.format(msgspec.json.encode(self.rows)))

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    def write_tables(self, order: Sequence[str]) -> None:
        """`frontier.csv` has every row; `frontier.md` each contender's best setting, by case and target."""
        _write(self._folder / "frontier.csv", _csv(self.rows).encode())
        _write(self._folder / "frontier.md", _markdown(self.rows, order).encode())


def best_settings(rows: Iterable[Row]) -> list[Row]:
    """Of each contender's settings at a point the one with the best test accuracy; a failure only where all failed."""
    best: dict[tuple[str, str, float], Row] = {}
    for row in rows:
        key = row.case, row.contender, row.target
        if key not in best or _accuracy(row) > _accuracy(best[key]):
            best[key] = row
    return list(best.values())


def _accuracy(row: Row) -> float:
    return row.verdict.accuracy if row.verdict else -1.0


def _batches(rows: Iterable[Row]) -> list[str]:
    return sorted({batch for row in rows if row.verdict for batch in row.verdict.latency}, key=int)


def _csv(rows: list[Row]) -> str:
    text, batches = io.StringIO(), _batches(rows)
    writer = csv.writer(text)
    plain = ("case", "contender", "setting", "target", "version", "threads", "base", "seconds", "searching", "mib")
    judged = ("accuracy", "macs", "parameters", "file")
    writer.writerow([*plain, *judged, *(f"latency_batch_{batch}" for batch in batches), "failed"])
    for row in rows:
        given = [getattr(row.verdict, name) if row.verdict else "" for name in judged]
        times = [row.verdict.latency.get(batch, "") if row.verdict else "" for batch in batches]
        writer.writerow([*(getattr(row, name) for name in plain), *given, *times, row.failed])
    return text.getvalue()


def _markdown(rows: list[Row], order: Sequence[str]) -> str:
    lines, batches = [], _batches(rows)
    best = best_settings(rows)
    for case in dict.fromkeys(row.case for row in best):
        mine = [row for row in best if row.case == case]
        lines += [f"### {case} ({mine[0].base:.2f} %)", ""]
        names = [f"latency at {batch}" for batch in batches]
        lines += [f"| MACs allowed | contender | setting | accuracy | points | MACs | params | {' | '.join(names)} "
                  "| seconds | peak MiB |", "|" + "---|" * (9 + len(names))]  # fmt: skip
        for row in sorted(mine, key=lambda row: (-row.target, order.index(row.contender))):
            lines.append(_line(row, batches))
        lines.append("")
    return "\n".join(lines)


def _line(row: Row, batches: Sequence[str]) -> str:
    start = f"| {row.target:g} | {row.contender} | {row.setting} |"
    if row.verdict is None:
        return f"{start} {row.failed.replace('|', '/')} |" + " |" * (len(batches) + 5)
    judged = row.verdict
    times = " | ".join(f"{judged.latency[batch]:.2f}" if batch in judged.latency else "" for batch in batches)
    return (
        f"{start} {judged.accuracy:.2f} | {judged.accuracy - row.base:+.2f} | {judged.macs:.3f} "
        f"| {judged.parameters:.3f} | {times} | {row.seconds - row.searching:.1f} | {row.mib:.0f} |"
    )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
