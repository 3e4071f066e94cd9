"""Runs that are killed, run out of disk, or lose their folder: what is on the disk afterwards?

    python tools/robustness/kills.py --kills 50 --seed 0

Half of the kills hit the whole command (`pcns-onnx shrink`, at any moment of its life), the other half a
process that does nothing but replace a model with external data (`Graph.save`, over and over): there a kill
lands in the middle of writing. After every kill the output must be the old model or the new one, whole,
with its data, and nothing else may lie in its folder or in TMPDIR, but for the instant in which the two files
of such a model are exchanged: a note (`.out.onnx.todo`) then says what has to go, and with the next save it
does. Then the same command is run on a disk that is too small (a tmpfs, where this user may mount one) and to
the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pcns_onnx.graph import Graph

_SAVER = """
import sys
from pcns_onnx.graph import Graph
models = [Graph.load(name) for name in sys.argv[2:]]
print("ready", flush=True)
while True:
    for model in models:
        model.save(sys.argv[1])
"""
ROOM = 1 << 13
"""Bytes of a disk that is too small for the result."""


def model(width: int, seed: int) -> ModelProto:
    """x (n, 16) -> `width` -> `width` -> y (n, 4)."""
    rng = np.random.default_rng(seed)
    widths = (16, width, width, 4)
    graph = onnx.GraphProto(name="net")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    for index in range(3):
        value = rng.standard_normal(widths[index : index + 2]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(value, f"w{index}"))
        graph.node.append(helper.make_node("MatMul", [f"r{index - 1}" if index else "x", f"w{index}"], [f"h{index}"]))
        graph.node.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"]))
    del graph.node[-1]
    graph.node[-1].output[0] = "y"
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_external(made: ModelProto, path: Path) -> Path:
    """Save a model with its weights beside it."""
    onnx.save(made, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


@dataclass
class Bench:
    """A folder with sound inputs (`sources`), one for outputs (`place`) and one for temporary files (`scratch`)."""

    root: Path
    width: int = 64
    digests: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for folder in (self.sources, self.place, self.scratch):
            folder.mkdir()
        self.model = write_external(model(self.width, 0), self.sources / "model.onnx")
        np.savez(self.sources / "data.npz", x=np.random.default_rng(1).standard_normal((200, 16)).astype(np.float32))

    @property
    def sources(self) -> Path:
        """Where inputs lie."""
        return self.root / "in"

    @property
    def place(self) -> Path:
        """Where outputs go."""
        return self.root / "out"

    @property
    def scratch(self) -> Path:
        """TMPDIR of the runs."""
        return self.root / "tmp"

    @property
    def out(self) -> Path:
        """The output of every run."""
        return self.place / "out.onnx"

    @property
    def environment(self) -> dict[str, str]:
        """Of the runs."""
        return {**os.environ, "TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def command(self) -> list[str]:
        """`pcns-onnx shrink`, with a plan and a report beside the model."""
        data, plan, report = self.sources / "data.npz", self.place / "plan.json", self.place / "report.json"
        said = f"shrink {self.model} --data {data} -o {self.out} --plan-out {plan} --report {report}"
        return [sys.executable, "-m", "pcns_onnx", *f"{said} --width 0.5 --refine 0 --threads 1".split()]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start one in a session of its own."""
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def saver(self) -> subprocess.Popen[str]:
        """A process that replaces `out` by two models in turn, already doing so."""
        pair = [write_external(model(self.width * 4, seed), self.sources / f"m{seed}.onnx") for seed in (1, 2)]
        self.digests |= {Graph.load(path).digest() for path in pair}
        started = self.start([sys.executable, "-c", _SAVER, str(self.out), *map(str, pair)])
        assert started.stdout is not None and started.stdout.readline() == "ready\n"
        return started

    def faults(self) -> list[str]:
        """What is wrong with what lies there now."""
        # onnxruntime keeps a file of its own there, with which it counts its sessions.
        found = [f"'{path.name}' is left in TMPDIR" for path in self.scratch.iterdir() if path.name != ".ses"]
        allowed = {self.out.name, "plan.json", "report.json"}
        if self.out.exists():
            try:
                now = Graph.load(self.out)
            except Exception as error:
                return [*found, f"the output is broken: {error}"]
            allowed |= {file.name for file in now.files}
            if now.digest() not in self.digests:
                found.append("the output is neither the old model nor the new one")
        return [*found, *(f"'{p.name}' is left behind" for p in self.place.iterdir() if p.name not in allowed)]

    def taken_up(self) -> bool:
        """Whether a kill hit the exchange of two files, and the next save cleans up after it."""
        if not (note := self.place / ".out.onnx.todo").exists():
            return False
        Graph(onnx.load(self.out)).save(self.out)
        return not note.exists()


def kill(process: subprocess.Popen[str], after: float) -> bool:
    """Kill -9 after some seconds; whether it was still alive."""
    try:
        process.communicate(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True


def too_small_a_disk(bench: Bench) -> subprocess.CompletedProcess[str]:
    """The command with its output folder on a tmpfs of `ROOM` bytes, in a name space of its own; then its content."""
    script = f'mount -t tmpfs -o size={ROOM} none "$0" && "$@"; code=$?; ls -A "$0" >&2; exit $code'
    command = ["unshare", "-rm", "sh", "-c", script, str(bench.place), *bench.command]
    return subprocess.run(command, env=bench.environment, capture_output=True, text=True)


def main() -> int:
    """Kill, count, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance, found, told = random.Random(asked.seed), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as held:
        bench = Bench(Path(held))
        started = time.perf_counter()
        assert subprocess.run(bench.command, env=bench.environment, capture_output=True).returncode == 0
        life = time.perf_counter() - started
        bench.digests.add(Graph.load(bench.out).digest())
        for number in range(asked.kills):
            writes = number % 2 == 1
            process = bench.saver() if writes else bench.start(bench.command)
            alive = kill(process, chance.uniform(0, 0.3) if writes else chance.uniform(0, life))
            told[("writing" if writes else "running") if alive else "already done"] += 1
            told["in the exchange"] += bench.taken_up()
            found += (faults := bench.faults())
            for line in faults:
                print(f"kill {number}: {line}", flush=True)
        full = too_small_a_disk(bench)
        print("too small a disk:", full.returncode, full.stderr.strip())
        last = subprocess.run(bench.command, env=bench.environment, capture_output=True, text=True)
        found += [*bench.faults(), *([] if last.returncode == 0 else [last.stderr])]
    print(f"{asked.kills} kills ({', '.join(f'{n} {what}' for what, n in told.items())}), {len(found)} faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
