"""What was measured, as tables for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from textwrap import shorten
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]

HEADINGS = (
    "model", "task", "asked for", "decisions kept", "what counts as one", "MACs", "parameters", "latency", "seconds",
    "peak MiB",
)  # fmt: skip


LONGEST = 200
"""Characters of a reason that are shown."""


def heads(names: Iterable[str]) -> str:
    """The first two lines of a table."""
    names = list(names)
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def row(record: Record) -> str:
    """A run as a row, or its reason."""
    first = [record["name"], record["task"], f"`{record['asked']}`"]
    if "why" in record:
        reason = shorten(record["why"].replace("|", "/"), LONGEST, placeholder=" …")
        return "| " + " | ".join([*first, reason]) + " |" * (len(HEADINGS) - len(first))
    cells = [_score(record["score"]), record["decision"], f"{record['macs']:.3f}", f"{record['parameters']:.3f}"]
    cells += [f"{record['latency']:.2f}", f"{record['seconds']:.0f}", f"{record['peak']:.0f}"]
    return "| " + " | ".join([*first, *cells]) + " |"


def _score(score: float | None) -> str:
    return "none made" if score is None else f"{score:.1f} %"


def figures(report: Record) -> dict[str, Any]:
    """What the tables need of a report."""
    before, after, agreement = report["before"], report["after"], report["agreement"]
    ratios = {key: after[key] / before[key] if before[key] else 1.0 for key in ("macs", "parameters")}
    return ratios | {
        "score": agreement["score_b"],
        "errors": {output["name"]: output["relative_error"] for output in agreement["outputs"]},
        "samples": agreement["samples"],
        "latency": report["latency"]["ratio"],
        "narrowed": len(report["groups"]),
        # A cause may be told once for all the layers that it holds back.
        "left": {
            name: item["reason"] for item in report["left_alone"] for name in item.get("layers") or [item["name"]]
        },
        "warnings": report["warnings"],
        "versions": report["versions"],
    }


def _left(items: Iterable[Record]) -> dict[str, str]:
    """Layers with their reasons; a cause may be told once for all that it holds back."""
    return {name: item["reason"] for item in items for name in item.get("layers") or [item["name"]]}


def reasons(records: Iterable[Record]) -> str:
    """Per model, how many layers stayed and why; names of tensors are left out, so that equal causes are one."""
    lines = [heads(("model", "layers narrowed", "layers left", "because"))]
    shown = set[str]()
    for record in records:
        if "left" not in record or record["name"] in shown or not record["narrowed"]:
            continue
        shown.add(record["name"])
        causes = Counter(re.sub(r"(?<!\w)'[^']*'", "…", reason) for reason in record["left"].values())
        text = "; ".join(f"{cause} ({count})" for cause, count in causes.most_common(4))
        text += f"; {len(causes) - 4} more causes" if len(causes) > 4 else ""
        lines.append(f"| {record['name']} | {record['narrowed']} | {len(record['left'])} | {text.replace('|', '/')} |")
    return "\n".join(lines)
