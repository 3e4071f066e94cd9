"""What padding is, and whether it may be cut off, is what the model does with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from builders.fed import INT64
from builders.padded import C, Encoder, sentences
from pcns_onnx.data.dataset import Dataset, Feeding, open_data
from pcns_onnx.data.padding import PositionAxes
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.padding import PaddingProof, find_padding, find_places, shared_padding

ENGINE = Engine(threads=1)


def opened(encoder: Encoder, data: Any) -> tuple[Graph, Dataset]:
    graph = Graph.load(encoder.model)
    return graph, open_data(data, graph.inputs, feeding=Feeding(graph.layout))


def found(encoder: Encoder, *, left: bool = False, named: str | None = None, width: int = 20) -> PaddingProof:
    data = sentences(40, width, encoder.dtype, left=left, name=encoder.name)
    if encoder.table:
        data["table_of_places"] = np.random.default_rng(0).standard_normal((width, C)).astype(np.float32)
    return find_padding(ENGINE, *opened(encoder, data), named)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", [INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT, TensorProto.FLOAT16])
def test_padding_on_either_side_is_cut_off(kind: int, left: bool) -> None:
    padding = found(Encoder(dtype=kind), left=left).padding
    assert padding is not None and (padding.left, padding.right) == (left, not left)
    assert padding.places == {"states": PositionAxes(0, 1), "embedding": None}


def test_of_a_fixed_length_nothing_is_cut_off() -> None:
    result = found(Encoder(positions=20))
    assert result.padding is not None and not result.padding.cuts and "not cut off" not in str(result.note)


@pytest.mark.parametrize(
    ("encoder", "output"),
    [(Encoder(attends=True), "states"), (Encoder(all=True), "embedding")],
    ids=["attended to", "averaged"],
)
def test_masked_tokens_that_matter_count(encoder: Encoder, output: str) -> None:
    result = found(encoder)
    assert result.padding is None
    counts = f"output '{output}' changes with what 'attention_mask' masks"
    assert result.note == f"padding counts like all else, since {counts}"
    with pytest.raises(InputError, match=r"^--mask 'attention_mask' cannot be used: output '.*' changes with what"):
        found(encoder, named="attention_mask")


@pytest.mark.parametrize("encoder", [Encoder(loop=True), Encoder(places=True)], ids=["loop", "counted from the left"])
def test_positions_that_are_counted_from_a_padded_end_are_not_cut_off(encoder: Encoder) -> None:
    result = found(encoder, left=True)
    assert result.padding is not None and not result.padding.left
    assert "it is not cut off, since output 'states' changes" in str(result.note)
    right = found(encoder).padding
    assert right is not None and right.right == (not encoder.loop)


@pytest.mark.parametrize("left", [False, True])
def test_what_is_fed_by_position_to_all_samples_is_cut_with_them(left: bool) -> None:
    padding = found(Encoder(table=True), left=left).padding
    assert padding is not None and padding.cuts
    cut = padding.cut(padding.pair[0]).feeds
    assert len(cut["table_of_places"]) == cut["input_ids"].shape[1] < 20


def test_rows_behind_a_reshape_are_followed() -> None:
    encoder = Encoder(flat=True, outputs=("tokens", "embedding"))
    graph, dataset = opened(encoder, sentences(40, 20))
    padding = find_padding(ENGINE, graph, dataset).padding
    assert padding is not None and padding.places["tokens"] == PositionAxes(0, None)
    find_places(ENGINE, graph, padding, ["e", "q2", "k2", "u2", "c", "table"])
    places = [padding.places[name] for name in ("e", "q2", "k2", "u2", "c", "table")]
    assert places == [
        PositionAxes(0, 1),
        PositionAxes(0, 2),
        PositionAxes(0, 3),
        PositionAxes(0, None),
        PositionAxes(0, 1),
        None,
    ]


@pytest.mark.parametrize("encoder", [Encoder(name="what_counts"), Encoder(name="not_a_Mask")])
def test_a_mask_goes_by_its_name(encoder: Encoder) -> None:
    is_called = "mask" in encoder.name.lower()
    assert (found(encoder).padding is not None) == is_called
    assert found(encoder, named=encoder.name).padding is not None


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("masks", "--mask names 'masks', which is no input: the model has "),
        ("input_ids", "--mask 'input_ids' holds other values than 0 and 1: name an input that says what counts"),
        ("table_of_places", "--mask 'table_of_places' is not of shape (samples, positions): name an input that is"),
    ],
)
def test_what_is_no_mask_is_refused_by_name(named: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        found(Encoder(table=True), named=named)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_without_padding_there_is_nothing_to_say() -> None:
    data = sentences(40, 20)
    data["attention_mask"][:] = 1
    assert find_padding(ENGINE, *opened(Encoder(), data)) == PaddingProof(None)


def test_masks_of_other_values_are_none() -> None:
    data = sentences(40, 20)
    data["attention_mask"] *= 2
    assert find_padding(ENGINE, *opened(Encoder(), data)) == PaddingProof(None)


def test_a_second_model_has_its_own_say() -> None:
    padding = found(Encoder()).padding
    assert padding is not None
    assert shared_padding(ENGINE, Graph.load(Encoder(attends=True).model), padding).padding is None
    alike = shared_padding(ENGINE, Graph.load(Encoder().model), padding).padding
    assert alike is not None and alike.right and alike.places == padding.places
    loops = shared_padding(ENGINE, Graph.load(Encoder(loop=True).model), padding).padding
    assert loops is not None and not loops.cuts


def test_samples_that_cannot_be_run_are_no_matter_of_padding() -> None:
    """The error comes up where the model is needed."""
    data = sentences(40, 20)
    graph, dataset = opened(Encoder(), data)
    broken = {name: array.copy() for name, array in data.items()}
    broken["input_ids"][:] = 10**6
    assert find_padding(ENGINE, graph, opened(Encoder(), broken)[1]) == PaddingProof(None)
    assert find_padding(ENGINE, graph, dataset).padding is not None
