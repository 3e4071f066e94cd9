"""Where a result comes from: hashes of all that went in, so that it can be made again.

SHA-256 of a file, as `sha256sum FILE` prints it; of a folder, SHA-256 over the lines
`sha256sum *` prints for its files in the order of their names.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from pcns_onnx.data.feeds import as_array, is_array
from pcns_onnx.data.fingerprints import Hashes, in_sketch, sketch
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph, ModelSource
from pcns_onnx.planning.plan import Plan, plan_bytes
from pcns_onnx.runtime.engine import Engine, versions


class Provenance(msgspec.Struct, frozen=True):
    """Where a result comes from: what was run, on what, and the SHA-256 of every file that went in.

    `hashes` of files are those of `sha256sum`; the plan's is that of the file `--plan-out` writes.
    """

    command: str | None
    device: str
    provider: str
    threads: int
    seed: int
    hashes: dict[str, str]


def provenance_of(
    command: str | None,
    device: str,
    seed: int,
    engine: Engine,
    models: Mapping[str, tuple[ModelSource, Graph]],
    data: Mapping[str, DataSource | None],
    plan: Plan | None = None,
) -> Provenance:
    """Hashes by name; data that is no file and no numbers has none. Raises `InputError`."""
    hashes = dict[str, str]()
    for name, (source, graph) in models.items():
        hashes[name] = graph.digest() if not isinstance(source, str | os.PathLike) else _of_path(Path(source))
        for path in sorted(graph.files):
            hashes[f"{name}: {path.name}"] = _of_path(path)
    for name, samples in data.items():
        digest = _of_data(samples)
        if digest is not None:
            hashes[name] = digest
    if plan is not None:
        hashes["plan"] = hashlib.sha256(plan_bytes(plan)).hexdigest()
    return Provenance(command, device, engine.provider, engine.threads, seed, hashes)


def _of_data(data: DataSource | None) -> str | None:
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        return _of_path(path) if path.exists() else None
    named = {"": data} if is_array(data) else data
    if not isinstance(named, Mapping):
        return None
    hasher = hashlib.sha256()
    for name, array in sorted(named.items()):
        values = np.ascontiguousarray(as_array(array))
        if values.dtype.hasobject:
            return None  # its bytes are addresses
        hasher.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        hasher.update(values.tobytes())
    return hasher.hexdigest()


def _of_path(path: Path) -> str:
    try:
        if not path.is_dir():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        files = sorted(item for item in path.iterdir() if item.is_file())
        return hashlib.sha256("".join(_lines(files)).encode()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from None


def _lines(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        yield f"{_of_path(file)}  {file.name}\n"


SKETCH = 8
"""Samples that a model remembers of those it was made on: enough to tell a fresh check from one on the same data."""


def provenance_note(plan: Plan, seed: int, hashes: Hashes) -> str:
    """What the shrunk model says about itself: JSON that depends on model, data and options only.

    `hashes` are those of the samples that it was made on.
    """
    widths = {name: [entry.width, entry.of] for name, entry in plan.groups.items()}
    ratio = {} if plan.rank_ratio is None else {"rank_ratio": plan.rank_ratio}
    samples = {"samples": sketch(hashes, SKETCH)} if len(hashes) else {}
    return note(method=plan.method, model=plan.model, seed=seed, widths=widths, **ratio, **samples)


def healed_note(graph: Graph, updates: int, seed: int, hashes: Hashes) -> str:
    """What a healed model says of itself: what it said before, and that it has learnt from samples of these hashes."""
    facts = _facts(graph)
    own = base64.b64decode(sketch(hashes, SKETCH))
    samples = base64.b64encode(base64.b64decode(str(facts.get("samples", ""))) + own).decode()
    return note(**{**facts, "healed": {"updates": updates, "seed": seed}, "samples": samples})


def _facts(graph: Graph) -> dict[str, object]:
    """What a model says of itself; nothing where that is nothing of ours, as anyone may have written it."""
    try:
        facts = msgspec.json.decode(graph.metadata("pcns_onnx") or "{}", type=dict[str, object])
        in_sketch(str(facts.get("samples", "")), np.zeros(0, np.uint64))
        return {name: value for name, value in facts.items() if name != "version"}
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError):
        return {}


def made_on(graph: Graph, hashes: Hashes) -> int:
    """How many of these samples a model says that it was made on (it remembers a few)."""
    return int(in_sketch(str(_facts(graph).get("samples", "")), hashes).sum())


def note(**facts: object) -> str:
    """What a model that was written here says of itself, as JSON: these facts, and the version of the tool."""
    return msgspec.json.encode({"version": metadata.version("pcns-onnx"), **facts}, order="sorted").decode()


def library_versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    names = ("pcns-onnx", "onnx", "numpy", "scipy")
    return {name: metadata.version(name) for name in names} | versions()
