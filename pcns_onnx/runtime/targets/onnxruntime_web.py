"""onnxruntime-web as a target: WebAssembly with SIMD, one thread, in Node; what a browser runs, without the browser.

The package is looked for as Node does, in `node_modules` of this folder and those above, in NODE_PATH, and where
`npm install -g` puts it. One process of Node holds all models that are open, and stays until this one ends: V8
optimises kernels in the background while they run (on a busy machine the first dozens of runs took ten times as long as
later ones), so it is told to optimise all at once, which takes seconds of its start.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcns_onnx.errors import InputError
from pcns_onnx.files import Scratch
from pcns_onnx.graph import Program
from pcns_onnx.numerics.arrays import Array, to_numpy
from pcns_onnx.runtime.engine import Engine, Kernel, kernels_in

_WORKER = Path(__file__).with_suffix(".mjs")
_WARM = 0.02
"""Seconds that a model runs before it is timed; four runs at least."""
_LIBRARY = Path("onnxruntime-web", "dist", "ort.node.min.mjs")


def _library() -> Path | None:
    here = (folder / _LIBRARY for folder in _folders())
    return next((path for path in here if path.is_file()), None)


def _folders() -> Iterator[Path]:
    """Where Node looks for packages, and where `npm install -g` puts them."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        yield folder / "node_modules"
    yield from map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))
    node = shutil.which("node")
    if node is not None:
        yield Path(node).parents[1] / "lib" / "node_modules"


class NodeProcess:
    """Node with the models that are open in it."""

    running: ClassVar[NodeProcess | None] = None

    def __init__(self) -> None:
        library = _library()
        assert library is not None, "asked for where it is installed"
        self._numbers = count()
        with ExitStack() as stack:
            self.folder = Path(stack.enter_context(Scratch()))
            self._profiles = stack.enter_context(tempfile.TemporaryFile())
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            answers, answering = os.pipe()
            self._answers = stack.enter_context(os.fdopen(answers, "rb"))
            self._process = subprocess.Popen(
                ["node", "--no-liftoff", os.fspath(_WORKER), os.fspath(library), str(answering)],
                stdin=subprocess.PIPE,
                stdout=self._profiles,
                stderr=self._errors,
                pass_fds=(answering,),
            )
            os.close(answering)
            self._files = stack.pop_all()

    @classmethod
    def joined(cls) -> tuple[NodeProcess, int]:
        """The process that runs, or a new one, and the number of a model in it."""
        if cls.running is None or cls.running._process.poll() is not None:
            cls.end()
            cls.running = cls()
        return cls.running, next(cls.running._numbers)

    @classmethod
    def end(cls) -> None:
        """End the process that runs, if any, and remove its files."""
        ending, cls.running = cls.running, None
        if ending is None:
            return
        ending._process.kill()
        ending._process.wait()
        assert ending._process.stdin is not None
        with suppress(OSError), ending._process.stdin, ending._files:
            pass

    def ask(self, command: str, number: int, **words: Any) -> dict[str, Any]:
        """What the worker answers; raises `InputError` with what it says against it."""
        line = json.dumps({"command": command, "id": number, **words})
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._answers.readline()
        except OSError:
            answer = b""
        if not answer:
            self._errors.seek(0)
            lines = [text.strip() for text in self._errors.read().decode(errors="replace").splitlines()]
            raise InputError(f"onnxruntime-web: Node has ended: {next(filter(None, lines), 'it says nothing')}")
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            reason = str(decoded["error"]).partition("\n")[0]
            raise InputError(f"onnxruntime-web cannot {command} the model: {reason}")
        return decoded

    def profile(self, number: int) -> bytes:
        """The profile that a model prints when it ends."""
        start = os.fstat(self._profiles.fileno()).st_size
        self.ask("profile", number)
        self._profiles.seek(start)
        return self._profiles.read()


class WebTimer:
    """A model in Node."""

    def __init__(
        self, engine: Engine, program: Program, feeds: Mapping[str, Array], spinning: bool, profiled: bool
    ) -> None:
        self._node, self._number = NodeProcess.joined()
        try:
            self._open(program, feeds, profiled)
        except BaseException:
            self.close()
            raise

    def _open(self, program: Program, feeds: Mapping[str, Array], profiled: bool) -> None:
        place = self._node.folder / str(self._number)
        place.write_bytes(program.packed({name: tuple(array.shape) for name, array in feeds.items()}))
        answer = self._node.ask("open", self._number, file=os.fspath(place), profiled=profiled)
        for spec in answer["inputs"]:
            value = to_numpy(feeds[spec["name"]])
            if value.dtype.kind not in "fiub":
                raise InputError(f"onnxruntime-web cannot feed the model: input '{spec['name']}' holds no numbers")
            if spec["type"] == "float16":
                value = value.astype(np.float16)
            np.ascontiguousarray(value).tofile(place)
            words = {"name": spec["name"], "type": str(value.dtype), "shape": value.shape, "file": os.fspath(place)}
            self._node.ask("feed", self._number, **words)
        place.unlink()
        self._warm, self._runs = int(self._node.ask("warm", self._number, seconds=_WARM)["runs"]), 0

    @staticmethod
    def version() -> str | None:
        """The version of the package that Node would find; None where it, or Node, is not there."""
        library = _library()
        if library is None or shutil.which("node") is None:
            return None
        try:
            return str(json.loads((library.parents[1] / "package.json").read_text("utf-8"))["version"])
        except (OSError, ValueError, KeyError):
            return None

    def seconds(self) -> float:
        """Of one run, as Node's process counts them."""
        self._runs += 1
        return float(self._node.ask("run", self._number)["seconds"])

    def kernels(self) -> tuple[Kernel, ...]:
        """What onnxruntime's profile says, without what it ran to get warm."""
        kernels, runs = kernels_in(self._node.profile(self._number)), self._warm + self._runs
        return tuple(replace(k, seconds=k.seconds[len(k.seconds) * self._warm // runs :]) for k in kernels)

    def close(self) -> None:
        """Let go of the model."""
        with suppress(InputError):
            self._node.ask("close", self._number)


atexit.register(NodeProcess.end)
