"""The page's pictures: SVG by matplotlib whose colours are CSS variables.

A picture is drawn in stand-in colours that nothing else uses; in the SVG each becomes
`currentColor` or `var(--...)`. Texts stay texts, in the page's font.
"""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pcns_onnx.cost.resources import COUNTED, RESOURCES, TIMED
from pcns_onnx.planning.plan import FrontierPoint
from pcns_onnx.report.schema import GroupInfo, Report
from pcns_onnx.report.shares import worst_share

Picture = tuple[str, str, str]
"""Title, what can be seen, and the SVG."""

INK, BEFORE, AFTER, THIRD, FAINT = "#010101", "#010102", "#010103", "#010104", "#010105"
_INKS = {
    INK: "currentColor", BEFORE: "var(--before)", AFTER: "var(--after)", THIRD: "var(--third)", FAINT: "var(--line)",
}  # fmt: skip
_WIDE = 4.6
"""Inches: a figure as narrow as a phone, so that its letters can be read there."""
_ROW = 0.26
_LONGEST = 24
_MOST = 40
"""Layers that one picture shows; the table has them all."""
_LEAST = 1e-6
"""Where logarithmic axes end."""
_DRAWN = 3
"""Medians: a run that takes longer is counted, not drawn."""
_NAMED = 6
"""Lines that a legend can tell apart."""


def pictures(report: Report) -> Iterator[Picture]:
    """All that can be drawn of a report, in the order of the page."""
    groups = report.groups
    shown = sorted(groups, key=lambda group: -group.width)[:_MOST]
    shown = [group for group in groups if group in shown]
    cut = "" if len(shown) == len(groups) else f" (the {_MOST} widest; the table has all)"
    if report.frontier:
        yield drawn(
            "Error against cost",
            "Predicted error at the outputs, before any re-fit, for every budget; the dot is what was chosen.",
            3.2, lambda figure: draw_frontier(figure, report.frontier, report.chosen),
        )  # fmt: skip
    if groups:
        tall = 0.9 + _ROW * len(shown)
        yield drawn("Width of each layer", f"Before and after{cut}.", tall, lambda figure: _widths(figure, shown))
        yield drawn(
            "Predicted and measured error of each layer",
            "Shares of the variance of what reads the layer: predicted when its width was chosen, measured after "
            f"the re-fit where it was solved, and on samples kept aside{cut}.",
            tall + 0.2, lambda figure: _errors(figure, shown),
        )  # fmt: skip
    spectra = {group.name: group.eigenvalues for group in groups if group.eigenvalues}
    if spectra:
        yield drawn(
            "Eigenvalues",
            "Share of the variance of a layer's outputs by principal direction: a steep curve has few that matter.",
            3.2, lambda figure: _curves(figure, spectra, "direction, as a share of the width", "share of variance"),
        )  # fmt: skip
    curves = {group.name: group.curve for group in groups if group.curve}
    if curves:
        yield drawn(
            "What each width would lose",
            "Predicted error of a layer (squared, relative) against the share of its channels that stays.",
            3.2, lambda figure: _curves(figure, curves, "share of the channels kept", "predicted error"),
        )  # fmt: skip
    if report.latency.times_a:
        yield drawn(
            "Latency of every run",
            f"{report.latency.rounds} runs of both models in turns{_beyond(report)}.",
            2.8, lambda figure: _latency(figure, report),
        )  # fmt: skip


def drawn(title: str, words: str, tall: float, draw: Callable[[Any], None]) -> Picture:
    """A picture `tall` inches high, by what draws it on a figure."""
    matplotlib = importlib.import_module("matplotlib")
    figures = importlib.import_module("matplotlib.figure")
    settings = {
        # Names may hold anything: a dollar is no formula.
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9,
        "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "grid.color": FAINT, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "legend.labelcolor": INK,
    }  # fmt: skip
    buffer = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the page's font may have it
        figure = figures.Figure(figsize=(_WIDE, tall), layout="constrained")
        draw(figure)
        plain = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=plain)
    return title, words, _themed(buffer.getvalue())


def _themed(svg: str) -> str:
    """Only the element, in the page's colours; of its ids those that something refers to."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    for stand_in, colour in _INKS.items():
        body = body.replace(stand_in, colour)
    return f'{head} role="img">{body}'


def _label(name: str) -> str:
    """A name that fits beside an axis."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def draw_frontier(figure: Any, points: Sequence[FrontierPoint], chosen: FrontierPoint | None) -> None:
    """Predicted error against the share of each cost that is known, with a dot for what was `chosen`."""
    axes = figure.subplots()
    costs = [name for name in (COUNTED[0], *TIMED) if all(name in point.costs for point in points)]
    for name, colour in zip(costs, (AFTER, THIRD), strict=False):
        shares, label = [point.costs[name] for point in points], RESOURCES[name].label
        axes.plot(shares, [point.error for point in points], marker=".", color=colour, label=label)
        if chosen is not None:
            axes.plot([chosen.costs[name]], [chosen.error], marker="o", markersize=10, color=colour)
    axes.set(xlabel="share of the original", ylabel="predicted relative error", xlim=(0, 1), ylim=(0, None))
    axes.legend()


def _rows(figure: Any, groups: list[GroupInfo]) -> tuple[Any, Any]:
    axes, at = figure.subplots(), np.arange(len(groups))
    axes.set_yticks(at, [_label(group.name) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    return axes, at


def _widths(figure: Any, groups: list[GroupInfo]) -> None:
    axes, at = _rows(figure, groups)
    axes.barh(at, [group.width for group in groups], height=0.7, color=BEFORE, label="before")
    axes.barh(at, [group.kept for group in groups], height=0.7, color=AFTER, label="after")
    axes.set_xlabel("channels")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)


def _errors(figure: Any, groups: list[GroupInfo]) -> None:
    axes, at = _rows(figure, groups)
    fits = [list(group.fits.values()) for group in groups]
    series = (
        ("predicted", "o", INK, _known(group.predicted_error for group in groups)),
        ("re-fit", "x", THIRD, _known(worst_share(fit.error for fit in fitted) for fitted in fits)),
        ("kept aside", "D", AFTER, _known(worst_share(fit.held_out_error for fit in fitted) for fitted in fits)),
    )  # fmt: skip
    for label, marker, colour, values in series:
        if np.isfinite(values).any():
            percent = 100 * np.asarray(values)
            axes.plot(percent, at, marker, color=colour, label=label, fillstyle="none", markersize=6)
    axes.set_xlabel("error, % of the variance")
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)


def _known(errors: Iterable[float | None]) -> list[float]:
    return [np.nan if error is None else error for error in errors]


def _curves(figure: Any, curves: dict[str, list[float]], x_label: str, y_label: str) -> None:
    axes = figure.subplots()
    ranked = sorted(curves, key=lambda name: -len(curves[name]))
    styles = ("-", "--", ":", "-.")
    for order, name in enumerate(ranked):
        values = np.asarray(curves[name])
        first = 0 if x_label.endswith("kept") else 1
        shares = np.linspace(first / max(len(values), 1), 1.0, len(values))
        named = len(ranked) <= _NAMED
        axes.plot(
            shares, np.maximum(values, _LEAST), color=(AFTER, THIRD, INK)[order % 3],
            linestyle=styles[order % 4], linewidth=1.2 if named else 0.7, label=_label(name) if named else "_",
        )  # fmt: skip
    axes.set(xlabel=x_label, ylabel=y_label, yscale="log", xlim=(0, 1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if len(ranked) <= _NAMED:
        axes.legend(fontsize=8)


def _slowest(report: Report) -> float:
    """Seconds beyond which a run is not drawn: what else the machine did would squeeze the rest."""
    medians = (float(np.median(times)) for times in (report.latency.times_a, report.latency.times_b))
    return _DRAWN * max(medians)


def _beyond(report: Report) -> str:
    times = np.asarray([*report.latency.times_a, *report.latency.times_b])
    slower = int((times > _slowest(report)).sum())
    return f"; {slower} that took over {_DRAWN} medians are left out" if slower else ""


def _latency(figure: Any, report: Report) -> None:
    axes = figure.subplots()
    first, second = (1e3 * np.asarray(times) for times in (report.latency.times_a, report.latency.times_b))
    both = np.concatenate([first, second])
    low, high = float(both.min()), min(float(both.max()), 1e3 * _slowest(report))
    bins = np.linspace(low, max(high, low * 1.001), 41)
    for times, colour, label in ((first, BEFORE, "before"), (second, AFTER, "after")):
        axes.hist(times, bins=bins, color=colour, alpha=0.7, label=label)
        axes.axvline(float(np.median(times)), color=colour, linestyle="--", linewidth=1)
    axes.set(xlabel=f"milliseconds per batch of {report.latency.batch}", ylabel="runs")
    axes.legend()
