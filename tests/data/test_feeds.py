"""Data as programs hold it: tensors, loaders, readers and datasets of other libraries, known by what they can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pcns_onnx.data.dataset import Dataset, open_data
from pcns_onnx.errors import InputError
from pcns_onnx.graph import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
IMAGE = TensorSpec("image", np.dtype(np.float32), (None, 3, 2, 2), ("batch", "", "", ""))
AGE = TensorSpec("age", np.dtype(np.int64), (None,), ("batch",))
ROWS = 12


def images() -> Array:
    return np.random.default_rng(0).standard_normal((ROWS, 3, 2, 2)).astype(np.float32)


LABELS = np.arange(ROWS) % 5


class Tensor:
    """A tensor that needs a gradient, on another device: NumPy takes it only after `detach` and `cpu`."""

    def __init__(self, array: Any, *, detached: bool = False, here: bool = False) -> None:
        self.array, self.detached, self.here = np.asarray(array), detached, here
        self.dtype = f"torch.{self.array.dtype}"

    def detach(self) -> Tensor:
        return Tensor(self.array, detached=True, here=self.here)

    def cpu(self) -> Tensor:
        return Tensor(self.array, detached=self.detached, here=True)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        if not (self.detached and self.here):
            raise RuntimeError("call .detach().cpu() first")
        return self.array


class Packed:
    """What can only hand itself over by DLPack."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **keywords: Any) -> Any:
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Items:
    """A map-style dataset: (x, y) by number, and no iterator."""

    def __getitem__(self, at: int) -> tuple[Array, int]:
        return images()[at], int(LABELS[at])

    def __len__(self) -> int:
        return ROWS


class Loader:
    """A `DataLoader` that shuffles: another order in every pass."""

    def __init__(self) -> None:
        self.dataset, self.batch_sampler, self.passes = Items(), object(), 0

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.passes += 1
        order = np.random.default_rng(self.passes).permutation(ROWS)
        for rows in np.array_split(order, 3):
            yield [Tensor(images()[rows]), Tensor(LABELS[rows])]


class Reader:
    """A `CalibrationDataReader` by its one method."""

    def __init__(self) -> None:
        self._rows = iter(images())

    def get_next(self) -> dict[str, Array] | None:
        row = next(self._rows, None)
        return None if row is None else {"image": row[None]}


class Encoding:
    """A mapping that is none by name, as tokenizers return it."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def keys(self) -> Any:
        return self._values.keys()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]


SOURCES: dict[str, tuple[Callable[[], Any], bool]] = {
    "a tensor": (lambda: Tensor(images()), False),
    "a tensor by DLPack": (lambda: Packed(images()), False),
    "a mapping of tensors": (lambda: {"image": Tensor(images()), "labels": Tensor(LABELS)}, True),
    "x and y": (lambda: (images(), LABELS), True),
    "x alone": (lambda: (images(),), False),
    "a list of arrays": (lambda: list(np.array_split(images(), 4)), False),
    "a list of samples": (lambda: list(images()), False),
    "a list of pairs": (lambda: list(zip(images(), LABELS, strict=True)), True),
    "a tuple of mappings": (lambda: tuple({"image": row} for row in images()), False),
    "mappings with labels behind": (lambda: [({"image": images()}, LABELS)], True),
    "lists of numbers": (lambda: [{"image": row.tolist()} for row in images()], False),
    "rows with a label": (
        lambda: [{"image": row, "label": int(n)} for row, n in zip(images(), LABELS, strict=True)],
        True,
    ),
    "what is like a mapping": (lambda: [Encoding(image=images())], False),
    "a map-style dataset": (Items, True),
    "a reader": (Reader, False),
    "a function that returns a reader": (lambda: Reader, False),
    "a function that returns one mapping": (lambda: lambda: {"image": images()}, False),
}


def whole(data: Dataset) -> tuple[Array, Array | None]:
    batches = list(data.batches(5))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return np.concatenate([b.feeds["image"] for b in batches]), np.concatenate(labels) if labels else None


@pytest.mark.parametrize("kind", SOURCES)
def test_data_is_taken_as_programs_hold_it(kind: str) -> None:
    make, has_labels = SOURCES[kind]
    data = open_data(make(), [IMAGE])
    for _ in range(2):
        values, labels = whole(data)
        np.testing.assert_array_equal(values, images())
        assert (labels is not None) is has_labels is data.has_labels
        if labels is not None:
            np.testing.assert_array_equal(labels, LABELS)


def test_a_loader_that_shuffles_is_gone_through_once() -> None:
    loader = Loader()
    data = open_data(loader, [IMAGE])
    first, second = whole(data), whole(data)
    assert loader.passes == 1
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] is not None and sorted(first[1]) == sorted(LABELS)


def test_arrays_without_names_go_to_the_inputs_in_order() -> None:
    ages = np.arange(ROWS)
    for source in ((images(), ages), [(images(), ages)], [[images(), ages]], (images(), ages, LABELS)):
        (batch,) = open_data(source, [IMAGE, AGE]).batches(ROWS)
        np.testing.assert_array_equal(batch.feeds["age"], ages)
        assert (batch.labels is not None) is (len(source) == 3)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ([3], "data: feed 0 is a int: give a mapping of input names to arrays, or arrays in the order of the inputs"),
        (
            [(images(), LABELS, LABELS)],
            "data: feed 0 holds 3 arrays, the model takes `image`: give one for each, by name",
        ),
        (7, "data cannot be a int: give a path, an array, a mapping or feeds"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(source: Any, line: str) -> None:
    with pytest.raises(InputError) as caught:
        whole(open_data(source, [IMAGE]))
    assert str(caught.value) == line
