"""Models whose weights lie in files beside them, and models that protobuf cannot hold at all."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from builders.models import Array, build, relative, run
from pcns_onnx import InputError, inspect, shrink
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Engine

node = helper.make_node
DATA = "model.bin"


def normal(*shape: int) -> Array:
    return np.random.default_rng([4, *shape]).standard_normal(shape).astype(np.float32)


def mlp(hidden: int = 64) -> onnx.ModelProto:
    """x (n, 16) -> first -> Relu -> second -> Relu -> last (n, 5)."""
    widths = (16, hidden, hidden, 5)
    nodes, weights, source = list[onnx.NodeProto](), dict[str, Array](), "x"
    for name, rows, columns in zip(("first", "second", "last"), widths, widths[1:], strict=False):
        weights |= {f"{name}.w": normal(rows, columns) / np.float32(rows**0.5), f"{name}.b": normal(columns)}
        nodes.append(node("Gemm", [source, f"{name}.w", f"{name}.b"], [f"{name}.h"], name=name))
        nodes.append(node("Relu", [f"{name}.h"], [f"{name}.r"]))
        source = f"{name}.r"
    del nodes[-1]
    nodes[-1].output[0] = "y"
    return build(nodes, weights, ["n", 16])


def write(folder: Path, model: onnx.ModelProto, *, threshold: int = 0, attributes: bool = False) -> Path:
    """Save a model with its tensors in one file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    path = folder / "model.onnx"
    onnx.save(
        twin, path, save_as_external_data=True, location=DATA, size_threshold=threshold, convert_attribute=attributes
    )
    return path


def rows(count: int = 300) -> Array:
    return normal(count, 16)


def from_file(path: Path, x: Array) -> Array:
    """The output of a model that onnxruntime loads by itself, files beside it included."""
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(y)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- reading ---------------------------------------------------------------------------------


def test_a_model_is_the_same_wherever_its_weights_lie(tmp_path: Path) -> None:
    model = mlp()
    inside, outside = Graph.load(model), Graph.load(write(tmp_path, model))
    assert outside.digest() == inside.digest() and outside.serialize() == inside.serialize()
    assert outside.files == {tmp_path / DATA} and not inside.files
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(outside.constant(tensor.name), numpy_helper.to_array(tensor))
    x = rows(5)
    np.testing.assert_array_equal(Engine().session(outside.program()).run({"x": x})["y"], run(model, x))


def test_contents_are_mapped_and_shared_by_copies(tmp_path: Path) -> None:
    graph = Graph.load(write(tmp_path, mlp()))
    first, again = graph.constant("second.w"), graph.copy().constant("second.w")
    assert first is not None and again is not None and np.shares_memory(first, again)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    base: Any = first
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float64, np.int8, np.int64, np.bool_])
def test_every_type_is_read(tmp_path: Path, dtype: Any) -> None:
    """A length that is no multiple of what follows: the next tensor is not aligned."""
    odd, even = (normal(1, 1033) * 9).astype(dtype), (normal(1, 2048) * 9).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [node("Concat", ["a", "b"], ["c"], axis=1), node("Cast", ["c"], ["d"], to=TensorProto.FLOAT)]
    nodes.append(node("MatMul", ["x", "d"], ["y"]))
    model = build(nodes, {"a": odd, "b": even}, ["n", 1])
    path = write(tmp_path, model)
    shifted = (tmp_path / DATA).read_bytes()
    (tmp_path / DATA).write_bytes(b"\1" + shifted)
    stored = onnx.load(path, load_external_data=False)
    for tensor in stored.graph.initializer:
        for entry in tensor.external_data:
            entry.value = str(int(entry.value) + 1) if entry.key == "offset" else entry.value
    path.write_bytes(stored.SerializeToString())
    graph = Graph.load(path)
    for name, value in (("a", odd), ("b", even)):
        found = graph.constant(name)
        assert found is not None and found.dtype == dtype and {t.data_type for t in model.graph.initializer} == {kind}
        np.testing.assert_array_equal(found, value)
    x = np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(Engine().session(graph.program()).run({"x": x})["y"], run(model, x))


def test_tensors_in_attributes_and_of_packed_types_are_read_too(tmp_path: Path) -> None:
    packed = (normal(32, 16) * 3).clip(-7, 7).astype(helper.tensor_dtype_to_np_dtype(TensorProto.INT4))
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(normal(16, 32), "stored")),
        node("MatMul", ["x", "w"], ["h"]),
        node("DequantizeLinear", ["p", "s"], ["v"]),
        node("MatMul", ["h", "v"], ["y"]),
    ]
    model = build(nodes, {"p": packed, "s": np.array(0.5, np.float32)}, ["n", 16], opset=21, ir_version=10)
    graph = Graph.load(write(tmp_path, model, attributes=True))
    np.testing.assert_array_equal(graph.constant("p"), packed)
    assert relative(run(model, rows(3)), run(graph.proto, rows(3))) == 0


def test_a_model_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), rows(4)
    path = write(tmp_path / "a" / "b", model)
    other = tmp_path / "elsewhere"
    other.mkdir()
    for folder in (path.parent, tmp_path, other):
        monkeypatch.chdir(folder)
        graph = Graph.load(os.path.relpath(path))
        monkeypatch.chdir(other)
        np.testing.assert_array_equal(Engine().session(graph.program()).run({"x": x})["y"], run(model, x))


def test_links_and_folders_below_the_model_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path, mlp())
    (tmp_path / "deep").mkdir()
    shutil.move(tmp_path / DATA, tmp_path / "deep" / "real.bin")
    (tmp_path / DATA).symlink_to("deep/real.bin")
    assert Graph.load(path).digest() == Graph.load(mlp()).digest()


def test_a_model_in_memory_has_no_folder(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path, mlp()), load_external_data=False)
    with pytest.raises(InputError, match=r"^the given ModelProto leaves the data of 'first.w' in a file: give .* path"):
        shrink(model, rows(), width=0.5, refine=0)


def relocated(location: str) -> Callable[[TensorProto, Path], None]:
    def change(tensor: TensorProto, _: Path) -> None:
        set_entry(tensor, "location", location)

    return change


def set_entry(tensor: TensorProto, key: str, value: str) -> None:
    kept = [(entry.key, entry.value) for entry in tensor.external_data if entry.key != key]
    del tensor.external_data[:]
    for name, text in [*kept, (key, value)]:
        tensor.external_data.add(key=name, value=text)


def entry(key: str, value: str) -> Callable[[TensorProto, Path], None]:
    return lambda tensor, _: set_entry(tensor, key, value)


def absolute(tensor: TensorProto, folder: Path) -> None:
    set_entry(tensor, "location", str(folder / DATA))


def linked(tensor: TensorProto, folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "outside" / DATA)
    set_entry(tensor, "location", "link.bin")


def linked_folder(tensor: TensorProto, folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "outside")
    set_entry(tensor, "location", f"link/{DATA}")


def looped(tensor: TensorProto, folder: Path) -> None:
    (folder / "loop").symlink_to("loop")
    set_entry(tensor, "location", "loop")


def piped(tensor: TensorProto, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    set_entry(tensor, "location", "pipe")


def truncated(_: TensorProto, folder: Path) -> None:
    os.truncate(folder / DATA, 4000)


def emptied(_: TensorProto, folder: Path) -> None:
    os.truncate(folder / DATA, 0)


def negative(tensor: TensorProto, _: Path) -> None:
    tensor.dims[0] = -16


def text(tensor: TensorProto, _: Path) -> None:
    tensor.data_type = TensorProto.STRING


REFUSED = {
    "an absolute path": (absolute, "'/.*model.bin' leads out of the model's folder"),
    "the folder above": (relocated(f"../outside/{DATA}"), "'../outside/model.bin' leads out of the model's folder"),
    "there and back": (relocated(f"../inside/{DATA}"), "'../inside/model.bin' leads out of the model's folder"),
    "a link out": (linked, "'link.bin' leads out of the model's folder"),
    "a link of a folder out": (linked_folder, "'link/model.bin' leads out of the model's folder"),
    "a link to itself": (looped, "loop"),
    "no location": (relocated(""), "'' leads out of the model's folder"),
    "a NUL": (relocated("a\0b"), "null"),
    "a name of many letters": (relocated("a" * 5000), "too long"),
    "no such file": (relocated("absent.bin"), "there is no file 'absent.bin'"),
    "a folder": (relocated("."), "there is no file '.'"),
    "a pipe": (piped, "there is no file 'pipe'"),
    "a file cut short": (truncated, "tensor 'first.w' ends at byte 4096 of 'model.bin', which has 4000"),
    "an empty file": (emptied, "tensor 'first.w' ends at byte 4096 of 'model.bin', which has 0"),
    "an offset past the end": (entry("offset", "10000000000"), "ends at byte 10000004096 of 'model.bin', which has"),
    "a negative offset": (entry("offset", "-4"), "offset '-4' is not understood"),
    "an offset of many digits": (entry("offset", "9" * 9999), "offset '9+' is not understood"),
    "an offset in words": (entry("offset", "four"), "offset 'four' is not understood"),
    "another length": (entry("length", "4000"), "tensor 'first.w' takes 4096 bytes but its length is 4000"),
    "a negative size": (negative, r"tensor 'first.w' has the shape \(-16, 64\)"),
    "text": (text, "tensor 'first.w' is of a type that has no raw data"),
}


@pytest.mark.parametrize(("change", "line"), REFUSED.values(), ids=REFUSED)
def test_data_that_is_not_the_models_own_is_refused(
    tmp_path: Path, change: Callable[[TensorProto, Path], None], line: str
) -> None:
    folder = tmp_path / "inside"
    path = write(folder, mlp())
    write(tmp_path / "outside", mlp())
    model = onnx.load(path, load_external_data=False)
    change(next(t for t in model.graph.initializer if t.name == "first.w"), folder)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError) as caught:
        inspect(path)
    said = str(caught.value)
    assert said.startswith(f"cannot read the external data of '{path}': ") and "\n" not in said
    assert re.search(line, said), said


# -- writing ---------------------------------------------------------------------------------


def pair(folder: Path, name: str = "out.onnx") -> tuple[Path, Path]:
    """A model and its one data file."""
    (data,) = folder.glob(f"{name}.*.data")
    return folder / name, data


def test_it_is_shrunk_end_to_end_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), rows()
    write(tmp_path / "in", model)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    result = shrink("in/model.onnx", x, "out/out.onnx", width=0.5, refine=0)
    out, data = pair(tmp_path / "out")
    assert sorted(p.name for p in out.parent.iterdir()) == [out.name, data.name]
    assert re.fullmatch(r"out\.onnx\.[0-9a-f]{8}\.data", data.name)
    onnx.checker.check_model(out, full_check=True)
    assert {group.width for group in result.plan.groups.values()} == {32}
    monkeypatch.chdir(tmp_path / "in")
    np.testing.assert_allclose(from_file(out, x), run(result.model, x), atol=1e-5)
    assert relative(run(model, x), run(result.model, x)) < 0.5


def test_the_result_in_memory_is_whole(tmp_path: Path) -> None:
    result = shrink(write(tmp_path, mlp()), rows(), tmp_path / "out.onnx", width=0.5, refine=0)
    onnx.checker.check_model(result.model, full_check=True)
    assert all(t.data_location == TensorProto.DEFAULT for t in result.model.graph.initializer)
    assert Graph.load(tmp_path / "out.onnx").digest() == Graph.load(result.model).digest()


def test_storage_makes_no_difference_to_the_result(tmp_path: Path) -> None:
    outside = shrink(write(tmp_path, mlp()), rows(), budget="macs=0.5", plan_out=tmp_path / "plan.json", refine=0)
    inside = shrink(mlp(), rows(), budget="macs=0.5", refine=0)
    assert outside.model.SerializeToString() == inside.model.SerializeToString()
    replayed = shrink(mlp(), rows(), plan=tmp_path / "plan.json", refine=0)
    assert replayed.model.SerializeToString() == inside.model.SerializeToString()


def test_the_same_run_writes_the_same_files(tmp_path: Path) -> None:
    path = write(tmp_path, mlp())
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shrink(path, rows(), tmp_path / name / "out.onnx", width=0.5, refine=0)
        written.append(snapshot(tmp_path / name))
    assert written[0] == written[1] and len(written[0]) == 2


def test_large_contents_lie_outside_at_pages(tmp_path: Path) -> None:
    """That is where a runtime can map them."""
    Graph.load(write(tmp_path, mlp())).save(tmp_path / "out.onnx")
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    outside = {t.name: {entry.key: entry.value for entry in t.external_data} for t in stored if t.external_data}
    assert outside.keys() == {"first.w", "second.w", "last.w"}
    assert [int(entries["offset"]) % 4096 for entries in outside.values()] == [0, 0, 0]


def test_the_report_knows_the_size_of_both_files(tmp_path: Path) -> None:
    report = shrink(write(tmp_path, mlp(256)), rows(), tmp_path / "out.onnx", width=0.5, refine=0).report
    sizes = [sum(p.stat().st_size for p in files) for files in (
        (tmp_path / "model.onnx", tmp_path / DATA), pair(tmp_path)
    )]  # fmt: skip
    assert [report.before.bytes, report.after.bytes] == pytest.approx(sizes, rel=0.05)


def test_nothing_large_needs_no_data_file(tmp_path: Path) -> None:
    path = write(tmp_path, mlp(8))
    Graph.load(path).save(tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == [DATA, "model.onnx", "out.onnx"]
    np.testing.assert_array_equal(from_file(tmp_path / "out.onnx", rows(3)), from_file(path, rows(3)))


# -- beside onnx-ir --------------------------------------------------------------------------


def test_shards_are_read(tmp_path: Path) -> None:
    """Data in several files, packed without gaps: what onnx-ir writes where it is given a size."""
    model, path = mlp(), tmp_path / "model.onnx"
    onnx_ir.save(
        onnx_ir.from_proto(model), path, external_data=DATA, size_threshold_bytes=0, max_shard_size_bytes=10_000
    )
    graph = Graph.load(path)
    assert len(graph.files) == 3 and graph.files == {*tmp_path.iterdir()} - {path}
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(graph.constant(tensor.name), numpy_helper.to_array(tensor))


def test_onnx_ir_reads_what_is_written_and_writes_the_same_data(tmp_path: Path) -> None:
    graph = Graph.load(write(tmp_path / "in", mlp()))
    graph.save(tmp_path / "out.onnx")
    tensors = onnx_ir.load(tmp_path / "out.onnx").graph.initializers.values()
    values = {tensor.name: tensor.const_value.numpy() for tensor in tensors if tensor.const_value is not None}
    assert len(values) == 6
    for name, value in values.items():
        np.testing.assert_array_equal(value, graph.constant(str(name)))
    outside = [onnx_ir.tensor(value) for value in values.values() if value.nbytes >= 1024]
    onnx_ir.external_data.convert_tensors_to_external(outside, tmp_path, "theirs", alignment=4096, align_threshold=0)
    assert pair(tmp_path)[1].read_bytes() == (tmp_path / "theirs").read_bytes()


def with_everything() -> onnx.ModelProto:
    """An MLP with a sparse initializer, which onnx-ir 1.1.0 loses, and all that is said beside tensors."""
    model = mlp()
    graph = model.graph
    values, places = numpy_helper.from_array(normal(3), "sparse.w"), np.array([0, 7, 24], np.int64)
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), [5, 5])
    graph.sparse_initializer.append(sparse)
    graph.node[-1].output[0] = "last.h"
    graph.node.append(node("MatMul", ["last.h", "sparse.w"], ["y"], name="sparse", doc_string="a node"))
    graph.node[0].metadata_props.add(key="kept", value="too")
    for tensor in graph.initializer:
        tensor.doc_string = f"doc of {tensor.name}"
        tensor.metadata_props.add(key="namespace", value="a/b")
    graph.value_info.append(helper.make_tensor_value_info("first.h", TensorProto.FLOAT, ["n", 64]))
    graph.quantization_annotation.add(tensor_name="first.h").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="s"
    )
    graph.doc_string, model.doc_string, model.producer_name, model.domain = "a graph", "a model", "a test", "org.test"
    model.metadata_props.add(key="author", value="nobody")
    return model


def test_what_is_not_a_large_initializer_survives_to_the_byte(tmp_path: Path) -> None:
    model = with_everything()
    Graph.load(write(tmp_path / "in", model, threshold=1024)).save(tmp_path / "out.onnx")
    assert pair(tmp_path)[1].stat().st_size
    content = model.SerializeToString(deterministic=True)
    assert Graph.load(tmp_path / "out.onnx").serialize() == content == Graph.load(model).serialize()
    assert onnx.load(tmp_path / "out.onnx").graph.sparse_initializer == model.graph.sparse_initializer


@contextmanager
def open_files_up_to(count: int) -> Iterator[None]:
    """So many more than are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nobody says here which files are open")
def test_there_may_be_more_tensors_than_open_files(tmp_path: Path) -> None:
    """A file is mapped once, not once per tensor: most systems allow 1,024, and large models have more tensors."""
    names = [f"w{index}" for index in range(100)]
    nodes = [node("MatMul", ["x", name], [f"{name}.h"]) for name in names]
    nodes.append(node("Sum", [f"{name}.h" for name in names], ["y"]))
    path = write(tmp_path, build(nodes, {name: normal(16, 16) for name in names}, ["n", 16]))
    with open_files_up_to(10):
        graph = Graph.load(path)
        values = [graph.constant(name) for name in names]
    assert len(values) == 100 and graph.files == {tmp_path / DATA}


# -- replacing -------------------------------------------------------------------------------


def test_a_replaced_model_takes_its_own_data_along(tmp_path: Path) -> None:
    """And nobody else's, whatever it is called."""
    out, others = tmp_path / "out.onnx", {"out.onnx.0123abcd.data", "out.onnx.data", "other.onnx.0123abcd.data"}
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    graph = Graph.load(write(tmp_path / "in", mlp()))
    written = set()
    for factor in (1, 2):
        graph.set_input("first.h", 1, factor * normal(16, 64))
        graph.save(out)
        (new,) = {p.name for p in tmp_path.iterdir() if p.is_file()} - others - {"out.onnx"}
        assert Graph.load(out).files == {tmp_path / new} and Graph.load(out).digest() == graph.digest()
        written.add(new)
    assert len(written) == 2
    Graph(mlp()).save(out)
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == others | {"out.onnx"}


def test_writing_the_same_again_changes_nothing(tmp_path: Path) -> None:
    graph = Graph.load(write(tmp_path / "in", mlp()))
    graph.save(tmp_path / "out.onnx")
    before = snapshot(tmp_path)
    graph.save(tmp_path / "out.onnx")
    assert snapshot(tmp_path) == before


def test_data_that_the_input_still_needs_is_kept(tmp_path: Path) -> None:
    """A copy of an earlier output points to that output's data file."""
    Graph.load(write(tmp_path / "in", mlp())).save(tmp_path / "out.onnx")
    _, data = pair(tmp_path)
    copy = tmp_path / "copy.onnx"
    shutil.copy(tmp_path / "out.onnx", copy)
    expected = from_file(copy, rows(3))
    shrink(copy, rows(), tmp_path / "out.onnx", width=0.5, refine=0)
    assert data.exists()
    np.testing.assert_array_equal(from_file(copy, rows(3)), expected)


@pytest.mark.parametrize("spelling", ["in/model.bin", "in/../in/model.bin", "link.bin", "hard.bin"])
def test_the_inputs_data_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    path = write(tmp_path / "in", mlp())
    (tmp_path / "link.bin").symlink_to(tmp_path / "in" / DATA)
    os.link(tmp_path / "in" / DATA, tmp_path / "hard.bin")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    refused = f"^cannot write '{spelling}': it is an input or another output, choose another name$"
    with pytest.raises(InputError, match=refused):
        shrink(path, rows(), spelling, width=0.5, refine=0)
    assert snapshot(tmp_path) == before


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """What a full disk does: larger files cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fails", ["data", "model"])
@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, fails: str, there: bool) -> None:
    model = mlp()
    model.doc_string = "x" * (200_000 if fails == "model" else 1)
    graph = Graph.load(write(tmp_path / "in", model))
    if there:
        Graph.load(write(tmp_path / "in", mlp())).save(tmp_path / "out.onnx")
        graph.set_input("first.h", 1, 2 * normal(16, 64))
    before = snapshot(tmp_path)
    with files_up_to(100_000 if fails == "model" else 10_000), pytest.raises(InputError, match=r"^cannot write '.*out"):
        graph.save(tmp_path / "out.onnx")
    assert snapshot(tmp_path) == before


def test_a_model_that_cannot_be_put_there_takes_its_data_back(tmp_path: Path) -> None:
    graph = Graph.load(write(tmp_path / "in", mlp()))
    (tmp_path / "out.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"^cannot write '.*out.onnx': Is a directory$"):
        graph.save(tmp_path / "out.onnx")
    assert sorted(tmp_path.rglob("*")) == before


# -- more than protobuf holds ----------------------------------------------------------------

WIDE = 16384


def write_wide(folder: Path) -> Path:
    """x (n, 64) -> three layers of 16384 -> one of 256 -> y (n, 5): 2.2 GB, written in pieces."""
    widths = (64, WIDE, WIDE, WIDE, 256, 5)
    graph = onnx.GraphProto(name="wide")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", widths[0]]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", widths[-1]]))
    with open(folder / DATA, "wb") as file:
        for index, (count, columns) in enumerate(pairwise(widths)):
            block = np.random.default_rng(index).standard_normal((min(count, 512), columns)).astype(np.float32)
            block /= np.float32(count**0.5)
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[count, columns])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", DATA), ("offset", file.tell()), ("length", 4 * count * columns)):
                weight.external_data.add(key=key, value=str(value))
            graph.initializer.append(weight)
            for _ in range(count // len(block)):
                file.write(block.data)
            graph.node.append(node("MatMul", [f"r{index - 1}" if index else "x", f"w{index}"], [f"h{index}"]))
            graph.node.append(node("Relu", [f"h{index}"], [f"r{index}"]))
    del graph.node[-1]
    graph.node[-1].output[0] = "y"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not outlive the test, as pytest's own do."""
    folder = tmp_path / "roomy"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes_is_shrunk(roomy: Path) -> None:
    path, x = write_wide(roomy), normal(300, 64)
    out = roomy / "out.onnx"
    assert (roomy / DATA).stat().st_size > 1 << 31
    result = shrink(path, x, out, include=["h3"], width=0.5, samples=300, refine=0)
    assert {name: group.width for name, group in result.plan.groups.items()} == {"h3": 128}
    assert pair(roomy)[1].stat().st_size > 1 << 31
    expected = from_file(path, x[:4])
    assert relative(expected, from_file(out, x[:4])) < 0.3
    with pytest.raises(InputError, match="cannot be written as one protobuf"):
        Graph.load(out).serialize()
    # The result in memory has its weights inside, and is written in two files again.
    Graph(result.model).save(roomy / "again.onnx")
    assert Graph.load(roomy / "again.onnx").digest() == Graph.load(out).digest()
