"""What shrinking is worth on top of int8 and float16: accuracy, size and latency of six models.

    python tools/benchmarks/precision.py ORIGINAL SMALL --data CALIB.npz --test TEST.npz --normalize MEAN STD

Both models as they are, in int8 and in float16; each is timed against the original, and against the original in
its own precision, by runs that alternate (the median of the ratios of neighbours). Prints a table in Markdown.
"""

from __future__ import annotations

import argparse

import numpy as np

from pcns_onnx.cost.benchmark import compare_many
from pcns_onnx.data.conform import Normalize
from pcns_onnx.data.dataset import open_data, split
from pcns_onnx.evaluation.agreement import compare_outputs
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.lowering.quantize import in_precision
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original")
    parser.add_argument("small")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--normalize", nargs=2, metavar=("MEAN", "STD"))
    parser.add_argument("--kinds", nargs="*", default=["float32", "int8", "fp16"])
    parser.add_argument("--samples", type=int, default=512, help="samples for calibration")
    parser.add_argument("--tested", type=int, help="samples of TEST (all)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="for each ratio")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    mean, std = (tuple(map(float, text.split(","))) for text in given.normalize or ("0", "1"))
    normalize = Normalize(mean, std) if given.normalize else None
    engine, plain = Engine(threads=given.threads), [Graph.load(given.original), Graph.load(given.small)]
    inputs = plain[0].inputs
    calibration = split(open_data(given.data, inputs, normalize=normalize), holdout=0, seed=0, samples=given.samples)[0]
    tested = split(open_data(given.test, inputs, normalize=normalize), holdout=0, seed=0, samples=given.tested)[0]
    fed = Samples(calibration, 64)
    heads = [f"of the {what}, batch {batch}" for batch in given.batches for what in ("original", "original in this")]
    print("| model | accuracy | size (KB) | " + " | ".join(f"latency {head}" for head in heads) + " |")
    print("|" + "---|" * (3 + len(heads)))
    for kind in given.kinds:
        pair = plain if kind == "float32" else [in_precision(kind, graph, fed)[0] for graph in plain]
        for name, graph in zip(("original", "shrunk"), pair, strict=True):
            agreement = compare_outputs(engine, plain[0], graph, Samples(tested, 64), None, Progress())
            ratios = []
            for batch in given.batches:
                timed = Samples(tested, batch)
                for against in (plain[0], pair[0]):
                    same = graph is against
                    ratios.append(1.0 if same else compare_many(engine, against, [graph], timed, given.seconds)[0])
            score = np.nan if agreement.score_b is None else agreement.score_b
            row = [f"{name}, {kind}", f"{score:.2f}", f"{graph.nbytes / 1e3:,.0f}", *(f"{r:.2f}" for r in ratios)]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
