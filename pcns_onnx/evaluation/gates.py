"""The proof: agreement, latency, cost and gates of two models, put into a report."""

from __future__ import annotations

from importlib import metadata

import msgspec

from pcns_onnx.api.options import Options
from pcns_onnx.cost.benchmark import Latency, compare_latency, pass_seconds
from pcns_onnx.dependency.groups import Census
from pcns_onnx.errors import GateError, InputError
from pcns_onnx.evaluation.agreement import Agreement, Metric, compare_outputs
from pcns_onnx.graph import Graph
from pcns_onnx.planning.plan import Plan
from pcns_onnx.progress import Progress
from pcns_onnx.report.html.page import write_page
from pcns_onnx.report.schema import Gate, Report, Size, Stage
from pcns_onnx.runtime.activations import Samples
from pcns_onnx.runtime.engine import Engine, versions


def _runnable(graph: Graph) -> Graph:
    return graph.as_float32() if graph.storage == "bfloat16" else graph


def verify(
    engine: Engine, a: Graph, b: Graph, samples: Samples, metric: Metric | None, progress: Progress
) -> tuple[Agreement, list[str]]:
    """Agreement of two models on `samples`, and what a reader of it must be warned of."""
    warnings = []
    if "bfloat16" in (a.storage, b.storage):
        warnings.append("onnxruntime has no bfloat16 kernels on CPU: outputs and latency are of float32 twins")
    return compare_outputs(engine, _runnable(a), _runnable(b), samples, metric, progress), warnings


def time_both(engine: Engine, a: Graph, b: Graph, samples: Samples, progress: Progress) -> Latency:
    """Latency of both models, as a stage of the run."""
    with progress.stage("latency"):
        return compare_latency(engine, _runnable(a), _runnable(b), samples)


def size_of(graph: Graph, census: Census) -> Size:
    """Cost of a model whose layers `census` lists."""
    macs = sum(layer.macs for layer in census.layers) + sum(node.macs for node in census.unsolved)
    return Size(macs, graph.parameters, graph.nbytes)


def gates_of(options: Options, agreement: Agreement) -> list[Gate]:
    """The limits that the caller set, with what was measured."""
    gates = []
    if options.max_error is not None:
        gates.append(Gate("max-error", options.max_error, agreement.error))
    if options.max_drop is not None:
        if agreement.drop is None:
            raise InputError("--max-drop needs an output of shape (N, classes) and one label per sample, or --metric")
        gates.append(Gate("max-drop", options.max_drop, agreement.drop))
    return gates


def quality_gates(options: Options, agreement: Agreement) -> list[Gate]:
    """The budgets on what may be lost, with what was measured."""
    gates = []
    for budget in options.qualities:
        value = agreement.error if budget.resource == "error" else agreement.drop
        if value is None:
            raise InputError("budget drop needs an output of shape (N, classes) and one label per sample, or --metric")
        gates.append(Gate(f"budget {budget.resource}", budget.limit, value))
    return gates


def finish(report: Report, options: Options, consequence: str = "") -> None:
    """Write the report and the page, then let the gates speak."""
    if options.report is not None:
        report.save(options.report)
    if options.html is not None:
        write_page(report, options.html)
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        said = ", ".join(f"{g.name} {g.value:.4g} exceeds {g.limit:g}" for g in failed)
        raise GateError(f"gate failed: {said}{consequence}", report)


def stages_of(engine: Engine, graph: Graph, samples: Samples, progress: Progress) -> dict[str, Stage]:
    """Seconds per stage, and in passes of the original over the same samples."""
    one_pass = max(pass_seconds(engine, graph, samples), 1e-9)
    return {name: Stage(spent, spent / one_pass) for name, spent in progress.seconds.items()}


def provenance(plan: Plan, options: Options) -> str:
    """What the shrunk model says about itself: JSON that depends on model, data and options only."""
    widths = {name: [entry.width, entry.of] for name, entry in plan.groups.items()}
    said: dict[str, object] = {
        "version": metadata.version("pcns-onnx"),
        "method": plan.method,
        "model": plan.model,
        "seed": options.seed,
        "widths": widths,
    }
    if plan.rank_ratio is not None:
        said["rank_ratio"] = plan.rank_ratio
    return msgspec.json.encode(said, order="sorted").decode()


def library_versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("pcns-onnx", "onnx", "numpy", "scipy")
    return {name: metadata.version(name) for name in names} | versions()
