"""The picture: accuracy against MACs and against latency, one panel per model.

The axis of accuracy is logarithmic in the points lost, so that one point is as visible as thirty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.frontier_cases.judge import Verdict
from benchmarks.frontier_cases.results import Row, best_settings

MARKERS = "os^vDP*X<>hpd8H"
LOST = (0, 1, 2, 5, 10, 20, 40, 80)


def draw(rows: Sequence[Row], order: Sequence[str], folder: Path) -> None:
    """Write `frontier_macs.svg` and `frontier_latency.svg` (the smallest batch)."""
    best = [row for row in best_settings(rows) if row.verdict is not None]
    if not best:
        return
    _figure(best, order, "MACs left", lambda judged: judged.macs, folder / "frontier_macs.svg")
    _figure(
        best, order, "latency, ratio to the original",
        lambda judged: judged.latency[min(judged.latency, key=int)], folder / "frontier_latency.svg",
    )  # fmt: skip


def _figure(rows: list[Row], order: Sequence[str], label: str, x: Callable[[Verdict], float], path: Path) -> None:
    cases = list(dict.fromkeys(row.case for row in rows))
    across = min(3, len(cases))
    down = -(-len(cases) // across)
    figure = Figure(figsize=(4.6 * across, 3.6 * down + 1.2))
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for panel, case in zip(panels, cases, strict=False):
        _panel(panel, [row for row in rows if row.case == case], order, x)
        panel.set(title=case, xlabel=label, ylabel="accuracy (%)")
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    found = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    named = [name for name in order if name in found]
    figure.legend([found[name] for name in named], named, loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.9 / (3.6 * down + 1.2), 1, 1))
    with matplotlib.rc_context({"svg.hashsalt": "frontier"}):
        figure.savefig(path, metadata={"Date": None})


def _panel(panel: Axes, rows: list[Row], order: Sequence[str], x: Callable[[Verdict], float]) -> None:
    panel.axhline(rows[0].base, color="black", linewidth=0.8, linestyle=":")
    colours = matplotlib.colormaps["tab20"]
    for index, name in enumerate(order):
        seen = sorted((x(row.verdict), row.verdict.accuracy) for row in rows if row.contender == name and row.verdict)
        if not seen:
            continue
        ours = name.startswith("pcns-onnx")
        panel.plot(
            [each[0] for each in seen], [each[1] for each in seen], label=name, color=colours(index % 20),
            marker=MARKERS[index % len(MARKERS)], markersize=5, clip_on=False,
            linewidth=2.2 if ours else 1.0, linestyle="-" if ours else "--",
        )  # fmt: skip
    panel.grid(alpha=0.3)
    accuracies = [row.verdict.accuracy for row in rows if row.verdict]
    top, bottom = max(rows[0].base, *accuracies), min(rows[0].base, *accuracies)
    panel.set_yscale(
        "function", functions=(lambda y: -np.log(1 + np.maximum(top - y, 0)), lambda z: top + 1 - np.exp(-z))
    )
    panel.set_ylim(bottom - 0.15 * (top - bottom + 1), top)
    panel.set_yticks([rows[0].base - lost for lost in LOST if rows[0].base - lost >= bottom])
    panel.yaxis.set_major_formatter("{x:.1f}")
    panel.minorticks_off()
