"""Do shrunk models run where people deploy them, do they compute the same there, and are they faster?

    pip install ".[cpu,images,text]"
    python tools/benchmarks/runtimes.py --work DIR [--shared ../shared] [--only digits_cnn] [--in openvino] [--out DIR]

Every runtime of `runtime_cases/runtimes.py` is installed in a folder of its own under DIR, at the versions that stand
there; each pair of files (original and shrunk, in float32 and in int8) is opened in a process of its own. What a file
computes is compared with what onnxruntime computes of the same file: the largest difference over all outputs, as a
share of the largest value. Times are those of a batch of one on one thread: both files are read in turns, and the
median of the ratios is what the table says.
FOLDER gets `runtimes.md` and `runtimes.json` (rows that are there and not run again stay). Which widths a runtime
likes is the affair of `tools/benchmarks/widths.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

# A script sees its own folder only; what it shares with others is named from `tools`.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.public_cases.tables import heads
from benchmarks.runtime_cases.models import Pair, networks, pairs
from benchmarks.runtime_cases.runtimes import RUNTIMES, Runtime
from benchmarks.runtime_cases.web import is_here, run_job

REFERENCE = RUNTIMES[0]
WORKER = Path(__file__).parent / "runtime_cases" / "worker.py"
JOB_PATIENCE = 400


def installed(runtime: Runtime, work: Path) -> Path:
    """The runtime's folder, installed there unless it is; raises CalledProcessError."""
    folder = work / "runtimes" / ("web" if runtime.browser else runtime.name)
    if (folder / "done").exists():
        return folder
    if runtime.browser:
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder), *runtime.pins]
    else:
        venv.create(folder, with_pip=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *runtime.pins]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (folder / "done").touch()
    return folder


def outcome(runtime: Runtime, pair: Pair, work: Path, seconds: float) -> dict[str, Any]:
    """What came of both files of the pair: `files` (outputs, or stage and why), and times where both ran."""
    scratch = work / "jobs" / f"{pair.name}-{pair.precision}-{runtime.name}"
    scratch.mkdir(parents=True, exist_ok=True)
    inputs = []
    for place, (name, value) in enumerate(pair.sample.items()):
        file = scratch / f"input-{place}.bin"
        value.tofile(file)
        inputs.append({"name": name, "file": str(file), "dtype": str(value.dtype), "shape": value.shape})
    job = scratch / "job.json"
    told = {"runtime": runtime.name, "files": [str(file) for file in pair.files], "inputs": inputs}
    job.write_text(json.dumps(told | {"outputs": pair.outputs, "seconds": seconds}))
    answer = job.with_name("outcome.json")
    answer.unlink(missing_ok=True)
    why = ""
    try:
        folder = installed(runtime, work)
        if runtime.browser:
            run_job(runtime.browser, folder, job, JOB_PATIENCE)
        else:
            command = [str(folder / "bin" / "python"), str(WORKER), str(job)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=JOB_PATIENCE, cwd=scratch)
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        why = f"not done after {JOB_PATIENCE} s"
    found = json.loads(answer.read_text()) if answer.exists() else {"files": []}
    found["files"] += [{"stage": "run", "why": why}] * (len(pair.files) - len(found["files"]))
    return dict(found)


def outputs_of(found: dict[str, Any], scratch: Path) -> list[NDArray[Any]]:
    """What a file computed."""
    return [np.fromfile(scratch / each["file"], each["dtype"]).reshape(each["shape"]) for each in found["outputs"]]


def difference(there: Sequence[NDArray[Any]], here: Sequence[NDArray[Any]]) -> float:
    """The largest difference of any output, of its largest value here; infinite where the sizes differ."""
    worst = 0.0
    for left, right in zip(there, here, strict=True):
        if left.size != right.size:
            return float("inf")
        left = left.reshape(right.shape) if left.shape != right.shape else left
        gap = np.max(np.abs(left.astype(np.float64) - right), initial=0)
        worst = max(worst, float(gap / max(np.max(np.abs(right), initial=0), 1e-30)))
    return worst


def record(runtime: Runtime, pair: Pair, work: Path, seconds: float) -> dict[str, Any]:
    """What the table says of a pair in a runtime."""
    said: dict[str, Any] = {"pair": pair.title, "runtime": runtime.name}
    if pair.why:
        return said | {"files": [{"stage": "made", "why": pair.why}] * 2}
    found = outcome(runtime, pair, work, seconds)
    scratch = work / "jobs" / f"{pair.name}-{pair.precision}-{runtime.name}"
    known = work / "jobs" / f"{pair.name}-{pair.precision}-{REFERENCE.name}"
    references = json.loads((known / "outcome.json").read_text())["files"]
    files = []
    for mine, reference in zip(found.pop("files"), references, strict=True):
        if "why" not in mine and "why" not in reference:
            mine = {"difference": difference(outputs_of(mine, scratch), outputs_of(reference, known))}
        files.append(mine)
    return said | {"files": files} | found


def cell(row: dict[str, Any]) -> str:
    """`0.48 (3e-7)`: shrunk ÷ original, and the largest difference of both files; or what does not go."""
    failed = [(title, file) for title, file in zip(("original", "shrunk"), row["files"], strict=True) if "why" in file]
    if failed:
        which = "both" if len(failed) == 2 else failed[0][0]
        return f"{failed[0][1]['stage']}: {which}"
    worst = max(file.get("difference", 0.0) for file in row["files"])
    text = f"{worst:.0e}".replace("e-0", "e-")
    return f"{row['ratio']:.2f} ({text})"


def table(rows: Sequence[dict[str, Any]], runtimes: Sequence[Runtime]) -> str:
    """A line per pair, a column per runtime; then the reasons."""
    lines = [heads(("model", *(runtime.title for runtime in runtimes)))]
    for title in dict.fromkeys(row["pair"] for row in rows):
        cells = {row["runtime"]: cell(row) for row in rows if row["pair"] == title}
        lines.append(f"| {title} | " + " | ".join(cells.get(runtime.name, "") for runtime in runtimes) + " |")
    lines += ["", heads(("model", "runtime", "file", "where", "why"))]
    titles = {runtime.name: runtime.title for runtime in runtimes}
    for row in rows:
        for which, file in zip(("original", "shrunk"), row["files"], strict=True):
            if "why" in file:
                why = " ".join(file["why"].split())[:160].replace("|", "/")
                lines.append(f"| {row['pair']} | {titles[row['runtime']]} | {which} | {file['stage']} | `{why}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="environments, models and jobs")
    parser.add_argument("--shared", type=Path, metavar="FOLDER", help="models and data beside the repository")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--in", dest="within", nargs="+", default=[], help="these runtimes, beside onnxruntime")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a pair is timed")
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("pcns-onnx") / "public")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    work, cache = args.work.resolve(), args.cache.resolve()
    wanted = [each for each in RUNTIMES if each is REFERENCE or not args.within or each.name in args.within]
    runtimes = [each for each in wanted if not each.browser or is_here(each.browser)]
    kept = args.out / "runtimes.json" if args.out else None
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept and kept.exists() else []
    for network in networks(work, cache, args.shared, args.only):
        for pair in pairs(network, work / "models"):
            for runtime in runtimes:
                start = time.perf_counter()
                same = [row for row in rows if (row["pair"], row["runtime"]) == (pair.title, runtime.name)]
                rows = [row for row in rows if row not in same]
                rows.append(record(runtime, pair, work, args.seconds))
                took = time.perf_counter() - start
                print(f"{pair.title}, {runtime.title}: {cell(rows[-1])}; {took:.0f} s", file=sys.stderr, flush=True)
                if kept:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    shown = {row["runtime"] for row in rows}
    text = table(rows, [runtime for runtime in RUNTIMES if runtime.name in shown])
    print(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "runtimes.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
