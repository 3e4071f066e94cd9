"""What is left of a sentence encoder's embeddings after shrinking, as a Markdown table.

    python tools/benchmarks/minilm.py DIR [--budget macs=0.8 ...] [--method obs] [--samples 2000] [--threads 2] \
        [--heal N] [--set heal_loss=outputs ...]

DIR is what `tools/fixtures/minilm.py` wrote. One row per budget. On the sentences of `test.npz`, which the solve never
sees: the cosine between the original's and the shrunk model's embedding of the same sentence (mean, and the value that
5 % of the sentences fall below), and Spearman's rank correlation of the two models' similarities over all pairs of
sentences, which is what a search by similarity depends on. The last column is what `shrink` took. With `--heal N` the
small model learns from N sentences shown (0: as many as suit it); then these 500 are those of the final check as well,
which decides nothing, so that none of the others need be held out for it. `--set` gives further options by name.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import numpy as np
import numpy.typing as npt
import onnxruntime
from scipy.stats import spearmanr

from pcns_onnx import shrink

BATCH = 50


def embeddings(model: bytes, feeds: dict[str, npt.NDArray[np.int64]], threads: int) -> npt.NDArray[np.float64]:
    """One row of length 1 per sentence: the model's own embedding, or the mean of its states over the tokens."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rows = []
    for start in range(0, len(feeds["input_ids"]), BATCH):
        batch = {name: array[start : start + BATCH] for name, array in feeds.items()}
        out = np.asarray(session.run(None, batch)[0], dtype=np.float64)
        if out.ndim == 3:
            mask = batch["attention_mask"][..., None]
            out = (out * mask).sum(1) / mask.sum(1)
        rows.append(out / np.linalg.norm(out, axis=1, keepdims=True))
    return np.concatenate(rows)


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Of the similarities of all pairs of sentences."""
    pairs = np.triu_indices(len(a), 1)
    return float(spearmanr((a @ a.T)[pairs], (b @ b.T)[pairs]).statistic)


def main() -> None:
    """Shrink to each budget and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--budget", nargs="+", default=["macs=0.8"], help="one row for each")
    parser.add_argument("--method", default="obs")
    parser.add_argument("--samples", type=int, default=2000, help="calibration sentences to use")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--heal", type=int, metavar="N", help="sentences shown to the student; 0: as many as suit it")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="further options of `shrink`")
    args = parser.parse_args()
    choices: dict[str, Any] = {"method": args.method, "samples": args.samples, "threads": args.threads}
    if args.heal is not None:
        choices |= {"heal": args.heal, "eval": args.folder / "test.npz"}
    own = {name: value for name, _, value in (text.partition("=") for text in args.set)}
    choices |= {name: int(value) if value.isdecimal() else value for name, value in own.items()}
    model = args.folder / "model.onnx"
    with np.load(args.folder / "test.npz") as held:
        test = {name: held[name] for name in held.files}
    before = embeddings(model.read_bytes(), test, args.threads)
    print("| options | MACs | params | latency | cosine | 5 % below | rank correlation | processor seconds |")
    print("|---|---|---|---|---|---|---|---|")
    said = "" if args.heal is None else f" --heal {args.heal}"
    for budget in args.budget:
        start = time.process_time()
        result = shrink(model, args.folder / "calib.npz", budget=budget, **choices)
        seconds = time.process_time() - start
        report = result.report
        after = embeddings(result.model.SerializeToString(), test, args.threads)
        cosines = (before * after).sum(1)
        print(
            f"| `--method {args.method} --budget {budget}{said}` | {report.after.macs / report.before.macs:.3f} "
            f"| {report.after.parameters / report.before.parameters:.3f} | {report.latency.ratio:.2f} "
            f"| {cosines.mean():.4f} | {np.quantile(cosines, 0.05):.4f} | {rank_correlation(before, after):.4f} "
            f"| {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
