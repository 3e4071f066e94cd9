"""Whatever onnxruntime takes of a model can be fed to it: states, settings, tables, graphs, texts, streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from builders import fed
from builders.commands import Ran
from builders.fed import FLOAT, INT64, STRING, Array
from pcns_onnx import InputError, compare, expand, inspect, plan, shrink

HALF: dict[str, Any] = {"width": 0.5, "multiple": 1, "refine": 0, "threads": 1}


def shrunk(model: ModelProto, data: Any, feeds: Mapping[str, Any], **choices: Any) -> Any:
    """The report of halving a model whose neurons are twins, which must cost nothing on `feeds`."""
    result = shrink(model, data, **HALF, **choices)
    before, after = fed.run(model, feeds), fed.run(result.model, feeds)
    for name, value in before.items():
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(after[name], value, atol=2e-3)
        else:
            assert np.array_equal(after[name], value)
    assert result.report.after.macs < result.report.before.macs
    return result.report


def one(x: Array | None = None) -> Array:
    return fed.samples(1) if x is None else x[:1]


STATES = {
    "named": (("N", 16), (2, "N", 8)),
    "named otherwise": (("batch_size", 16), (2, "batch_size", 8)),
    "not named": ((None, 16), (2, None, 8)),
    "fixed": ((1, 16), (2, 1, 8)),
}


@pytest.mark.parametrize("names", STATES)
@pytest.mark.parametrize("data", ["along its axis", "one per sample", "yielded", "the same for all"])
def test_a_state_has_its_samples_along_another_axis(names: str, data: str) -> None:
    x, state = fed.samples(), np.random.default_rng(0).standard_normal((2, 120, 8)).astype(np.float32)
    choices: dict[str, Any] = {}
    source: Any = {"x": x, "state": state}
    if data == "one per sample":
        source = {"x": x, "state": np.ascontiguousarray(np.moveaxis(state, 1, 0))[:, :, None]}
    elif data == "yielded":
        source = lambda: ({"x": x[i : i + 1], "state": state[:, i : i + 1]} for i in range(len(x)))  # noqa: E731
    elif data == "the same for all":
        source, choices = x, {"constant": "state=0.5"}
    feeds = {"x": x[:1], "state": state[:, :1]}
    report = shrunk(fed.with_state(*STATES[names]), source, feeds, **choices)
    assert {output.name for output in report.agreement.outputs} == {"y", "stateN"}
    assert report.agreement.samples == 12
    assert report.latency.batch == (1 if names == "fixed" else 64)


def test_an_axis_is_stated_where_no_name_tells_it(run: Callable[..., Ran], tmp_path: Path) -> None:
    onnx.save(fed.with_state(("rows", 16), (2, "columns", 8)), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=fed.samples(), state=np.zeros((2, 120, 8), np.float32))
    words = ["shrink", "m.onnx", "--data", "d.npz", "--width", 0.5, "-q", "-o", "o.onnx", "--threads", 1]
    assert run(*words, "--batch-axis", "state=1").code == 0
    for axis, line in {
        "state=7": "--batch-axis state=7 is too large: the input has 3 axes, from 0",
        "states=1": "--batch-axis names 'states', which is no input: the model has x, state",
        "state": "--batch-axis state is not understood: write a name and an axis, as in state=1",
    }.items():
        assert run(*words, "--batch-axis", axis).err == f"pcns-onnx: error: {line}\n"


def test_a_sample_is_compared_along_the_axis_of_its_output() -> None:
    model = fed.with_state(("N", 16), (2, "N", 8))
    data = {"x": fed.samples(), "state": np.zeros((2, 120, 8), np.float32)}
    report = compare(model, model, data, threads=1)
    assert report.agreement.samples == 120
    assert all(output.relative_error == 0 for output in report.agreement.outputs)
    worst = shrink(model, data, width=0.25, refine=0, threads=1).report.agreement.outputs[1].worst
    assert max(w.sample for w in worst) < 12 and len({w.sample for w in worst}) == len(worst)


SETTINGS: dict[str, tuple[tuple[int, Any], Any]] = {
    "a number": ((FLOAT, []), np.float32(3)),
    "a number of integers": ((INT64, []), np.int64(16000)),
    "settings": ((FLOAT, [3]), np.array([0.667, 1, 0.8], np.float32)),
    "a table": ((FLOAT, [64, 4]), np.ones((64, 4), np.float32)),
    "a table with an open size": ((FLOAT, [64, "columns"]), np.ones((64, 7), np.float32)),
    "one row": ((FLOAT, [1, 5]), np.ones((1, 5), np.float32)),
    "ids": ((INT64, ["T"]), np.arange(9)),
    "a text": ((STRING, [1]), np.array(["hello"])),
    "a text alone": ((STRING, []), np.array("hello")),
}


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("way", ["in the file", "constant", "yielded"])
def test_what_is_the_same_in_every_run_is_no_sample(kind: str, way: str, tmp_path: Path) -> None:
    spec, value = SETTINGS[kind]
    model, x = fed.with_settings(more=spec), fed.samples()
    source: Any = {"x": x, "more": value}
    choices: dict[str, Any] = {}
    if way == "in the file":
        np.savez(tmp_path / "d.npz", x=x, more=value)
        source = tmp_path / "d.npz"
    elif way == "constant":
        source, choices = x, {"constant": {"more": value}}
    else:
        source = [{"x": row[None], "more": value} for row in x]
    texts = value.astype(object) if value.dtype.kind == "U" else value
    report = shrunk(model, source, {"x": one(x), "more": texts}, **choices)
    assert report.agreement.samples == 12 and report.latency.batch == 64


def test_settings_may_differ_from_sample_to_sample() -> None:
    model, x = fed.with_settings(rate=(INT64, []), scales=(FLOAT, [3])), fed.samples()
    rng = np.random.default_rng(2)
    data = {"x": x, "rate": rng.choice([8000, 16000], 120), "scales": rng.random((120, 3), np.float32)}
    report = shrunk(model, data, {"x": one(x), "rate": np.int64(8000), "scales": np.ones(3, np.float32)})
    assert report.agreement.samples == 12


def test_a_voice_takes_ids_lengths_and_scales() -> None:
    """Piper's inputs: input (batch, phonemes), input_lengths (batch), scales (3)."""
    nodes, stored = fed.body("e")
    nodes = [
        onnx.helper.make_node("Gather", ["table", "ids"], ["e"]),
        *nodes,
        onnx.helper.make_node("ReduceSum", ["scales"], ["scale"], keepdims=0),
        onnx.helper.make_node("Mul", ["out", "scale"], ["y"]),
        onnx.helper.make_node("Identity", ["lengths"], ["seen"]),
    ]
    inputs: Any = {"ids": (INT64, ["batch", "phonemes"]), "lengths": (INT64, ["batch"]), "scales": (FLOAT, [3])}
    outputs: Any = {"y": (FLOAT, ["batch", "phonemes", 8]), "seen": (INT64, ["batch"])}
    model = fed.assembled(nodes, inputs, outputs, stored | {"table": fed.samples(30)})

    def feeds() -> Iterator[dict[str, Array]]:
        rng = np.random.default_rng(1)
        for _ in range(40):
            ids = rng.integers(30, size=(1, int(rng.integers(4, 12))))
            yield {"ids": ids, "lengths": np.array([ids.shape[1]]), "scales": np.array([0.667, 1, 0.8], np.float32)}

    last = list(feeds())[-1]
    assert shrunk(model, feeds, last).agreement.samples == 4
    without = ({name: feed[name] for name in ("ids", "lengths")} for feed in feeds())
    assert shrunk(model, without, last, constant="scales=[0.667, 1, 0.8]").agreement.samples == 4


def graphs(count: int = 40) -> Iterator[dict[str, Array]]:
    rng = np.random.default_rng(3)
    for _ in range(count):
        nodes = int(rng.integers(2, 20))
        x = rng.standard_normal((nodes, 16)).astype(np.float32)
        yield {"x": x, "edges": rng.integers(nodes, size=(2, int(rng.integers(2, 30))))}


@pytest.mark.parametrize("way", ["yielded", "listed"])
def test_a_graph_is_one_sample_whatever_its_nodes(way: str) -> None:
    source: Any = graphs() if way == "yielded" else list(graphs())
    report = shrunk(fed.on_graphs(), source, next(graphs()))
    assert report.agreement.samples == 4 and report.latency.batch == 1


def test_a_folder_of_graphs_has_one_in_each_file(tmp_path: Path) -> None:
    for at, graph in enumerate(graphs()):
        np.savez(tmp_path / f"{at}.npz", **graph)  # type: ignore[arg-type]
    assert shrunk(fed.on_graphs(), tmp_path, next(graphs())).agreement.samples == 4


def test_rows_that_see_each_other_are_no_samples() -> None:
    model, x = fed.over_time(), fed.samples(5)
    lengths = np.random.default_rng(0).integers(3, 20, 40)
    report = shrunk(model, lambda: (fed.samples(int(length), seed=at) for at, length in enumerate(lengths)), {"x": x})
    assert report.agreement.samples == 4 and report.latency.batch == 1
    line = "what is fed at once is taken as one sample, since its rows depend on each other: say --batch-axis x=0"
    assert [warning for warning in report.warnings if warning.startswith(line)]
    rows = [fed.samples(6, seed=at) for at in range(30)]
    assert shrunk(fed.over_time((None, 16)), rows, {"x": x}).agreement.samples == 3
    assert shrunk(model, np.stack(rows), {"x": x}).agreement.samples == 3


def test_feeds_of_many_samples_are_cut_where_that_changes_nothing() -> None:
    model = fed.with_settings()
    report = shrunk(model, [{"x": fed.samples(30)}, {"x": fed.samples(90)}], {"x": fed.samples(3)})
    assert report.agreement.samples == 12 and report.latency.batch == 64


BAKED = ["Reshape", "Reshape, open size", "Reshape to one row", "Concat", "one row inside", "state"]


@pytest.mark.parametrize(("how", "batch"), [*((how, "batch") for how in BAKED), ("Reshape", "N"), ("Concat", "rows")])
def test_a_model_with_a_batch_of_1_inside_is_run_with_1(how: str, batch: str) -> None:
    model = fed.with_baked_batch(how, batch)
    said = "the model takes one sample at a time, whatever its inputs say: it is run with --batch 1"
    report = shrunk(model, fed.samples(), {"x": fed.samples(1)})
    assert report.warnings.count(said) == 1
    assert report.latency.batch == 1 and report.agreement.samples == 12
    assert said in inspect(model, fed.samples(20), threads=1).warnings
    quiet = shrunk(model, fed.samples(), {"x": fed.samples(1)}, batch=1)
    assert said not in quiet.warnings


def test_every_command_falls_back_to_1() -> None:
    model = fed.with_baked_batch("Reshape, open size")
    data = fed.samples(40)
    assert plan(model, data, width=0.5, threads=1).report.batch == 1
    assert compare(model, model, data, threads=1).latency.batch == 1
    wide = expand(model, layer="first", data=data, threads=1)
    assert wide.report.agreement.samples == 40


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("at", [0, 1])
def test_sizes_below_1_are_open(size: int, at: int) -> None:
    nodes, stored = fed.body()
    nodes.append(onnx.helper.make_node("Identity", ["out"], ["y"]))
    sizes: fed.Dims = [size] if at == 0 else ["batch", size]
    model = fed.assembled(nodes, {"x": (FLOAT, [*sizes, 16])}, {"y": (FLOAT, [*sizes, 8])}, stored)
    data = fed.samples(100) if at == 0 else fed.samples(100, 5, 16)
    result = shrink(model, data, **HALF, batch=8)
    written = result.model.graph.input[0].type.tensor_type.shape.dim[at]
    assert written.dim_value == size and result.report.agreement.error < 1e-3
    assert inspect(model, data, threads=1).macs == (1 if at == 0 else 5) * (16 * 32 + 32 * 8)
    assert compare(model, result.model, data, threads=1).agreement.error < 1e-3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such input": (
        {"constant": "srr=1"},
        "--constant names 'srr', which is no input: the model takes `x`, `state`, `sr`",
    ),
    "no value": ({"constant": "sr"}, "--constant sr is not understood: write a name and a value, as in sr=16000"),
    "no number": (
        {"constant": "sr=fast"},
        "--constant sr=fast is not understood: give a number, a list as in [1, 2], or a .npy or .npz file",
    ),
    "no file": (
        {"constant": "sr=sr.npy"},
        "--constant sr: sr.npy does not exist: give a number, a list as in [1, 2], or a file",
    ),
    "a fraction": ({"constant": "sr=0.5"}, "--constant sr holds numbers that int64 cannot: the model takes int64"),
    "another shape": (
        {"constant": ["sr=1", "state=[1, 2]"]},
        "--constant state has shape (2,) but the model takes (2, 1, 8): reshape it",
    ),
    "no constant": (
        {},
        "data lacks `sr`: it has `x`, `state`, the model takes `x`, `state`, `sr`: name one array after each input, or "
        "give --constant sr=VALUE",
    ),
    "all of them": (
        {"constant": ["sr=1", "state=0", "x=0"]},
        "all inputs of the model are constants: leave out the one that the samples are for",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_constant_that_cannot_be_is_refused_in_one_line(case: str) -> None:
    choices, line = REFUSED[case]
    data = {"x": fed.samples(), "state": np.zeros((2, 120, 8), np.float32)}
    with pytest.raises(InputError) as caught:
        shrink(fed.with_state(("N", 16), (2, "N", 8), sr=True), data, **HALF, **choices)
    assert str(caught.value) == line


def test_constants_come_from_files_too(tmp_path: Path) -> None:
    model = fed.with_state(("N", 16), (2, "N", 8), sr=True)
    np.save(tmp_path / "state.npy", np.zeros((2, 8), np.float32))
    np.savez(tmp_path / "all.npz", sr=np.int32(16000), other=np.ones(3))
    choices = {"constant": [f"state={tmp_path / 'state.npy'}", f"sr={tmp_path / 'all.npz'}"]}
    feeds = {"x": fed.samples(1), "state": np.zeros((2, 1, 8), np.float32), "sr": np.int64(16000)}
    assert "state=" in shrunk(model, fed.samples(), feeds, **choices).options["constant"]


LABELS: dict[str, tuple[Array, str]] = {
    "one-hot": (
        np.eye(8, dtype=np.int64)[np.arange(120) % 8],
        "data: `labels` is one-hot (120, 8): save class numbers, as in labels.argmax(axis=1)",
    ),
    "from 1": (
        np.arange(120) % 8 + 1,
        "data: `labels` holds class 8 at sample 7 but the model tells 8 apart, 0 to 7: number them as its output does",
    ),
    "negative": (
        np.arange(120) % 8 - 1,
        "data: `labels` holds class -1 at sample 0 but the model tells 8 apart, 0 to 7: number them as its output does",
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_no_class_numbers_are_refused(kind: str) -> None:
    labels, line = LABELS[kind]
    with pytest.raises(InputError) as caught:
        shrink(fed.with_settings(), {"x": fed.samples(), "labels": labels}, **HALF)
    assert str(caught.value) == line
    metric = lambda outputs, labels: float(len(labels))  # noqa: E731
    shrink(fed.with_settings(), {"x": fed.samples(), "labels": labels}, **HALF, metric=metric)


def test_what_is_no_tensor_is_refused_in_one_line() -> None:
    nodes, stored = fed.body()
    nodes.append(onnx.helper.make_node("SequenceAt", ["list", "first"], ["one"]))
    nodes.append(onnx.helper.make_node("Add", ["out", "one"], ["y"]))
    model = fed.assembled(nodes, {"x": (FLOAT, ["N", 16])}, {"y": (FLOAT, ["N", 8])}, stored | {"first": np.array(0)})
    model.graph.input.append(onnx.helper.make_tensor_sequence_value_info("list", FLOAT, None))
    with pytest.raises(InputError, match=r"^model input `list` is no tensor: nothing can be fed to it$"):
        shrink(model, fed.samples(), **HALF)
