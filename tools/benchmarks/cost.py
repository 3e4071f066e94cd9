"""What a run costs: seconds per stage in passes of the original model, and peak memory.

    python tools/benchmarks/cost.py ../shared              # stages (no refinement), VGG-16 and ResNet-20, 1,024 images
    python tools/benchmarks/cost.py ../shared --memory     # peak memory with 1,000 and 10,000 images

One pass is onnxruntime running the original over the same images, same threads, nothing else.
Every run is the command line in a process of its own. For the memory test the calibration images are
repeated into a file of the size wanted, in a temporary folder, and widths are halved: a budget would
be spent differently on different samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Engine

NORMALIZE = {
    "vgg16bn_cifar10": ("0.4914,0.4822,0.4465", "0.2470,0.2435,0.2616"),
    "resnet20_cifar10": ("0.485,0.456,0.406", "0.229,0.224,0.225"),
}
IMAGES = 1024
SOLVING = ("capture", "rank", "probe", "try", "re-fit")


def one_pass(model: Path, images: int, threads: int) -> float:
    """Seconds that onnxruntime alone needs for so many images, in batches of 64; best of three."""
    session = Engine("cpu", threads).session(Graph.load(model).program(), spinning=True)
    feeds = {"input": np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)}
    session.run(feeds)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(images // 64):
            session.run(feeds)
        times.append(time.perf_counter() - start)
    return min(times)


def measure(model: Path, data: Path, images: int, threads: int, goal: tuple[str, str]) -> dict[str, float]:
    """Seconds per stage of `pcns-onnx shrink` in a process of its own, and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        choices = {goal[0]: goal[1], "--refine": 0, "--samples": images, "--holdout": 0, "--threads": threads}
        command = [sys.executable, "-m", "pcns_onnx", "shrink", model, "--data", data, "-o", Path(folder) / "o.onnx"]
        command += [part for pair in choices.items() for part in pair]
        command += ["--normalize", *NORMALIZE[model.stem], "--report", report]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{model.name} failed")
        stages = json.loads(report.read_text())["stages"]
    return {**{name: stage["seconds"] for name, stage in stages.items()}, "MiB": usage.ru_maxrss / 1024}


def repeated(data: Path, images: int, folder: Path) -> Path:
    """The calibration images, over and over, as one .npy file."""
    path = folder / f"{images}.npy"
    with np.load(data) as archive:
        source = archive["input"]
    out = np.lib.format.open_memmap(path, mode="w+", dtype=source.dtype, shape=(images, *source.shape[1:]))
    for start in range(0, images, len(source)):
        out[start : start + len(source)] = source[: images - start]
    out.flush()
    return path


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    data = args.shared / "data" / "cifar10_calib.npz"
    if args.memory:
        print("| model | images | peak MiB |\n|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            for name in NORMALIZE:
                for images in (1000, 10000):
                    copies = repeated(data, images, Path(folder))
                    found = measure(
                        args.shared / "models" / f"{name}.onnx", copies, images, args.threads, ("--width", "0.5")
                    )
                    print(f"| {name} | {images} | {found['MiB']:.0f} |", flush=True)
        return
    print("| model | one pass (s) | " + " | ".join(SOLVING) + " | together | in passes |")
    print("|---|---|" + "---|" * (len(SOLVING) + 2))
    for name in NORMALIZE:
        model = args.shared / "models" / f"{name}.onnx"
        pace = one_pass(model, IMAGES, args.threads)
        found = measure(model, data, IMAGES, args.threads, ("--budget", "macs=0.5"))
        parts = [found.get(stage, 0.0) for stage in SOLVING]
        figures = " | ".join(f"{seconds:.1f}" for seconds in (*parts, sum(parts), sum(parts) / pace))
        print(f"| {name} | {pace:.2f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
