"""Writing the report and the page, then letting the gates speak."""

from __future__ import annotations

import os

from pcns_onnx.cost.benchmark import pass_seconds
from pcns_onnx.evaluation.gates import enforce
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import write_page
from pcns_onnx.report.schema import Report, Stage
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples


def finish(
    report: Report,
    path: str | os.PathLike[str] | None,
    page: str | os.PathLike[str] | None,
    consequence: str = "",
) -> None:
    """Write the report and the page where they are wanted, then let the gates speak (`GateError`)."""
    if path is not None:
        report.save(path)
    if page is not None:
        write_page(report, page)
    enforce(report.gates, report, consequence)


def stages_of(engine: Engine, graph: Graph, samples: Samples, progress: Progress) -> dict[str, Stage]:
    """Seconds per stage, and in passes of the original over the same samples."""
    one_pass = max(pass_seconds(engine, graph, samples), 1e-9)
    return {name: Stage(spent, spent / one_pass) for name, spent in progress.seconds.items()}
