"""The picture that `plan --figure` draws of the frontier, by matplotlib (an extra). The page draws its own."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pcns_onnx.cost.resources import COUNTED, RESOURCES, TIMED
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.files import check_targets, write_atomic
from pcns_onnx.report.schema import PlanReport

FORMATS = (".svg", ".png", ".pdf")


def _pyplot() -> Any:
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise UnsupportedError("figures need matplotlib: `pip install 'pcns-onnx[plots]'`") from None


def frontier_figure(path: str | Path, sources: Sequence[object] = ()) -> Callable[[PlanReport], None]:
    """What draws predicted error against multiply-adds and latency, and writes it atomically.

    Raises `InputError` for other formats, and where `path` is one of the `sources` or cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in FORMATS:
        raise InputError(f"'{path}' is no picture that can be drawn: name it {', '.join('*' + f for f in FORMATS)}")
    check_targets(sources, path)
    pyplot = _pyplot()

    def draw(report: PlanReport) -> None:
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for name in (COUNTED[0], *TIMED):
            shares = [point.costs[name] for point in report.points]
            axes.plot(shares, [point.error for point in report.points], marker="o", label=RESOURCES[name].label)
        axes.set(xlabel="share of the original", ylabel="predicted relative error", xlim=(0, 1), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind[1:], metadata={"Date": None} if kind == ".svg" else None)
        pyplot.close(figure)
        write_atomic(path, buffer.getvalue())

    return draw
