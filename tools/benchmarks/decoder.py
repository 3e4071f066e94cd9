"""What a small decoder loses in perplexity by what is taken from it: FFNs and heads, its residual stream, or both.

    python tools/fixtures/decoder.py DIR
    python tools/benchmarks/decoder.py DIR [--macs 0.9 0.8 0.7] [--samples 1500] [--threads 1]

At each share of the multiply-adds: `shrink --budget` alone; `--rotate-streams` alone, as wide as that allows, as it is
and replayed without its re-fit (SliceGPT as it is published); and both, the stream taking half of the way (in
logarithms). Perplexity is that of `test.npz`, which nothing has seen.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from pcns_onnx import inspect, shrink
from pcns_onnx.graph import Program
from pcns_onnx.planning.plan import write_plan
from pcns_onnx.runtime.engine import Engine

BATCH, STEP = 32, 4


def perplexity(model: onnx.ModelProto, tokens: NDArray[np.int64], threads: int) -> float:
    """exp of the mean of -log p of every token (rows, 1 + positions) but the first of each row."""
    session, lost = Engine(threads=threads).session(Program(model.SerializeToString())), 0.0
    for start in range(0, len(tokens), BATCH):
        rows = tokens[start : start + BATCH]
        logits = np.asarray(session.run({"input_ids": rows[:, :-1]})["logits"], dtype=np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, rows[:, 1:, None], axis=-1)[..., 0]
        lost += float((np.log(np.exp(logits).sum(axis=-1)) - chosen).sum())
    return float(np.exp(lost / tokens[:, 1:].size))


def width_for(model: Path, data: dict[str, Any], macs: float) -> tuple[int, int]:
    """The width of the stream that leaves this share of the multiply-adds, all layers being as wide as they are on
    their other side; and what it is."""
    layers = inspect(model, data).layers
    whole = sum(layer.macs or 0 for layer in layers)
    reading = sum(layer.macs or 0 for layer in layers if layer.parameters)
    table = next(t for t in onnx.load(model).graph.initializer if "table" in t.name)
    width = int(table.dims[1])
    return int((1 - (1 - macs) * whole / reading) * width) // STEP * STEP, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--macs", type=float, nargs="*", default=[0.9, 0.8, 0.7])
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    path = given.directory / "model.onnx"
    calibration = np.load(given.directory / "calib.npz")["input_ids"][: given.samples, :-1]
    test = np.load(given.directory / "test.npz")["input_ids"]
    data = {"input_ids": calibration}
    cut_alone = given.directory / "cut_alone.json"
    whole = perplexity(onnx.load(path), test, given.threads)
    print("| MACs | what goes | left of the MACs | parameters | stream | perplexity | seconds |")
    print("|---|---|---|---|---|---|---|")
    print(f"| 1 | nothing | 1.000 | 1.000 | | {whole:.2f} | |", flush=True)
    for macs in given.macs:
        alone, width = width_for(path, data, macs)
        half, _ = width_for(path, data, macs**0.5)
        ways: dict[str, dict[str, Any]] = {
            "FFNs and heads": {"budget": f"macs={macs}"},
            "the stream": {"rotate_streams": alone},
            "the stream, cut alone": {"plan": cut_alone},
            "both": {"rotate_streams": half, "budget": f"macs={macs}"},
        }
        for name, choices in ways.items():
            start = time.process_time()
            result = shrink(path, data, threads=given.threads, **choices)
            if name == "the stream":
                for plan in result.plan.streams:
                    result.plan.streams[plan] = msgspec.structs.replace(result.plan.streams[plan], refit=False)
                write_plan(result.plan, cut_alone)
            seconds = time.process_time() - start
            a, b = result.report.before, result.report.after
            streams = [f"{s.width} of {s.of}{', solved' if s.refit else ''}" for s in result.report.streams.values()]
            figure = perplexity(result.model, test, given.threads)
            print(
                f"| {macs:g} | {name} | {b.macs / a.macs:.3f} | {b.parameters / a.parameters:.3f} | "
                f"{', '.join(streams) or f'{width}'} | {figure:.2f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
