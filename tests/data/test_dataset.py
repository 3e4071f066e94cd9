"""Every source streams the same samples, splits partition them, and bad data is refused in one clear line."""

from __future__ import annotations

import gc
import io
import itertools
import math
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pcns_onnx.data.batch import Batch
from pcns_onnx.data.conform import Normalize
from pcns_onnx.data.dataset import Dataset, open_data, split
from pcns_onnx.errors import InputError
from pcns_onnx.graph import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]

F32 = np.dtype(np.float32)
IMAGE = TensorSpec("image", F32, (None, 3, 2, 2))
TOKENS = TensorSpec("tokens", np.dtype(np.int64), (None, None))
ROWS = 23


def images(count: int = ROWS) -> Array:
    """`count` images; the first value of each is its index."""
    values = np.random.default_rng(0).standard_normal((count, 3, 2, 2)).astype(np.float32)
    values[:, 0, 0, 0] = np.arange(count)
    return values


def whole(data: Dataset, size: int = 5) -> Batch:
    """One pass put together again, checked for the promises of every batch."""
    batches = list(data.batches(size))
    assert all(batch.size == size for batch in batches[:-1])
    for batch in batches:
        arrays = [*batch.feeds.values(), *([] if batch.labels is None else [batch.labels])]
        assert {len(array) for array in arrays} == {batch.size}
        assert all(array.flags.c_contiguous for array in arrays)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Batch(
        {name: np.concatenate([batch.feeds[name] for batch in batches]) for name in batches[0].feeds},
        np.concatenate(labels) if labels else None,
        sum(batch.size for batch in batches),
    )


def indices(data: Dataset, size: int = 5) -> list[int]:
    """Which samples of `images()` a dataset streams."""
    return [int(index) for index in whole(data, size).feeds["image"][:, 0, 0, 0]]


def counting(count: int | None) -> Iterator[dict[str, Array]]:
    """Feeds of one image each, endless for None."""
    for index in itertools.count() if count is None else range(count):
        yield {"image": np.full((1, 3, 2, 2), index, np.float32)}


def feeds_of(image: Array, labels: Array) -> list[dict[str, Array]]:
    cuts = [0, 4, 5, 16, len(image)]
    return [{"image": image[a:b], "labels": labels[a:b]} for a, b in itertools.pairwise(cuts)]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths, so that messages are the same on every machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])


# --- sources


def as_npz(image: Array, labels: Array) -> Any:
    np.savez("d.npz", image=image, labels=labels)
    return "d.npz"


def as_compressed_npz(image: Array, labels: Array) -> Any:
    np.savez_compressed("d.npz", image=image, labels=labels)
    return Path("d.npz")


def as_folder_of_npz(image: Array, labels: Array) -> Any:
    Path("d").mkdir()
    for index, feed in enumerate(feeds_of(image, labels)):
        np.savez(f"d/{index}.npz", **feed)  # type: ignore[arg-type]
    Path("d/readme.txt").write_text("not data")
    return "d"


def as_folder_of_columns(image: Array, labels: Array) -> Any:
    Path("d").mkdir()
    np.save("d/image.npy", image)
    np.save("d/labels.npy", labels)
    return "d"


def as_module(image: Array, labels: Array) -> Any:
    np.savez("d.npz", image=image, labels=labels)
    Path("calibration_source.py").write_text(
        "import numpy as np\n"
        "def feeds():\n"
        "    with np.load('d.npz') as d:\n"
        "        for i in range(0, len(d['labels']), 7):\n"
        "            yield {name: d[name][i : i + 7] for name in d}\n"
    )
    return "calibration_source:feeds"


LABELLED: dict[str, tuple[Callable[[Array, Array], Any], bool]] = {
    "npz": (as_npz, True),
    "compressed npz": (as_compressed_npz, True),
    "folder of npz": (as_folder_of_npz, True),
    "folder of columns": (as_folder_of_columns, True),
    "mapping": (lambda image, labels: {"image": image, "labels": labels}, True),
    "list of feeds": (feeds_of, False),
    "callable": (lambda image, labels: lambda: iter(feeds_of(image, labels)), False),
    "iterator": (lambda image, labels: iter(feeds_of(image, labels)), False),
    "module:function": (as_module, False),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_every_source_streams_the_same_samples_in_every_pass(kind: str) -> None:
    make, counted = LABELLED[kind]
    labels = np.arange(ROWS) % 10
    data = open_data(make(images(), labels), [IMAGE])
    assert data.has_labels
    assert data.count == (ROWS if counted else None)
    for size in (5, 1, 100, 5):
        got = whole(data, size)
        np.testing.assert_array_equal(got.feeds["image"], images())
        np.testing.assert_array_equal(got.labels, labels)
        assert got.feeds["image"].dtype == F32
        assert data.count == got.size == ROWS


def test_a_lone_array_feeds_the_only_input(tmp_path: Path) -> None:
    np.save("d.npy", images())
    (tmp_path / "shards").mkdir()
    np.save("shards/a.npy", images()[:9])
    np.save("shards/b.npy", np.asfortranarray(images()[9:]))
    for source in ("d.npy", "shards", images(), np.load("d.npy", mmap_mode="r")):
        data = open_data(source, [IMAGE])
        assert (data.count, data.has_labels) == (ROWS, False)
        np.testing.assert_array_equal(whole(data).feeds["image"], images())


def test_names_may_hold_slashes_and_other_arrays_are_recorded() -> None:
    arrays: dict[str, Any] = {"in/put:0": images(4), "id/x": np.array(["a"] * 4), "junk": np.array([{}])}
    np.savez("d.npz", **arrays)
    sources: list[Any] = ["d.npz", arrays, [arrays], iter([arrays])]
    for source in sources:
        data = open_data(source, [TensorSpec("in/put:0", F32, (None, 3, 2, 2))])
        assert data.ignored == ("id/x", "junk")
        np.testing.assert_array_equal(whole(data).feeds["in/put:0"], images(4))


def test_labels_is_a_feed_where_the_model_has_such_an_input() -> None:
    values = np.ones((4, 2), np.float32)
    data = open_data({"labels": values}, [TensorSpec("labels", F32, (None, 2))])
    assert not data.has_labels
    assert whole(data).labels is None
    np.testing.assert_array_equal(whole(data).feeds["labels"], values)


def test_several_inputs_stay_in_step() -> None:
    tokens = np.arange(ROWS * 4).reshape(ROWS, 4)
    np.savez("d.npz", tokens=tokens, image=images())
    got = whole(open_data("d.npz", [IMAGE, TOKENS]), 6)
    assert list(got.feeds) == ["image", "tokens"]
    np.testing.assert_array_equal(got.feeds["tokens"], tokens)


shapes = st.tuples(st.integers(1, 12), st.integers(0, 3), st.integers(1, 5))
dtypes = st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", "<i8", ">i2", "|b1"])


@settings(deadline=None, max_examples=60)
@given(
    shapes,
    dtypes,
    st.booleans(),
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.integers(1, 13),
)
def test_streaming_equals_np_load(
    shape: tuple[int, ...], code: str, fortran: bool, deflate: bool, version: tuple[int, int], size: int
) -> None:
    stored = np.dtype(code)
    values = (np.arange(math.prod(shape)) % 120).reshape(shape).astype(stored)
    spec = TensorSpec("x", stored.newbyteorder("="), (None, None, None))
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/x.npy", "wb") as stream:
            array = np.asfortranarray(values) if fortran else values
            np.lib.format.write_array(stream, array, version)
        method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        with zipfile.ZipFile(f"{folder}/d.npz", "w", method) as archive:
            archive.write(f"{folder}/x.npy", "x.npy")
        for name in ("x.npy", "d.npz"):
            got = whole(open_data(f"{folder}/{name}", [spec]), size).feeds["x"]
            assert got.dtype == spec.dtype
            np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_is_bounded_by_the_batch(save: Callable[..., None]) -> None:
    save("d.npz", x=np.zeros((5000, 1000), np.float32))  # 20 MB
    data = open_data("d.npz", [TensorSpec("x", F32, (None, 1000))])
    tracemalloc.start()
    try:
        parts = split(data, holdout=0.1, seed=0)
        for part in parts:
            assert part is not None
            for _ in part.batches(64):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


def test_a_large_batch_is_read_in_pieces() -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 1 << 20), np.uint8)
    np.savez("d.npz", x=values)
    data = open_data("d.npz", [TensorSpec("x", values.dtype, (None, 1 << 20))])
    np.testing.assert_array_equal(whole(data, 3).feeds["x"], values)


# --- feeds


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20))
def test_rebatching_keeps_order_and_sizes(lengths: list[int], size: int) -> None:
    cuts = [0, *itertools.accumulate(lengths)]
    feeds = [{"image": images(cuts[-1])[a:b]} for a, b in itertools.pairwise(cuts)]
    for source in (feeds, iter(feeds)):
        assert indices(open_data(source, [IMAGE]), size) == list(range(cuts[-1]))


def test_a_batch_never_mixes_sequence_lengths() -> None:
    feeds = [{"tokens": np.zeros((rows, length), np.int64)} for rows, length in ((3, 7), (2, 7), (4, 9))]
    got = [batch.feeds["tokens"].shape for batch in open_data(feeds, [TOKENS]).batches(4)]
    assert got == [(4, 7), (1, 7), (4, 9)]


def test_an_iterator_is_kept_on_disk_while_its_dataset_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", "temp")
    data = open_data(counting(6), [IMAGE])
    for batch in data.batches(2):
        assert batch.size == 2
        break
    assert data.count is None
    both = zip(data.batches(1), data.batches(1), strict=True)
    assert [(int(a.feeds["image"].max()), int(b.feeds["image"].max())) for a, b in both] == [
        (index, index) for index in range(6)
    ]
    assert indices(data) == list(range(6))
    assert len(list(Path("temp").rglob("*.npy"))) == 6
    del data, batch
    gc.collect()
    assert not list(Path("temp").iterdir())


def test_an_iterator_that_failed_fails_in_later_passes_too() -> None:
    def broken() -> Iterator[dict[str, Array]]:
        yield from counting(3)
        raise KeyError("row 3\nis gone")

    data = open_data(broken(), [IMAGE])
    line = "data failed (KeyError: 'row 3\\nis gone'): it must yield mappings of input names to arrays"
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            whole(data, 1)
        assert str(caught.value) == line


def test_bfloat16_survives_a_spool() -> None:
    spec = TensorSpec("x", np.dtype(ml_dtypes.bfloat16), (None, 2))
    values = np.array([[1.5, -3], [2**-126, 3e38]], ml_dtypes.bfloat16)
    for source in ({"x": values}, iter([{"x": values}]), {"x": values.astype(np.float32)}):
        got = whole(open_data(source, [spec])).feeds["x"]
        assert got.dtype == spec.dtype
        np.testing.assert_array_equal(got.astype(np.float32), values.astype(np.float32))


def test_the_data_must_not_change_between_passes() -> None:
    lengths = iter([1, 4, 3])
    data = open_data(lambda: counting(next(lengths)), [IMAGE])
    assert indices(data) == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"^the data gave 4 samples and then 3: it must not change between passes$"):
        whole(data)


# --- conversion


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("f8", "f4"),
        ("f2", "f4"),
        (">f4", "f4"),
        ("f4", "f2"),
        ("i8", "i4"),
        ("u1", "i8"),
        ("i8", "u1"),
        ("?", "i8"),
    ],
)
def test_numbers_keep_their_value(have: str, want: str) -> None:
    values = np.array([[0, 1], [1, 100]]).astype(have)
    got = whole(open_data(values, [TensorSpec("x", np.dtype(want), (None, 2))])).feeds["x"]
    assert got.dtype == np.dtype(want)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_normalize_is_per_channel(name: str) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 2), np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    got = whole(open_data(pixels, [TensorSpec("image", dtype, IMAGE.shape)], normalize=Normalize(mean, std)))
    expected = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert got.feeds["image"].dtype == dtype
    tolerance = {"float32": 1e-6, "float64": 1e-14, "float16": 2e-3, "bfloat16": 2e-2}[name]
    np.testing.assert_allclose(got.feeds["image"].astype(np.float64), expected, rtol=tolerance, atol=tolerance)


def test_one_value_normalises_any_rank_and_leaves_other_inputs_alone() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(4, 3)
    source: dict[str, Any] = {
        "x": pixels,
        "tokens": np.ones((4, 5), np.uint8),
        "y": np.ones((4, 2), np.float32),
    }
    specs = [TensorSpec("x", F32, (None, 3)), TOKENS, TensorSpec("y", F32, (None, 2))]
    got = whole(open_data(source, specs, normalize=Normalize((0.5,), (0.25,)))).feeds
    np.testing.assert_allclose(got["x"], (pixels / 255 - 0.5) / 0.25, rtol=1e-6)
    assert got["tokens"].max() == got["y"].max() == 1


# --- splits


def parts_of(count: int, known: bool, **options: Any) -> tuple[list[int], list[int]]:
    """The sample indices that `split` keeps and holds out."""
    source: Any = images(count) if known else (lambda: counting(count))
    data = open_data(source, [IMAGE])
    kept, held = split(data, **options)
    return indices(kept), [] if held is None else indices(held, 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 80), st.floats(0.01, 0.5), st.integers(0, 2**40))
@example(2, 0.01, 0)
@example(3, 0.5, 0)
@example(50, 0.3, 1)
def test_split_partitions_a_known_count_exactly(count: int, holdout: float, seed: int) -> None:
    kept, held = parts_of(count, True, holdout=holdout, seed=seed)
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert sorted(kept + held) == list(range(count))
    assert max(1, math.floor(count * holdout)) <= len(held) <= math.ceil(count * holdout)
    assert (kept, held) == parts_of(count, True, holdout=holdout, seed=seed)


@pytest.mark.parametrize(("holdout", "block"), [(0.5, 2), (0.25, 4), (0.1, 10), (0.05, 20)])
def test_each_block_gives_one_sample_even_where_the_length_is_unknown(holdout: float, block: int) -> None:
    kept, held = parts_of(100, False, holdout=holdout, seed=3)
    assert sorted(kept + held) == list(range(100))
    assert [index // block for index in held] == list(range(100 // block))
    assert len({index % block for index in held}) > 1
    assert (kept, held) == parts_of(100, True, holdout=holdout, seed=3)
    assert held != parts_of(100, True, holdout=holdout, seed=4)[1]


def test_any_proportion_is_exact() -> None:
    assert len(parts_of(100, True, holdout=0.4, seed=0)[1]) == 40
    assert len(parts_of(100, True, holdout=0.3, seed=0)[1]) == 30


def test_nothing_is_held_out_of_one_sample_or_at_zero() -> None:
    assert split(open_data(images(1), [IMAGE]), holdout=0.5, seed=0)[1] is None
    data = open_data(images(), [IMAGE])
    assert split(data, holdout=0, seed=0) == (data, None)


@given(st.integers(1, 30), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_samples_is_a_seeded_subset_taken_before_the_holdout(samples: int, seed: int) -> None:
    data = open_data({"image": images(), "labels": np.arange(ROWS)}, [IMAGE])
    subset, _ = split(data, holdout=0, seed=seed, samples=samples)
    chosen = indices(subset)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == subset.count == min(samples, ROWS)
    np.testing.assert_array_equal(whole(subset).labels, chosen)
    kept, held = split(data, holdout=0.2, seed=seed, samples=samples)
    rest = [] if held is None else indices(held)
    assert sorted(indices(kept) + rest) == chosen
    assert kept.count == len(chosen) - len(rest)


def test_samples_is_the_start_of_what_has_no_known_end() -> None:
    data = open_data(counting(None), [IMAGE])
    subset, _ = split(data, holdout=0, seed=0, samples=7)
    assert subset.count is None
    assert indices(subset) == indices(subset, 2) == list(range(7))
    assert subset.count == 7
    kept, held = split(data, holdout=0.5, seed=0, samples=8)
    assert held is not None
    assert sorted(indices(kept) + indices(held)) == list(range(8))


def test_too_little_data_of_unknown_length_says_so() -> None:
    _, held = split(open_data(lambda: counting(2), [IMAGE]), holdout=0.01, seed=0)
    assert held is not None
    with pytest.raises(InputError, match=r"^the data has no samples: give more, or hold out a larger share$"):
        list(held.batches(4))


# --- refusals


def saved(**arrays: Any) -> str:
    np.savez("d.npz", **arrays)
    return "d.npz"


def saved_npy(array: Any, name: str = "d.npy") -> str:
    np.save(name, array)
    return name


def in_folder(folder: str = "d", **arrays: Any) -> str:
    Path(folder).mkdir()
    for name, array in arrays.items():
        np.save(f"{folder}/{name}.npy", array)
    return folder


def with_bytes(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


def member(content: bytes, name: str = "image.npy") -> str:
    """An `.npz` whose one member holds these bytes."""
    with zipfile.ZipFile("d.npz", "w") as archive:
        archive.writestr(name, content)
    return "d.npz"


def npy_bytes(array: Array, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def flipped() -> str:
    """An `.npz` with one bit wrong in the middle of its data."""
    content = bytearray(Path(saved(image=images(1000))).read_bytes())
    content[len(content) // 2] ^= 1
    return with_bytes("d.npz", bytes(content))


def poisoned(value: float, at: int) -> Array:
    values = images().astype(np.float64)
    values[at, 2, 1, 1] = value
    return values


def negative_shape() -> bytes:
    return npy_bytes(images(4)).replace(b"(4, 3, 2, 2), ", b"(4, -3, -2, 2)")


def endless_header() -> bytes:
    return npy_bytes(images(4)).replace(b"(4, 3, 2, 2)", b"(((((((((((")


BOTH = [IMAGE, TOKENS]
PIXELS = np.zeros((4, 3, 2, 2), np.uint8)
RGB = Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
GREY = Normalize((0.5,), (0.2,))
OBJECTS = np.array([None, {}], object)

Case = tuple[Callable[[], Any], list[TensorSpec], Normalize | None, str]
REFUSED: dict[str, Case] = {
    "no such file": (
        lambda: "nope.npz",
        [IMAGE],
        None,
        "nope.npz does not exist: give a file "
        "(.npz, .npy, .parquet, .arrow, .feather, .ipc, .txt), a folder, or module:function",
    ),
    "another format": (
        lambda: with_bytes("d.csv", b"1,2"),
        [IMAGE],
        None,
        "d.csv is none of .npz, .npy, .parquet, .arrow, .feather, .ipc, .txt: "
        "convert it, or name a module:function to read it",
    ),
    "empty folder": (
        in_folder,
        [IMAGE],
        None,
        "d holds no .npz or .npy files, no tables and no images: save the samples there",
    ),
    "not data": (
        lambda: 7,
        [IMAGE],
        None,
        "data cannot be a int: give a path, an array, a mapping or feeds",
    ),
    "no input": (
        lambda: saved(x=images(), y=images()),
        BOTH,
        None,
        "d.npz lacks `image`, `tokens`: it has `x`, `y`, the model takes `image`, `tokens`: "
        "name one array after each input",
    ),
    "another name": (
        lambda: saved(x=images()),
        [IMAGE],
        None,
        "d.npz lacks `image`: it has `x`, the model takes `image`: name one array after each input",
    ),
    "a name of two lines": (
        lambda: member(npy_bytes(images()), "x\ny.npy"),
        [IMAGE],
        None,
        "d.npz lacks `image`: it has `x y`, the model takes `image`: name one array after each input",
    ),
    "empty mapping": (
        dict,
        [IMAGE],
        None,
        "data lacks `image`: it has no arrays, the model takes `image`: name one array after each input",
    ),
    "one array for two inputs": (
        lambda: saved_npy(images()),
        BOTH,
        None,
        "d.npy is one array but the model takes `image`, `tokens`: give one per input, by name",
    ),
    "one column for two inputs": (
        lambda: in_folder(image=images()),
        BOTH,
        None,
        "d/image.npy is one array but the model takes `image`, `tokens`: give one per input, by name",
    ),
    "labels for shards": (
        lambda: in_folder(a=images(), labels=np.arange(ROWS)),
        [IMAGE],
        None,
        "d holds labels.npy for several files: name the files after the inputs (image.npy), "
        "or save each as .npz with its own `labels`",
    ),
    "rank": (
        lambda: images()[0],
        [IMAGE],
        None,
        "data: `image` has shape (3, 2, 2) but the model takes (N, 3, 2, 2): reshape it",
    ),
    "size": (
        lambda: saved(image=images().transpose(0, 2, 3, 1)),
        [IMAGE],
        None,
        "d.npz: `image` has shape (23, 2, 2, 3) but the model takes (N, 3, 2, 2): reshape it",
    ),
    "dynamic size": (
        lambda: np.zeros(4, np.int64),
        [TOKENS],
        None,
        "data: `tokens` has shape (4,) but the model takes (N, ?): reshape it",
    ),
    "scalar": (
        lambda: saved_npy(np.float32(1)),
        [IMAGE],
        None,
        "d.npy: `image` is a single number: give it a leading sample axis",
    ),
    "no samples": (
        lambda: saved(image=images()[:0]),
        [IMAGE],
        None,
        "d.npz: `image` has no samples (shape (0, 3, 2, 2)): give at least one",
    ),
    "no feeds": (lambda: iter([]), [IMAGE], None, "the data has no samples: it yields no feeds"),
    "counts": (
        lambda: saved(image=images(), tokens=np.zeros((9, 4), int)),
        BOTH,
        None,
        "d.npz: `image` has 23 samples but d.npz: `tokens` has 9: every array needs one row per sample "
        "(--constant NAME=FILE for what all share, --batch-axis NAME=1 for another axis)",
    ),
    "label count": (
        lambda: in_folder(image=images(), labels=np.zeros(9, int)),
        [IMAGE],
        None,
        "d/image.npy has 23 samples but d/labels.npy has 9: every array needs one row per sample",
    ),
    "label dtype": (
        lambda: {"image": images(), "labels": np.zeros(ROWS)},
        [IMAGE],
        None,
        "data: `labels` holds float64: labels are class numbers, save them as integers",
    ),
    "labels in some": (
        lambda: [{"image": images(), "labels": np.zeros(ROWS, int)}, {"image": images()}],
        [IMAGE],
        None,
        "data: feed 1 lacks `labels`, unlike the data before: label all or none",
    ),
    "pickle in npz": (
        lambda: saved(image=OBJECTS),
        [IMAGE],
        None,
        "d.npz: `image` holds Python objects (a pickle, never loaded): save it as numbers",
    ),
    "pickle in npy": (
        lambda: saved_npy(OBJECTS),
        [IMAGE],
        None,
        "d.npy: `image` holds Python objects (a pickle, never loaded): save it as numbers",
    ),
    "objects in a feed": (
        lambda: iter([{"image": OBJECTS}]),
        [IMAGE],
        None,
        "data: feed 0: `image` holds Python objects (a pickle, never loaded): save it as numbers",
    ),
    "NaN": (
        lambda: saved(image=poisoned(np.nan, 17)),
        [IMAGE],
        None,
        "d.npz: `image` is NaN or Inf at sample 17: repair or drop that sample",
    ),
    "Inf": (
        lambda: [{"image": images()}, {"image": poisoned(-np.inf, 0)}],
        [IMAGE],
        None,
        "data: feed 1: `image` is NaN or Inf at sample 0: repair or drop that sample",
    ),
    "overflow": (
        lambda: poisoned(1e300, 22),
        [IMAGE],
        None,
        "data: `image` is too large for float32 at sample 22: repair or drop that sample",
    ),
    "integer range": (
        lambda: np.array([[0], [2**40], [5]]),
        [TensorSpec("x", np.dtype(np.int32), (None, 1))],
        None,
        "data: `x` is out of range for int32 at sample 1: repair or drop that sample",
    ),
    "pixels": (
        lambda: saved(image=PIXELS),
        [IMAGE],
        None,
        "d.npz: `image` holds uint8 but the model takes float32: "
        "pass --normalize MEAN STD (per channel, after /255), or convert the data",
    ),
    "integers for floats": (
        lambda: PIXELS.astype(int),
        [IMAGE],
        None,
        "data: `image` holds int64 but the model takes float32: convert the data to float32",
    ),
    "floats for integers": (
        lambda: np.zeros((4, 4)),
        [TOKENS],
        None,
        "data: `tokens` holds float64 but the model takes int64: convert the data to int64",
    ),
    "text": (
        lambda: np.array([["a"]]),
        [TOKENS],
        None,
        "data: `tokens` holds <U1 but the model takes int64: convert the data to int64",
    ),
    "nothing to normalise": (
        images,
        [IMAGE],
        RGB,
        "data has no uint8 pixels to normalise (`image` holds float32): drop --normalize, or give raw pixels",
    ),
    "other channels": (
        lambda: PIXELS[:, :1],
        [TensorSpec("image", F32, (None, 1, 2, 2))],
        RGB,
        "data: `image` has shape (4, 1, 2, 2) but --normalize has 3 values: "
        "give one per channel (axis 1), or a single one",
    ),
    "no channels": (
        lambda: PIXELS[:, :, 0, 0],
        [TensorSpec("x", F32, (None, 3))],
        RGB,
        "data: `x` has no channels in its shape (4, 3): give a single MEAN STD",
    ),
    "short npy": (
        lambda: with_bytes("d.npy", npy_bytes(images(4))[:-5]),
        [IMAGE],
        None,
        "d.npy: `image` is damaged: float32 of shape (4, 3, 2, 2) takes 320 bytes but the file has 315: "
        "write it again with np.save or np.savez",
    ),
    "short member": (
        lambda: member(npy_bytes(images(4))[:-5]),
        [IMAGE],
        None,
        "d.npz: `image` is damaged: float32 of shape (4, 3, 2, 2) takes 320 bytes but the file has 315: "
        "write it again with np.save or np.savez",
    ),
    "two arrays in one npy": (
        lambda: with_bytes("d.npy", npy_bytes(images(4)) * 2),
        [IMAGE],
        None,
        "d.npy: `image` is damaged: float32 of shape (4, 3, 2, 2) takes 320 bytes but the file has 640: "
        "write it again with np.save or np.savez",
    ),
    "a feed that is no mapping": (
        lambda: ["images"],
        [IMAGE],
        None,
        "data: feed 0 is a str: give a mapping of input names to arrays, or arrays in the order of the inputs",
    ),
    "no inputs": (images, [], None, "the model has no inputs: there is nothing to feed samples to"),
    "scalar input": (
        images,
        [TensorSpec("k", F32, ())],
        None,
        "data: `k` has shape (23, 3, 2, 2) but the model takes (): reshape it",
    ),
}


def refusal(make: Callable[[], Any], inputs: list[TensorSpec], normalize: Normalize | None) -> str:
    """The message with which opening or streaming this data is refused."""
    source = make()
    with pytest.raises(InputError) as caught:
        whole(open_data(source, inputs, normalize=normalize))
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("error")
def test_bad_data_is_refused_in_one_line(case: str) -> None:
    make, inputs, normalize, line = REFUSED[case]
    assert refusal(make, inputs, normalize) == line


UNREADABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "no zip": (lambda: with_bytes("d.npz", b"PK\3\4 no"), "d.npz cannot be read (BadZipFile: "),
    "empty file": (lambda: with_bytes("d.npy", b""), "d.npy: `image` cannot be read (ValueError: "),
    "truncated zip": (
        lambda: with_bytes("d.npz", Path(saved(image=images())).read_bytes()[:-200]),
        "d.npz cannot be read (BadZipFile: ",
    ),
    "wrong bit": (flipped, "d.npz: `image` cannot be read (BadZipFile: Bad CRC-32"),
    "no header": (lambda: member(b"nonsense"), "d.npz: `image` cannot be read (ValueError: "),
    "unknown version": (
        lambda: member(b"\x93NUMPY\x09\x00" + bytes(200)),
        "d.npz: `image` cannot be read (ValueError: unknown .npy version (9, 0)): ",
    ),
    "open header": (lambda: member(endless_header()), "d.npz: `image` cannot be read ("),
    "a folder with a file's name": (lambda: in_folder("d.npy"), "d.npy holds no .npz or .npy"),
    "a name too long": (lambda: "x" * 5000, "x"),
    "ragged rows": (
        lambda: [{"image": [[1.0], [2.0, 3.0]]}],
        "data: feed 0: `image` is no array (ValueError: ",
    ),
    "no module": (lambda: "no_such:f", "`no_such:f` cannot be imported (ModuleNotFoundError: No module"),
    "no function": (lambda: "math:f", "`math:f` cannot be imported (AttributeError: "),
    "no callable": (lambda: "math:pi", "`math:pi` is a float: name a function that yields feeds"),
    "no iterable": (lambda: lambda: 3, "`<lambda>` failed (TypeError: "),
    "no such argument": (lambda: "math:sqrt", "`math:sqrt` failed (TypeError: "),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_refused_in_one_line(case: str) -> None:
    make, start = UNREADABLE[case]
    line = refusal(make, [IMAGE], None)
    assert line.startswith(start)
    assert "\n" not in line


def test_a_header_of_nonsense_sizes_is_refused() -> None:
    spec = TensorSpec("image", F32, (None, None, None, 2))
    line = refusal(lambda: member(negative_shape()), [spec], None)
    assert line.startswith("d.npz: `image` ")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_damage_escapes_as_another_error(data: st.DataObject) -> None:
    """Whatever bytes are changed or cut, the samples come out right in number, or an InputError does."""
    stream = io.BytesIO()
    suffix = data.draw(st.sampled_from(["npz", "npy"]))
    if suffix == "npz":
        data.draw(st.sampled_from([np.savez, np.savez_compressed]))(stream, image=images(4))
    else:
        np.save(stream, images(4))
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"d.{suffix}")
        path.write_bytes(content)
        try:
            assert whole(open_data(path, [IMAGE])).size == 4
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("mean", "std", "line"),
    [
        ((), (), "normalize has 0 means and 0 stds: give one of each per channel, or a single one"),
        (
            (0, 0),
            (1, 1, 1),
            "normalize has 2 means and 3 stds: give one of each per channel, or a single one",
        ),
        ((0,), (0,), "normalize by mean (0,) and std (0,) is undefined: give finite means and positive stds"),
        (
            (math.nan,),
            (1,),
            "normalize by mean (nan,) and std (1,) is undefined: give finite means and positive stds",
        ),
        (
            (0,),
            (math.inf,),
            "normalize by mean (0,) and std (inf,) is undefined: give finite means and positive stds",
        ),
    ],
)
def test_a_normalize_that_means_nothing_is_refused(mean: tuple[float, ...], std: tuple[float, ...], line: str) -> None:
    with pytest.raises(InputError) as caught:
        Normalize(mean, std)
    assert str(caught.value) == line


def test_a_normalize_takes_numbers_lists_and_arrays() -> None:
    assert Normalize(0.5, [0.2]) == Normalize(np.array([0.5]), 0.2) == GREY  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^normalize's mean '0.5' is not understood: give numbers$"):
        Normalize("0.5", 0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"holdout": 0.6, "seed": 0}, "a holdout of 0.6 is impossible: give a share from 0 to 0.5"),
        ({"holdout": math.nan, "seed": 0}, "a holdout of nan is impossible: give a share from 0 to 0.5"),
        ({"holdout": 0.1, "seed": -1}, "a seed of -1 is impossible: give 0 or more"),
        ({"holdout": 0.1, "seed": 0, "samples": 0}, "0 samples are too few: give at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        split(open_data(images(), [IMAGE]), **options)
    assert str(caught.value) == line


def test_a_batch_holds_at_least_one_sample() -> None:
    with pytest.raises(InputError, match=r"^a batch of 0 samples is impossible: give a batch size of at least 1$"):
        open_data(images(), [IMAGE]).batches(0)
