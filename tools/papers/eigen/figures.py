"""The figures of `eigen.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DPI = 80
Curve = Mapping[float, tuple[float, float]]
"""Place on the x axis -> mean and variance."""


def curves(path: Path, left: Mapping[str, Curve], right: Mapping[str, Curve]) -> None:
    """Figure 4.1: relative squared distance by the share that was removed; beside it the text's other readings."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, methods, title in ((axes[0], left, "as in figure 4.1"), (axes[1], right, "other readings of the text")):
        _draw(axis, methods)
        axis.set(title=title, xlabel="share of the neurons removed")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("squared distance / squared norm")
    _save(figure, path)


def lines(
    path: Path, methods: Mapping[str, Curve], label: str = "squared distance / squared norm", x: str = "share added"
) -> None:
    """Figures 4.2, 4.3, 4.4, 4.7 and 4.8: one line per method."""
    figure, axis = plt.subplots(figsize=(6, 4))
    _draw(axis, methods)
    axis.set(xlabel=x, ylabel=label)
    _save(figure, path)


def bars(path: Path, seconds: Mapping[str, Sequence[float]]) -> None:
    """Figures 4.9 and 4.10: medians on a logarithmic scale, with the quartiles."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for at, values in enumerate(seconds.values()):
        quarters = np.percentile(values, (25, 50, 75))
        median = float(quarters[1])
        axis.barh(
            at, 1e3 * median, xerr=[[1e3 * (median - quarters[0])], [1e3 * (quarters[2] - median)]], color=f"C{at}"
        )
    axis.set_yticks(range(len(seconds)), list(seconds))
    axis.set(xscale="log", xlabel="ms")
    axis.invert_yaxis()
    _save(figure, path)


def histograms(path: Path, panels: Sequence[Mapping[str, Sequence[float]]], titles: Sequence[str]) -> None:
    """Figures 4.5, 4.6, 4.11 and 4.12."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    for axis, methods, title in zip(axes.flat, panels, titles, strict=True):
        axis.hist(list(methods.values()), bins=12, label=list(methods))
        axis.set_title(title)
        axis.legend(fontsize=7)
    _save(figure, path)


def _draw(axis: Any, methods: Mapping[str, Curve]) -> None:
    for name, curve in methods.items():
        x, found = list(curve), list(curve.values())
        axis.errorbar(x, [m for m, _ in found], [v**0.5 for _, v in found], label=name, marker=".", capsize=2)
    axis.legend(fontsize=7)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
