"""A streaming model is calibrated on the states that it really sees: those of the original, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from builders import fed
from builders.fed import FLOAT, Array
from pcns_onnx import InputError, compare, shrink
from pcns_onnx.data.dataset import Dataset, Feeding, open_data, split
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.carry import with_states
from pcns_onnx.runtime.engine import Engine

STEPS = 7
CARRIES = {"memory": "kept"}


def streamed(model: ModelProto, x: Array, first: Array | None = None) -> list[Array]:
    """The states that each step of one sequence (T, 16) is fed with."""
    states = [np.zeros((1, 8), np.float32) if first is None else first]
    for row in x[:-1]:
        states.append(fed.run(model, {"x": row[None], "memory": states[-1]})["kept"])
    return states


def opened(data: Any, model: ModelProto | None = None, **constants: Array) -> Dataset:
    graph = Graph.load(model or fed.running_mean())
    dataset = open_data(data, graph.inputs, feeding=Feeding(graph.layout, constants, tuple(CARRIES)))
    return with_states(dataset, Engine(threads=1), graph, CARRIES, constants)


def memories(dataset: Dataset, size: int = 5) -> Array:
    return np.concatenate([batch.feeds["memory"] for batch in dataset.batches(size)])


def sequences(count: int = 6) -> Array:
    return fed.samples(count, STEPS, 16)


def in_steps(x: Array) -> Iterator[dict[str, Array]]:
    """Step by step; what brings the state begins a sequence."""
    for sequence in x:
        for at, row in enumerate(sequence):
            yield {"x": row[None]} | ({"memory": np.zeros((1, 8), np.float32)} if at == 0 else {})


def a_folder(x: Array, folder: Path) -> Path:
    for at, sequence in enumerate(x):
        np.save(folder / f"{at}.npy", sequence)
    return folder


SOURCES: dict[str, Callable[[Array, Path], Any]] = {
    "an axis of time": lambda x, folder: x,
    "an axis of time in a mapping": lambda x, folder: {"x": x},
    "a file for each": a_folder,
    "a feed for each": lambda x, folder: ({"x": sequence} for sequence in x),
    "an array for each": lambda x, folder: list(x),
    "step by step": lambda x, folder: lambda: in_steps(x),
    "an iterator": lambda x, folder: in_steps(x),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_step_has_the_state_that_the_original_has_there(kind: str, tmp_path: Path) -> None:
    x, model = sequences(), fed.running_mean()
    dataset = opened(SOURCES[kind](x, tmp_path), model)
    expected = np.concatenate([state for sequence in x for state in streamed(model, sequence)])
    for size in (5, 1, 64):
        np.testing.assert_allclose(memories(dataset, size), expected, atol=1e-5)
    inputs = np.concatenate([batch.feeds["x"] for batch in dataset.batches(4)])
    assert np.array_equal(inputs, x.reshape(-1, 16))
    assert dataset.count == len(expected)


def test_one_file_is_one_sequence(tmp_path: Path) -> None:
    x = fed.samples(20)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_allclose(
        memories(opened(tmp_path / "x.npy")), np.concatenate(streamed(fed.running_mean(), x)), atol=1e-5
    )


def test_a_sequence_begins_with_what_is_given() -> None:
    x, model, first = sequences(3), fed.running_mean(), np.full((1, 8), 0.5, np.float32)
    expected = np.concatenate([state for sequence in x for state in streamed(model, sequence, first)])
    np.testing.assert_allclose(memories(opened({"x": x}, model, memory=first)), expected, atol=1e-5)
    given = ({"x": sequence, "memory": np.repeat(first, STEPS, 0)} for sequence in x)
    np.testing.assert_allclose(memories(opened(given, model)), expected, atol=1e-5)


def test_subsets_keep_the_states_of_the_whole() -> None:
    data = opened(sequences())
    everything = memories(data)
    train, held_out = split(data, holdout=0.2, seed=0, samples=30)
    assert held_out is not None
    for part in (train, held_out):
        at = np.concatenate([batch.index for batch in part.batches(4) if batch.index is not None])
        np.testing.assert_array_equal(memories(part), everything[at])


def test_only_as_many_steps_are_run_as_are_asked_for() -> None:
    def endless() -> Iterator[dict[str, Array]]:
        while True:
            yield {"x": fed.samples(1)}

    train, _ = split(opened(endless()), holdout=0.0, seed=0, samples=9)
    assert len(memories(train)) == 9


def test_labels_go_with_the_steps() -> None:
    x = sequences(4)
    each, one = np.arange(4 * STEPS).reshape(4, STEPS), np.arange(4)
    for labels, expected in ((each, each.reshape(-1)), (one, np.repeat(one, STEPS))):
        batches = list(opened({"x": x, "labels": labels}).batches(5))
        assert np.array_equal(np.concatenate([b.labels for b in batches if b.labels is not None]), expected)


def test_a_memory_that_grows_is_fed_as_it_is() -> None:
    """Keys of all steps before, as a decoder has them: past (batch, T, 8) -> present (batch, T + 1, 8)."""
    nodes, stored = fed.body()
    nodes += [
        helper.make_node("Unsqueeze", ["out", "axis"], ["key"]),
        helper.make_node("Concat", ["past", "key"], ["present"], axis=1),
        helper.make_node("ReduceSum", ["present", "axis"], ["y"], keepdims=0),
    ]
    model = fed.assembled(
        nodes,
        {"x": (FLOAT, ["batch", 16]), "past": (FLOAT, ["batch", "T", 8])},
        {"y": (FLOAT, ["batch", 8]), "present": (FLOAT, ["batch", "T1", 8])},
        stored | {"axis": np.array([1])},
    )
    empty = np.zeros((1, 0, 8), np.float32)
    result = shrink(
        model, sequences(20), width=0.5, multiple=1, refine=0, threads=1, carry="present=past", constant={"past": empty}
    )
    assert result.report.agreement.error < 1e-3
    assert result.report.agreement.samples == 14


def test_a_model_is_solved_on_the_states_that_it_sees() -> None:
    """A memory that saturates half of the model's range is nothing like the zeros that it begins with."""
    model, x = fed.running_mean(), sequences(40)
    result = shrink(model, x, width=0.5, multiple=1, refine=0, threads=1, carry="kept=memory")
    assert result.report.agreement.error < 1e-3
    assert result.report.options["carry"] == "kept=memory"
    again = compare(model, result.model, x, threads=1, carry=["kept=memory"])
    assert again.agreement.samples == 40 * STEPS and again.agreement.error < 1e-3


def test_steps_of_a_model_that_takes_whole_sequences_are_run_one_by_one() -> None:
    """x (T, 16) and a state (1, 1, 8) that has no axis for samples: what is a row more is another step."""
    nodes, stored = fed.body()
    nodes += [
        helper.make_node("Unsqueeze", ["out", "one"], ["steps"]),
        helper.make_node("LSTM", ["steps", "W", "R", "", "", "h", "c"], ["ys", "hn", "cn"], hidden_size=8, name="lstm"),
        helper.make_node("Squeeze", ["ys", "both"], ["y"]),
    ]
    weights = {"W": fed.twins(32, 8)[None], "R": fed.twins(32, 8)[None], "one": np.array([1]), "both": np.array([1, 2])}
    state: tuple[int, fed.Dims] = (FLOAT, [1, 1, 8])
    model = fed.assembled(
        nodes,
        {"x": (FLOAT, ["sequence_length", 16]), "h": state, "c": state},
        {"y": (FLOAT, ["sequence_length", 8]), "hn": (FLOAT, [1, 1, 8]), "cn": (FLOAT, [1, 1, 8])},
        stored | weights,
    )
    carry = ["hn=h", "cn=c"]
    result = shrink(model, sequences(20), width=0.5, multiple=1, refine=0, threads=1, carry=carry, exclude="second")
    assert result.report.latency.batch == 1
    assert result.report.agreement.error < 1e-3


REFUSED: dict[str, tuple[Any, str]] = {
    "no output": ("keep=memory", "--carry names 'keep', which is no output: the model has `kept`, `y`"),
    "no input": ("kept=state", "--carry names 'state', which is no input: the model has `memory`, `x`"),
    "no pair": ("kept", "--carry kept is not understood: write an output and its input, as in stateN=state"),
    "twice": (
        ["kept=memory", "y=memory"],
        "--carry y=memory is not understood: write an output and its input, as in stateN=state",
    ),
    "another shape": ("y=x", "--carry: 'y' has shape (1, 8), 'x' takes (?, 16)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_is_refused_in_one_line(case: str) -> None:
    carry, line = REFUSED[case]
    data = {"memory": np.zeros((9, 8), np.float32)} if case == "another shape" else sequences()
    with pytest.raises(InputError) as caught:
        shrink(fed.running_mean(), data, width=0.5, threads=1, carry=carry)
    assert str(caught.value) == line


def test_an_open_size_needs_a_first_value() -> None:
    model = fed.running_mean(memory=("batch", "any"))
    with pytest.raises(
        InputError, match=r"^--carry: input 'memory' has open sizes: give its first value with --constant"
    ):
        shrink(model, sequences(), width=0.5, threads=1, carry="kept=memory")
    shrink(model, sequences(), width=0.5, threads=1, carry="kept=memory", constant={"memory": np.zeros((1, 8))})


def test_batches_that_are_fixed_have_no_steps() -> None:
    model = fed.running_mean((4, 16), (4, 8))
    with pytest.raises(InputError, match="--carry feeds one sample at a time"):
        shrink(model, fed.samples(), width=0.5, threads=1, carry="kept=memory")
