"""How much of each transformer can go, in each form in which it is deployed: a table in Markdown.

    python tools/robustness/architectures.py [--only NAME ...] [--layers 2]

Models are built by hand (`transformers.py`): half of every width is superfluous, so that `--width 0.5` should lose
nothing. `share` is that of the multiply-adds in layers and products that get cheaper with what may go; then what is
left of them at half of every width and at `--budget macs=0.6`, each with the largest relative error of an output on
samples that the solve has not seen.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import numpy as np
import onnx

from pcns_onnx import inspect, shrink
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.graph import Graph, Program
from pcns_onnx.ops import Labels
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[1]))
from robustness.transformer_blocks import RECIPES, Array, Net
from robustness.transformers import convnext, row, rows, samples

FORM_NAMES = {
    "plain": "MatMul, Softmax",
    "onnx": "ai.onnx Attention-23",
    "ort": "com.microsoft",
}


def share_of(model: onnx.ModelProto, feeds: dict[str, Array]) -> float:
    """Share of the multiply-adds in layers and products that a narrower group makes cheaper."""
    twin = Canonical.of(Graph.load(model)).twin
    dependencies = build_dependency_graph(twin, {name: value.shape for name, value in feeds.items()})
    loose = np.concatenate([group.labels for group in dependencies.shrinkable] or [np.zeros(0, np.int64)])

    def is_loose(labels: Labels | None) -> bool:
        return labels is not None and bool(np.isin(labels, loose).any())

    cheaper = {la.name for la in dependencies.layers if is_loose(la.linear.reads) or is_loose(la.linear.writes)}
    cheaper |= {node.name for node in dependencies.unsolved if is_loose(node.scales)}
    costs = {layer.name: layer.macs or 0 for layer in inspect(model, feeds).layers}
    return sum(macs for name, macs in costs.items() if name in cheaper) / max(sum(costs.values()), 1)


def tried(model: onnx.ModelProto, net: Net, **choices: Any) -> str:
    """What is left of the multiply-adds, and the error."""
    data = samples(model, net, 600 if net.recipe.cache else 200)
    result = shrink(model, data, refine=0, **choices)
    Graph.load(result.model).check(full=True)
    feeds = samples(model, net, 8, 5)
    before, after = (Engine().session(Program(m.SerializeToString())).run(feeds) for m in (model, result.model))
    error = max(float(np.linalg.norm(before[name] - after[name]) / np.linalg.norm(before[name])) for name in before)
    macs = result.report.after.macs / result.report.before.macs
    return f"{macs:.3f} | {'< 1e-5' if error < 1e-5 else f'{error:.1e}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts of architectures' names")
    parser.add_argument("--layers", type=int, default=2)
    given = parser.parse_args()
    RECIPES.update({name: replace(recipe, layers=given.layers) for name, recipe in RECIPES.items()})
    print("| architecture | form | share | `--width 0.5` | error | `--budget macs=0.6` | error |")
    print("|---|---|---|---|---|---|---|")
    for name, form in [*rows(), ("ConvNeXt", "plain")]:
        if given.only and not any(part in name for part in given.only):
            continue
        model, net = convnext(given.layers) if name == "ConvNeXt" else row(name, form)
        share = share_of(model, samples(model, net, 8))
        half, budget = tried(model, net, width=0.5, multiple=1), tried(model, net, budget="macs=0.6")
        print(f"| {name} | {FORM_NAMES[form]} | {share:.2f} | {half} | {budget} |", flush=True)


if __name__ == "__main__":
    main()
