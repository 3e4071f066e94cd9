"""Figures of `mnist.py`: small PNG files, one function each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=75, metadata={"Software": None})
    plt.close(figure)


def spectra(path: Path, found: Mapping[int, Sequence[Sequence[float]]]) -> None:
    """Share of the variance that the first M eigenvectors miss, by epoch, one panel per layer."""
    figure, panels = plt.subplots(1, len(next(iter(found.values()))), figsize=(9, 3.4), sharey=True)
    shown = sorted(found)[:: max(1, len(found) // 5)]
    for number, panel in enumerate(panels):
        for at, epoch in enumerate(shown):
            left = np.clip(1 - np.cumsum(found[epoch][number]), 1e-7, None)
            colour = plt.get_cmap("viridis")(at / len(shown))
            panel.semilogy(np.arange(1, len(left) + 1), left, label=f"epoch {epoch}", color=colour)
        panel.set(title=f"layer {number + 1}", xlabel="eigenvectors M", ylim=(1e-6, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("variance missed")
    panels[-1].legend()
    _save(figure, path)


def eigenvector_errors(path: Path, found: Sequence[tuple[str, Sequence[float] | None, Sequence[float] | None]]) -> None:
    """Relative L2 error of each generated eigenvector (3.4), the last being the mean row."""
    figure, panels = plt.subplots(1, len(found), figsize=(9, 3.4), sharey=True)
    for panel, (name, weighted, plain) in zip(panels, found, strict=True):
        for values, label in ((plain, "plain least squares"), (weighted, "weighted by the slope")):
            percent = 100 * np.asarray(values or ())
            panel.plot(np.arange(1, len(percent) + 1), percent, ".", markersize=4, label=label)
        panel.set(title=name, xlabel="eigenvector (last: the mean)")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="relative L2 error (%)", ylim=(0, None))
    panels[-1].legend()
    _save(figure, path)


def curves(path: Path, found: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> None:
    """Lines of (x, y) points."""
    figure, panel = plt.subplots(figsize=(6, 3.6))
    for name, points in found.items():
        panel.plot(*np.array(sorted(points)).T, "o-", markersize=4, label=name)
    panel.set(xlabel=x, ylabel=y)
    panel.grid(alpha=0.3)
    panel.legend()
    _save(figure, path)


def runs(path: Path, found: Mapping[str, Sequence[tuple[float, int, float]]]) -> None:
    """Accuracy against seconds and against epochs."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for name, curve in found.items():
        seconds, epochs, accuracy = np.array(curve).T
        style = {"linewidth": 2.5, "color": "black"} if name == "dense" else {"linewidth": 1.2}
        panels[0].plot(seconds, accuracy, label=name, **style)
        panels[1].plot(epochs, accuracy, label=name, **style)
    panels[0].set(xlabel="processor seconds of training and shrinking", ylabel="test accuracy (%)", ylim=(50, 100))
    panels[1].set(xlabel="epochs")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=8)
    _save(figure, path)
