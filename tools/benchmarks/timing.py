"""How well the layers' measured times predict whole models, and which multiples of channels pay here.

    python tools/benchmarks/timing.py ../shared [--batch 1,16] [--threads 1] [--fresh] [--only vgg]

SHARED holds `models/` (see its README). Models are narrowed without solving, to the same share of
every group and to random ones, on multiples of 4 or on any width; their latency is measured against
the original's in turns. `--fresh` measures the layers anew, whatever the user's cache holds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.cost.benchmark import compare_many
from pcns_onnx.cost.latency_model import LatencyModel, measure_layers
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph, kept_classes
from pcns_onnx.graph import Graph
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.rewrite.fold_batch_norm import fold_batch_norms
from pcns_onnx.rewrite.patch import apply
from pcns_onnx.runtime.engine import Engine, choose_engine
from pcns_onnx.runtime.samples import Samples

MODELS = ("vgg16bn_cifar10", "resnet20_cifar10", "mnist_lenet300_relu")
TRIES = 4
"""Random narrowings of each kind."""


def kept_of(dependencies: DependencyGraph, share: NDArray[np.float64], multiple: int) -> NDArray[np.bool_]:
    """The first classes of every group that may shrink, this share (groups,) of each, on a multiple."""
    keep = {}
    for group, part in zip(dependencies.groups, share, strict=True):
        if group.frozen is None:
            width = max(round(part * group.width / multiple), 1) * multiple
            keep[group.name] = group.labels[: min(width, group.width)]
    return kept_classes(dependencies, keep)


def narrowings(dependencies: DependencyGraph) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """What to try, by title: which classes stay."""
    rng, count = np.random.default_rng(0), len(dependencies.groups)
    for share in (0.75, 0.5, 0.25):
        yield f"{share:g} of all", kept_of(dependencies, np.full(count, share), 4)
    for multiple in (16, 4, 1):
        for _ in range(TRIES):
            yield f"random, multiple {multiple}", kept_of(dependencies, rng.uniform(0.15, 1.0, count), multiple)


def narrowed(graph: Graph, dependencies: DependencyGraph, kept: NDArray[np.bool_]) -> Graph:
    """The model with only the classes `kept`."""
    keep = {group.name: group.labels[kept[group.labels]] for group in dependencies.groups}
    return apply(graph, narrow(graph, dependencies, keep))


def errors(
    engine: Engine, graph: Graph, dependencies: DependencyGraph, latency_model: LatencyModel, batch: int
) -> Iterator[tuple[str, float, float]]:
    """(title, measured ratio, predicted ratio) of every narrowing."""
    spec = graph.inputs[0]
    shape = (batch, *(size or 1 for size in spec.shape[1:]))
    data = open_data({spec.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}, graph.inputs)
    tried = list(narrowings(dependencies))
    small = (narrowed(graph, dependencies, kept) for _, kept in tried)
    found = compare_many(engine, graph, small, Samples(data, batch), 1.0)
    whole = latency_model.of_classes(dependencies, np.ones(dependencies.born + 1, dtype=np.bool_))
    for (title, kept), measured in zip(tried, found, strict=True):
        yield title, measured, latency_model.of_classes(dependencies, kept) / whole


def main() -> None:
    """Print a table of errors and one of steps, for every model and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    engine = choose_engine("cpu", args.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name in (name for name in MODELS if args.only in name):
            graph = explicit_biases(fold_batch_norms(Graph.load(args.shared / "models" / f"{name}.onnx"))[0])[0]
            dependencies = build_dependency_graph(graph.as_float32())
            for batch in map(int, args.batch.split(",")):
                start = time.perf_counter()
                cache = Path(folder) if args.fresh else None
                latency_model = measure_layers(engine, graph, dependencies, batch, cache=cache)
                took = time.perf_counter() - start
                whole = latency_model.of_classes(dependencies, np.ones(dependencies.born + 1, dtype=np.bool_))
                layers = sum(float(t.at(1, 1)) - latency_model.start for t in latency_model.layers.values())
                rest = whole - latency_model.fixed - layers
                print(f"\n{name}, batch {batch}: {whole * 1e3:.2f} ms, {latency_model.fixed / whole:.1%} of it fixed,")
                print(f"{rest / whole:.1%} beside layers; measured in {took:.1f} s\n")
                print("| narrowed to | measured | predicted | error |\n|---|---|---|---|")
                missed = []
                for title, measured, predicted in errors(engine, graph, dependencies, latency_model, batch):
                    missed.append(predicted / measured - 1)
                    print(f"| {title} | {measured:.3f} | {predicted:.3f} | {missed[-1]:+.1%} |", flush=True)
                print(f"\nmean error {np.mean(missed):+.1%}, mean of its size {np.mean(np.abs(missed)):.1%}\n")
                print("| multiple that pays | groups |\n|---|---|")
                for step in sorted(set(latency_model.steps.values())):
                    print(f"| {step} | {', '.join(g for g, s in latency_model.steps.items() if s == step)} |")


if __name__ == "__main__":
    main()
