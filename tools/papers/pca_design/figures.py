"""The figures of Garg, Panda and Roy, drawn from a blueprint and from trained nets (their numbers in the names)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pcns_onnx.architecture.blueprint import Blueprint

DPI = 80
Points = Mapping[float, Sequence[float]]
"""x -> what each repetition gave."""


def pca_graphs(found: Blueprint, path: Path) -> None:
    """Cumulative share of the variance against the number of components, per layer (Fig. 10)."""
    figure = Figure(figsize=(10, 4))
    axes = figure.subplots(1, 2, sharey=True)
    half = (len(found.layers) + 1) // 2
    for side, (axis, layers) in enumerate(zip(axes, (found.layers[:half], found.layers[half:]), strict=True)):
        for at, layer in enumerate(layers, start=1 + side * half):
            x = np.arange(1, layer.filters + 1) / layer.filters
            axis.plot(x, layer.explained, label=f"{at}: {layer.significant} of {layer.filters}")
        axis.axhline(found.variance, color="red", linewidth=0.8)
        axis.set(xlabel="components / filters", ylim=(0, 1.02))
        axis.legend(title="layer: significant", fontsize=7, title_fontsize=7)
    axes[0].set_ylabel("share of the variance")
    _save(figure, path)


def significant_dimensions(found: Blueprint, path: Path, other: Sequence[int] = (), said: str = "") -> None:
    """Significant dimensions by layer, those that are dropped crossed out (Fig. 12); `other` beside them."""
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    x = np.arange(1, len(found.layers) + 1)
    axis.plot(x, [layer.filters for layer in found.layers], color="lightgrey", label="filters")
    axis.plot(x, [layer.significant for layer in found.layers], marker="o", label=f"{found.variance:.4g}")
    if other:
        axis.plot(x, other, marker="s", linestyle="--", label=said)
    gone = [(at, layer.significant) for at, layer in zip(x, found.layers, strict=True) if not layer.stays]
    if gone:
        xs, ys = zip(*gone, strict=True)
        axis.scatter(xs, ys, marker="x", color="red", s=90, zorder=3, label="dropped")
    axis.set(xlabel="layer", ylabel="dimensions", xticks=x)
    axis.legend(title="share of the variance", fontsize=8, title_fontsize=8)
    _save(figure, path)


def filters(weight: NDArray[np.floating], turned: NDArray[np.floating], path: Path) -> None:
    """The first layer's filters (M, C, h, w) and, turned onto the principal components, its eigenfilters (Fig. 7)."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots(1, 2)
    for axis, bank, title in zip(axes, (weight, turned), ("filters", "eigenfilters, strongest first"), strict=True):
        axis.imshow(_mosaic(bank), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    _save(figure, path)


def accuracy_curve(points: Points, original: Sequence[float], label: str, path: Path) -> None:
    """Accuracy against `label`: one point per trained net, the mean as a line; the original's as a level."""
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    x = sorted(points)
    for at in x:
        axis.scatter([at] * len(points[at]), [100 * v for v in points[at]], color="tab:blue", s=12, alpha=0.5)
    axis.plot(x, [100 * float(np.mean(points[at])) for at in x], marker="o", label="design, trained from scratch")
    axis.axhline(100 * float(np.mean(original)), color="grey", linestyle="--", label="original, trained likewise")
    axis.set(xlabel=label, ylabel="test accuracy (%)")
    axis.legend(fontsize=8)
    _save(figure, path)


def _mosaic(bank: NDArray[np.floating]) -> NDArray[np.float64]:
    """Filters side by side, zero in mid-grey and all on one scale, white between them; three channels in colour."""
    columns = int(np.ceil(np.sqrt(len(bank))))
    most = max(float(np.abs(bank).max()), 1e-12)
    tiles = []
    for one in bank.astype(np.float64):
        shown = (0.5 + 0.5 * one / most).transpose(1, 2, 0)
        shown = shown if shown.shape[2] == 3 else shown.mean(axis=2, keepdims=True)
        tiles.append(np.pad(shown, ((0, 1), (0, 1), (0, 0)), constant_values=1.0))
    tiles += [np.ones_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[at : at + columns], axis=1) for at in range(0, len(tiles), columns)]
    whole = np.concatenate(rows, axis=0)
    return whole if whole.shape[2] == 3 else whole[:, :, 0]


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
