"""The frontier, side by side: every way to make a trained ONNX model cheaper without labels or retraining.

    python tools/benchmarks/frontier.py ../shared --out DIR                # everything (hours)
    python tools/benchmarks/frontier.py --out DIR                          # the digits models only (minutes)
    python tools/benchmarks/frontier.py ../shared --out DIR --only resnet20 --contenders 'pcns*,onnxsim*' --macs 0.5

Same models, same unlabelled calibration samples, the same fraction of MACs for all; one evaluator, with labelled test
data that no contender sees. Every contender is a process of its own (wall time, peak memory). Peers are installed into
their own virtual environment, once (`--peers`; PyTorch without CUDA comes from PIP_EXTRA_INDEX_URL, if you set
that). Runs can be done in parts: what DIR holds of the same version is kept, unless `--again`.

Written: `frontier.json` and `frontier.csv` (every row; who could not do a model has a row with the
reason), `frontier.md` and two pictures (each contender's best setting). Needs `pip install ".[cpu,plots]"`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.frontier_cases import measure
from benchmarks.frontier_cases.cases import Case, Point, cases, points, prepared
from benchmarks.frontier_cases.charts import draw
from benchmarks.frontier_cases.contenders import Contender, LackingError, Task, contenders, versions_of
from benchmarks.frontier_cases.judge import Judge
from benchmarks.frontier_cases.peers import python_of_peers, versions
from benchmarks.frontier_cases.results import Results, Row

TOOLS = Path(__file__).parents[1]
WHOLE = (Point(1.0),)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, nargs="?", help="folder with models/ and data/ (see its README)")
    parser.add_argument("--out", type=Path, required=True, help="where results are kept")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "pcns-onnx" / "peers")
    parser.add_argument("--only", default="*", help="cases: names or globs, comma-separated")
    parser.add_argument("--contenders", default="*", help="contenders: names or globs, comma-separated")
    parser.add_argument("--macs", default="", help="fractions of MACs, comma-separated, instead of each case's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", default="1,16", help="batch sizes at which latency is measured")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds that a contender may take")
    parser.add_argument("--again", action="store_true", help="run what is there already, too")
    return parser.parse_args()


def chosen(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern.strip()) for pattern in patterns.split(","))


def measured(command: list[str], log: Path, threads: int, limit: int) -> dict[str, Any]:
    """Run a command in a process of its own; see `frontier_cases.measure`."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, "PYTHONPATH": str(TOOLS), **dict.fromkeys(names, str(threads))}
    call = [sys.executable, measure.__file__, str(limit), str(log), *command]
    found: dict[str, Any] = json.loads(subprocess.run(call, env=environment, check=True, capture_output=True).stdout)
    return found


def perform(row: Row, commands: list[list[str]], judge: Judge, out: Path, limit: int) -> None:
    """Run a contender's commands and have the result judged; what goes wrong is written into the row."""
    log = out.with_suffix(".log")
    for command in commands:
        spent = measured(command, log, row.threads, limit)
        lines = log.read_text(errors="replace").strip().splitlines() or [""]
        row.seconds += spent["seconds"]
        row.mib = max(row.mib, spent["mib"])
        if spent["code"]:
            row.failed = f"stopped after {limit} s" if spent["timed_out"] else f"exit {spent['code']}: {lines[-1]}"
            return
        if lines[-1].startswith('{"search_seconds"'):
            row.searching += json.loads(lines[-1])["search_seconds"]
    try:
        row.verdict = judge(out)
    except Exception as error:  # a model that does not run is a result, whatever onnxruntime raises
        row.failed = f"the result does not run: {str(error).splitlines()[0]}"


def compete(case: Case, rivals: list[Contender], results: Results, args: argparse.Namespace, known: dict[str, str],
            peers: Path) -> None:  # fmt: skip
    """All contenders at all points of one case."""
    files = prepared(case, args.out / "data")
    judge: Judge | None = None
    here = points(*map(float, args.macs.split(","))) if args.macs and not case.inner else case.points
    jobs = [
        (rival, setting, point)
        for rival in rivals
        for point in (WHOLE if rival.whole else here)
        for setting in rival.settings_for(case)
    ]
    for rival, setting, point in jobs:
        key = case.name, rival.name, setting, point.macs
        if results.has(key, known[rival.package], args.threads) and not args.again:
            continue
        judge = judge or Judge(case.model, files.test, args.threads, [int(size) for size in args.batches.split(",")])
        row = Row(*key, known[rival.package], args.threads, judge.base)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"
            try:
                task = Task(case.model, files.calibration, point, setting, args.threads, peers, out)
                perform(row, rival.commands(task), judge, out, args.timeout)
            except LackingError as error:
                row.failed = str(error)
        results.add(row)
        said = f"{row.verdict.accuracy:.2f} % at {row.verdict.macs:.3f}" if row.verdict else row.failed
        print(f"{case.name}  {point.macs:g}  {rival.name}  {setting}: {said} ({row.seconds:.0f} s)", flush=True)


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    # Not resolved: a virtual environment's interpreter is a link, and what it links to lacks its packages.
    peers = python_of_peers(args.peers.absolute())
    known = versions_of(versions(peers))
    order = [rival.name for rival in contenders()]
    rivals = [rival for rival in contenders() if chosen(rival.name, args.contenders)]
    results = Results(args.out)
    for case in cases(args.shared):
        if chosen(case.name, args.only):
            compete(case, rivals, results, args, known, peers)
    results.write_tables(order)
    draw(results.rows, order, args.out)


if __name__ == "__main__":
    main()
