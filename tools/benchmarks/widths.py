"""Which widths does a runtime like? Every width of a layer timed, and the multiples that pay.

    pip install ".[cpu,openvino]"; npm install onnxruntime-web
    python tools/benchmarks/widths.py [--in openvino onnxruntime-web] [--most 128] [--seconds 20] [--out FOLDER]

A layer of n channels to n is timed alone at every n, as `plan` times layers (`cost.profiler`: one thread, the faster
half of runs that take turns): a Conv of 3 x 3 and one of 1 x 1 on 28 x 28 pixels, a MatMul of 256 rows; and a MatMul
of one row that reads 1,024 channels. The first tables have microseconds, and in brackets the time per multiply-add, the
least of all widths of that runtime and layer being 1. The last has the multiple that pays where a layer has so many
channels: the finest whose widths save most of their share (`cost.latency_model.step_that_pays`).
`runtime/targets/registry.py` holds these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.public_cases.tables import heads
from pcns_onnx.cost.latency_model import step_that_pays
from pcns_onnx.cost.profiler import Job, noise, take_turns
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.targets.registry import TARGETS
from pcns_onnx.runtime.targets.timer import require, version_of

SIDE, ROWS, READ = 28, 256, 1024
SHOWN = (1, 4, 7, 8, 9, 12, 15, 16, 17, 20, 24, 28, 31, 32, 33, 40, 48, 56, 63, 64, 65, 80, 96, 112, 127, 128)
COUNTS = (16, 32, 64, 96, 128)


def conv(side: int, width: int) -> tuple[ModelProto, tuple[int, ...]]:
    """A Conv of `side` x `side` with its bias, and the shape that it is fed."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[side // 2] * 4)
    return _model(node, (width, width, side, side), (1, width, SIDE, SIDE))


def matmul(width: int) -> tuple[ModelProto, tuple[int, ...]]:
    """A MatMul of many rows."""
    return _model(helper.make_node("MatMul", ["x", "w"], ["y"]), (width, width), (ROWS, width))


def one_row(width: int) -> tuple[ModelProto, tuple[int, ...]]:
    """A MatMul of one row, which reads all channels."""
    return _model(helper.make_node("MatMul", ["x", "w"], ["y"]), (READ, width), (1, READ))


def _model(node: NodeProto, weight: tuple[int, ...], fed: tuple[int, ...]) -> tuple[ModelProto, tuple[int, ...]]:
    sizes = {"x": fed, "y": (*fed[:1], weight[-1 if len(weight) == 2 else 0], *fed[2:])}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()]
    weights = [numpy_helper.from_array(noise(weight, np.dtype(np.float32)), "w")]
    if len(weight) == 4:
        weights.append(numpy_helper.from_array(noise(weight[:1], np.dtype(np.float32)), "b"))
    graph = helper.make_graph([node], "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), fed


LAYERS: dict[str, Callable[[int], tuple[ModelProto, tuple[int, ...]]]] = {
    "Conv 3 x 3": partial(conv, 3),
    "Conv 1 x 1": partial(conv, 1),
    "MatMul, 256 rows": matmul,
    "MatMul, 1 row": one_row,
}


def job(make: Callable[[int], tuple[ModelProto, tuple[int, ...]]], width: int) -> Job:
    model, fed = make(width)
    return Job(Graph.load(model).program(), {"x": noise(fed, np.dtype(np.float32))})


def measured(name: str, layer: str, most: int, seconds: float) -> NDArray[np.float64]:
    """Seconds (most,) of the layer at every width in a runtime."""
    jobs = [partial(job, LAYERS[layer], width) for width in range(1, most + 1)]
    return take_turns(Engine("cpu", 1, target=name), jobs, seconds)


def times_table(times: dict[tuple[str, str], NDArray[np.float64]], layer: str, names: Sequence[str]) -> str:
    lines = [heads(("width", *(f"{TARGETS[name].title} {version_of(TARGETS[name])}" for name in names)))]
    most = len(times[names[0], layer])
    macs = np.arange(1, most + 1) ** (1 if layer.endswith(" 1 row") else 2)
    per_mac = {name: times[name, layer] / macs for name in names}
    for width in (width for width in SHOWN if width <= most):
        cells = (
            f"{1e6 * times[name, layer][width - 1]:.0f} ({per_mac[name][width - 1] / per_mac[name].min():.1f})"
            for name in names
        )
        lines.append(f"| {width} | " + " | ".join(cells) + " |")
    return f"{layer}:\n\n" + "\n".join(lines) + "\n"


def steps_table(times: dict[tuple[str, str], NDArray[np.float64]], most: int) -> str:
    counts = [count for count in COUNTS if count <= most]
    lines = [heads(("runtime", "layer", *(f"of {count}" for count in counts)))]
    for (name, layer), seconds in times.items():
        steps = " | ".join(str(step_that_pays(seconds[:count])) for count in counts)
        lines.append(f"| {TARGETS[name].title} | {layer} | {steps} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in", dest="within", nargs="+", choices=TARGETS, default=list(TARGETS), help="these runtimes")
    parser.add_argument("--most", type=int, default=128, help="the widest layer")
    parser.add_argument("--seconds", type=float, default=20.0, help="for one layer in one runtime")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for widths.md and widths.json")
    args = parser.parse_args()
    for name in args.within:
        require(TARGETS[name])
    times = {}
    for name in args.within:
        for layer in LAYERS:
            times[name, layer] = measured(name, layer, args.most, args.seconds)
            print(f"{name}, {layer}", file=sys.stderr, flush=True)
    text = "\n".join([*(times_table(times, layer, args.within) for layer in LAYERS), steps_table(times, args.most)])
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "widths.md").write_text(text, encoding="utf-8")
        kept = {f"{name}: {layer}": seconds.tolist() for (name, layer), seconds in times.items()}
        (args.out / "widths.json").write_text(json.dumps(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
