"""Damaged files, fed to the real command line: nothing may come of it but a result or one clear line.

    python tools/robustness/fuzz.py --cases 300 --seed 0 [--only plan] [--keep FOLDER]

Every case takes a sound file (a model, one with external data, samples, a plan, statistics), damages some
bytes of it or something inside it, and runs the command in a process of its own. It passes if the run ends with
one of the documented exit codes; if a failure is one line on stderr without a traceback, and leaves nothing
behind; and if no run takes more than `MEMORY` bytes, `SECONDS` of the processor or `PATIENCE` by the clock.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pcns_onnx.cli import main as cli

MEMORY = 1 << 30
"""Bytes that a run may take at its peak, beside the interpreter and its libraries."""
SECONDS = 60
"""Processor time that a run may take: by the clock, a machine busy with other work would fail sound runs."""
PATIENCE = 20 * SECONDS
"""Seconds by the clock, for a run that hangs without working."""
KINDS = ("model", "external", "npz", "npy", "plan", "stats")
_CODES = {0, 2, 3, 4}
_QUICK = ("--threads", "1", "--batch", "16")


@dataclass(frozen=True)
class Case:
    """One damaged file in `folder`, and the command that reads it."""

    name: str
    folder: Path
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code (minus the signal that killed it), what it said, its peak in bytes.

    That is beyond what the process held from which it was forked, which a whole test session may have filled.
    """

    code: int
    said: str
    peak: int
    left: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """What is wrong with it, None where nothing is."""
        errors = [line for line in self.said.splitlines() if not line.startswith("warning: ")]
        if self.code not in _CODES:
            return f"exit code {self.code}"
        if "Traceback" in self.said:
            return "a traceback"
        if self.code == 2 and not (len(errors) == 1 and errors[0].startswith("pcns-onnx: error: ")):
            return f"{len(errors)} lines of error"
        if self.code == 2 and self.left:
            return f"files left behind: {', '.join(self.left)}"
        return f"{self.peak >> 20} MB" if self.peak > MEMORY else None


def sound_files(folder: Path) -> None:
    """model.onnx, external.onnx with external.data, data.npz, data.npy, plan.json and stats.npz."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (8, 5), "b3": (5,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second", pads=[1] * 4),
            helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
            helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
            helper.make_node("Reshape", ["p", "flat"], ["f"], name="flatten"),
            helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], name="last"),
        ],
        "sound",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [*(numpy_helper.from_array(value, name) for name, value in weights.items()),
         numpy_helper.from_array(np.array([0, -1], np.int64), "flat")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    onnx.save(model, folder / "external.onnx", save_as_external_data=True, location="external.data", size_threshold=64)
    x = rng.standard_normal((48, 3, 6, 6)).astype(np.float32)
    np.savez_compressed(folder / "data.npz", x=x, labels=rng.integers(0, 5, 48))
    np.save(folder / "data.npy", x)
    made = ["--data", str(folder / "data.npz"), "--stats", str(folder / "stats.npz"), "--budget", "macs=0.5", *_QUICK]
    assert run(["plan", str(folder / "model.onnx"), "-o", str(folder / "plan.json"), *made], folder).code == 0


def damaged(content: bytes, chance: random.Random) -> bytes:
    """`content` with a few bytes flipped, or a piece cut, doubled, zeroed or replaced by noise."""
    body = bytearray(content)
    start = chance.randrange(len(body))
    size = min(chance.choice((1, 4, 16, 256)), len(body) - start)
    match chance.randrange(8):
        case 0:
            return bytes(body[:start])
        case 1:
            del body[start : start + size]
        case 2:
            body[start:start] = body[start : start + size]
        case 3:
            body[start : start + size] = bytes(size)
        case 4:
            body[start : start + size] = chance.randbytes(size)
        case _:
            for _ in range(chance.choice((1, 1, 2, 8))):
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return bytes(body)


def damaged_plan(content: bytes, chance: random.Random) -> bytes:
    """A plan with a value replaced by something absurd: what bytes alone rarely hit."""
    plan = json.loads(content)
    group = plan["groups"][chance.choice(sorted(plan["groups"]))]
    where = chance.choice([plan, group, group, group])
    field = chance.choice([*where, "method" if where is plan else "keep"])
    numbers = [-1, 0, 10**30, 2**63, 1e300]
    absurd: list[object] = [*numbers, None, "x", True, [], {}, [[[]]]]
    kept = [[10**30], [-1] * 4, [0, 2**63], list(range(8)), [1, 1, 2, 3]]
    where[field] = chance.choice(kept if field == "keep" else numbers if chance.random() < 0.5 else absurd)
    return json.dumps(plan).encode()


def damaged_arrays(content: bytes, chance: random.Random) -> bytes:
    """An .npz that is sound as an archive, with one of its arrays damaged."""
    with np.load(io.BytesIO(content)) as held:
        arrays = {name: held[name] for name in held.files}
    name = chance.choice(sorted(arrays))
    array = arrays[name]
    match chance.randrange(8):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = array[: len(array) // 2]
        case 2:
            arrays[name] = array.reshape(-1)
        case 3:
            arrays[name] = array.astype(chance.choice((np.float16, np.int8, np.complex64, np.str_)))
        case 4:
            arrays[name] = np.full_like(array, chance.choice((0, 1, 100)))
        case 5:
            arrays[name] = np.concatenate([array, array])
        case _:
            body = damaged(array.tobytes(), chance).ljust(array.nbytes, b"\0")[: array.nbytes]
            arrays[name] = np.frombuffer(body, array.dtype).reshape(array.shape)
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def damaged_graph(content: bytes, chance: random.Random) -> bytes:
    """A model that is sound as a protobuf, with one of its nodes, tensors or inputs damaged."""
    model = onnx.load_from_string(content)
    graph = model.graph
    node, tensor = chance.choice(graph.node), chance.choice(graph.initializer)
    names = [*(name for n in graph.node for name in (*n.input, *n.output)), "", "nowhere"]
    absurd = chance.choice((-1, 0, 1, 7, 1 << 20, 1 << 40, (1 << 63) - 1))
    match chance.randrange(9):
        case 0:
            node.input[chance.randrange(len(node.input))] = chance.choice(names)
        case 1:
            node.output[0] = chance.choice(names)
        case 2:
            node.op_type = chance.choice(("Conv", "Gemm", "MatMul", "Add", "Concat", "Loop", "Resize", "", "Nonsense"))
        case 3:
            tensor.dims[chance.randrange(len(tensor.dims))] = absurd
        case 4:
            tensor.data_type = chance.randrange(-1, 30)
        case 5:
            graph.input[0].type.tensor_type.shape.dim[chance.randrange(4)].dim_value = absurd
        case 6:
            node.attribute.append(helper.make_attribute(chance.choice(("group", "axis", "transB", "strides")), absurd))
        case 7:
            graph.node.insert(0, graph.node.pop())
        case _:
            graph.node.append(node)
    return bytes(model.SerializeToString())


_INSIDE = {".json": damaged_plan, ".npz": damaged_arrays, ".onnx": damaged_graph}
"""What looks intact from outside."""


def cases(sound: Path, folder: Path, count: int, seed: int, kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """`count` damaged files, one after the other; the same for the same seed."""
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        kind = kinds[number % len(kinds)]
        here = folder / f"{number:04}-{kind}"
        shutil.copytree(sound, here)
        name = {"model": "model.onnx", "npz": "data.npz", "npy": "data.npy", "plan": "plan.json", "stats": "stats.npz"}
        hit = here / name.get(kind, chance.choice(("external.onnx", "external.data")))
        change = _INSIDE.get(hit.suffix if kind != "npy" else "", damaged) if chance.random() < 0.6 else damaged
        hit.write_bytes(change(hit.read_bytes(), chance))
        model = "external.onnx" if kind == "external" else "model.onnx"
        data = "data.npy" if kind == "npy" else "data.npz"
        goal = {"plan": ("--plan", "plan.json"), "stats": ("--stats", "stats.npz", "--budget", "macs=0.5")}
        command = ("shrink", model, "--data", data, "-o", "out.onnx", "--refine", "0")
        yield Case(here.name, here, (*command, *goal.get(kind, ("--width", "0.5")), *_QUICK))


def _resident() -> int:
    """Bytes that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(argv: list[str] | tuple[str, ...], folder: Path) -> Outcome:
    """The command line in a forked process, in `folder`."""
    before, held = set(os.listdir(folder)), _resident()
    with tempfile.TemporaryFile("w+", errors="replace") as said, open(os.devnull, "w") as nowhere:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.chdir(folder)
                os.dup2(nowhere.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout, sys.stderr = nowhere, said
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                signal.alarm(PATIENCE)
                code = cli.main(list(argv))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                said.flush()
                os._exit(code)
        _, status, usage = os.wait4(child, 0)
        said.seek(0)
        left = tuple(sorted(set(os.listdir(folder)) - before))
        return Outcome(os.waitstatus_to_exitcode(status), said.read(), max((usage.ru_maxrss << 10) - held, 0), left)


def main() -> int:
    """Run the cases; prints those that fail, and how often each exit code came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--keep", type=Path, help="Copy the folders of failing cases there.")
    asked = parser.parse_args()
    codes, faults, peak = Counter[tuple[str, int]](), 0, 0
    with tempfile.TemporaryDirectory() as held:
        sound = Path(held) / "sound"
        sound.mkdir()
        sound_files(sound)
        for case in cases(sound, Path(held), asked.cases, asked.seed, tuple(asked.only or KINDS)):
            outcome = run(case.argv, case.folder)
            codes[case.name[5:], outcome.code] += 1
            peak = max(peak, outcome.peak)
            if outcome.fault is not None:
                faults += 1
                print(f"{case.name}: {outcome.fault}\n{outcome.said[-1500:]}", flush=True)
                if asked.keep is not None:
                    shutil.copytree(case.folder, asked.keep / case.name, dirs_exist_ok=True)
            shutil.rmtree(case.folder)
    for (kind, code), times in sorted(codes.items()):
        print(f"{kind:9} exit {code:3}: {times}")
    print(f"{asked.cases} damaged files, {faults} faults, at most {peak >> 20} MB")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
