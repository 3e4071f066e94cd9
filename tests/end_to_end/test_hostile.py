"""Files that a stranger made: a result or one line, in bounded memory, whatever is in them."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from builders.models import build
from pcns_onnx import InputError, inspect, shrink
from pcns_onnx.api.options import Options
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.memory import MemoryBudget, parse_bytes
from robustness import fuzz

Array = np.ndarray[Any, np.dtype[Any]]
FAST = 96
"""Damaged files in the default run."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    fuzz.sound_files(folder)
    return folder


def faults(sound: Path, folder: Path, count: int, seed: int) -> list[str]:
    found = []
    for case in fuzz.cases(sound, folder, count, seed):
        outcome = fuzz.run(case.argv, case.folder)
        if outcome.fault is not None:
            found.append(f"{case.name}: {outcome.fault}: {outcome.said}")
    return found


@pytest.mark.parametrize("part", range(4))
def test_damaged_files(sound: Path, tmp_path: Path, part: int) -> None:
    assert faults(sound, tmp_path, FAST // 4, part) == []


@pytest.mark.slow
def test_three_hundred_damaged_files(sound: Path, tmp_path: Path) -> None:
    assert faults(sound, tmp_path, 300, 100) == []


# -- models ------------------------------------------------------------------------------------


def rows(count: int = 40) -> Array:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


def mlp(inputs: int = 4) -> ModelProto:
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("w1", (inputs, 8)), ("w2", (8, 3)))}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="last"),
    ]
    return build(nodes, weights, ["N", inputs])


def cyclic(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "a"


def itself(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "a"


def twice_made(model: ModelProto) -> None:
    model.graph.node[1].output[0] = "h"


def twice_stored(model: ModelProto) -> None:
    other = numpy_helper.to_array(model.graph.initializer[0]) + 1
    model.graph.initializer.append(numpy_helper.from_array(other, model.graph.initializer[0].name))


def twice_given(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def made_and_stored(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "h"))


def nested(depth: int) -> Callable[[ModelProto], None]:
    """If in If in If, as deep as asked."""

    def change(model: ModelProto) -> None:
        true = numpy_helper.from_array(np.array(True), "true")
        value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        graph = helper.make_graph([helper.make_node("Identity", ["a"], ["z"])], "leaf", [], [value])
        for level in range(depth):
            name = f"z{level}"
            node = helper.make_node("If", ["true"], [name], then_branch=graph, else_branch=leaf())
            out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            graph = helper.make_graph([node], f"g{level}", [], [out])
        model.graph.initializer.append(true)
        top: NodeProto = graph.node[0]
        top.output[0] = "b"
        model.graph.node.insert(2, top)
        model.graph.node[3].input[0] = "b"

    return change


def leaf() -> onnx.GraphProto:
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["a"], ["z"])], "leaf", [], [value])


def sized(*dims: int) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def vast_constant(model: ModelProto) -> None:
    """A few bytes that stand for a terabyte."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 18], np.int64), "sizes"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["sizes"], ["vast"], name="vast"))
    model.graph.node.insert(1, helper.make_node("ReduceMax", ["vast"], ["top"], name="top", keepdims=0))
    model.graph.node.insert(4, helper.make_node("Add", ["a", "top"], ["b"], name="add"))
    model.graph.node[5].input[0] = "b"


def vast_result(model: ModelProto) -> None:
    """The same, computed from the samples."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 30, 1, 1], np.int64), "sizes"))
    model.graph.node.insert(2, helper.make_node("Expand", ["a", "sizes"], ["vast"], name="vast"))
    model.graph.node.insert(3, helper.make_node("ReduceMax", ["vast"], ["b"], name="top", axes=[0], keepdims=0))
    model.graph.node[4].input[0] = "b"


HOSTILE = {
    "a cycle": cyclic,
    "a node that reads itself": itself,
    "a tensor made twice": twice_made,
    "a tensor stored twice": twice_stored,
    "an input given twice": twice_given,
    "a tensor made and stored": made_and_stored,
    "more sizes than bytes": sized(1 << 40, 1 << 20),
    "sizes beyond 64 bits": sized((1 << 62), (1 << 62)),
    "a negative size": sized(-4, -8),
    "a vast constant": vast_constant,
    "a vast result": vast_result,
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_model_is_one_line(tmp_path: Path, change: Callable[[ModelProto], None]) -> None:
    model = mlp()
    change(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    np.save(tmp_path / "x.npy", rows())
    command = "shrink model.onnx --data x.npy -o out.onnx --width 0.5 --refine 0 --threads 1 --memory 2GB"
    outcome = fuzz.run(command.split(), tmp_path)
    assert outcome.fault is None, outcome
    assert outcome.code in (2, 3)


def test_subgraphs_as_deep_as_protobuf_has_them_are_laid_open(tmp_path: Path) -> None:
    model = mlp()
    nested(24)(model)
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", rows())
    outcome = fuzz.run(
        ["shrink", "model.onnx", "--data", "x.npy", "-o", "out.onnx", "--width", "0.5", "--threads", "1"], tmp_path
    )
    assert outcome.code == 0 and outcome.fault is None, outcome


def test_subgraphs_deeper_than_protobuf_has_them_are_one_line(tmp_path: Path) -> None:
    content = leaf().SerializeToString()
    for _ in range(2000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # an attribute's graph, a node's attribute, a graph's node
            content = tag + varint(len(content)) + content
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x3a" + varint(len(content)) + content)
    with pytest.raises(InputError, match="cannot parse it as protobuf"):
        inspect(tmp_path / "model.onnx")


def varint(number: int) -> bytes:
    """A length as protobuf writes it."""
    low = number & 127
    return bytes([low]) if number < 128 else bytes([low | 128]) + varint(number >> 7)


# -- archives ----------------------------------------------------------------------------------


def bomb(path: Path, name: str, shape: tuple[int, ...], content: int) -> None:
    """An .npz with an array of zeros, packed a thousandfold."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(content >> 20):
            member.write(bytes(1 << 20))


def test_samples_that_unpack_to_a_gigabyte_are_streamed(tmp_path: Path) -> None:
    onnx.save(mlp(1024), tmp_path / "model.onnx")
    bomb(tmp_path / "x.npz", "x", (1 << 18, 1024), 1 << 30)
    outcome = fuzz.run(["inspect", "model.onnx", "--data", "x.npz", "--samples", "50", "--threads", "1"], tmp_path)
    assert outcome.fault is None and outcome.peak < 300 << 20


def test_one_sample_that_unpacks_to_a_gigabyte_is_refused_within_the_memory(tmp_path: Path) -> None:
    model = mlp()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "any"
    onnx.save(model, tmp_path / "model.onnx")
    bomb(tmp_path / "x.npz", "x", (1, 1 << 28), 1 << 30)
    command = "shrink model.onnx --data x.npz -o out.onnx --width 0.5 --threads 1 --memory 600MB"
    outcome = fuzz.run(command.split(), tmp_path)
    assert outcome.fault is None and outcome.code == 2 and outcome.peak < 500 << 20


def test_statistics_are_never_unpacked(sound: Path, tmp_path: Path) -> None:
    with np.load(sound / "stats.npz") as held:
        np.savez_compressed(tmp_path / "packed.npz", **{name: held[name] for name in held.files})
    with pytest.raises(InputError, match="holds no statistics"):
        shrink(sound / "model.onnx", sound / "data.npz", width=0.5, stats=tmp_path / "packed.npz", batch=16)


class Trap:
    """What a pickle runs when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", ["data", "stats"])
def test_pickles_are_never_loaded(sound: Path, tmp_path: Path, where: str) -> None:
    sprung, trapped = tmp_path / "sprung", tmp_path / "trap.npz"
    with np.load(sound / f"{where}.npz") as held:
        arrays = {name: held[name] for name in held.files}
    first = "x" if where == "data" else "order0"
    np.savez(trapped, **{**arrays, first: np.array([Trap(sprung)], dtype=object)})
    chosen = {"data": sound / "data.npz", where: trapped}
    with pytest.raises(InputError):
        shrink(sound / "model.onnx", width=0.5, **chosen)  # type: ignore[arg-type]
    assert not sprung.exists()


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 1 << 29), ("1.5 gb", 15 * 10**8), (1 << 30, 1 << 30), ("2g", 2 * 10**9)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4 apples", "nan", "1e9", "100MB", 0])
def test_sizes_that_are_refused(text: str | int) -> None:
    with pytest.raises(InputError, match=r"^--memory.* is (not understood: write|too small: it must be)"):
        Options.of(memory=text)


def test_shares_only_shrink_and_leave_room_for_the_rest() -> None:
    sizes = [MemoryBudget.of(limit) for limit in (1 << 28, 1 << 31, 1 << 40)]
    assert sizes[-1] == MemoryBudget.of(None)
    for limit, shares in zip((1 << 28, 1 << 31), sizes, strict=False):
        assert shares.statistics + 2 * shares.stream + shares.windows <= limit // 2


def test_less_memory_gives_the_same_model(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More passes over the data and activations on disk, but the same numbers."""
    whole = shrink(sound / "model.onnx", sound / "data.npz", width=0.5, threads=1)
    monkeypatch.setattr(MemoryBudget, "of", classmethod(lambda cls, limit: cls(1, 1, 1 << 27)))
    tight = shrink(sound / "model.onnx", sound / "data.npz", width=0.5, threads=1, memory="1GB")
    assert Graph(tight.model).digest() == Graph(whole.model).digest()


def test_a_limit_holds_for_the_command_and_not_for_a_caller_in_python(sound: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    assert inspect(sound / "model.onnx", sound / "data.npz", memory="1GB").layers
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    limit = "from pcns_onnx.runtime.memory import limit_process; limit_process(1 << 28)"
    script = f"{limit}; print(len(bytearray(1 << 29)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and "MemoryError" in done.stderr
