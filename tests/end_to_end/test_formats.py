"""Data as users have it: folders of images, tables, texts, several inputs; each ends as what the model takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.models import MODELS, Array
from pcns_onnx import InputError, inspect
from pcns_onnx.cli.main import main
from pcns_onnx.data.dataset import open_data
from pcns_onnx.data.formats.preprocess import Preprocess
from pcns_onnx.graph import TensorSpec

FLOAT = np.dtype(np.float32)
IMAGES = (TensorSpec("x", FLOAT, (None, 3, 8, 8)),)


def gathered(
    source: Path, inputs: Sequence[TensorSpec], said: str | None = None, size: int = 3
) -> tuple[dict[str, Array], Array | None]:
    """All samples of a source, from two passes that have to agree."""
    data = open_data(source, inputs, preprocess=None if said is None else Preprocess.parse(said))
    passes = [list(data.batches(n)) for n in (size, 1000)]
    feeds = [{s.name: np.concatenate([b.feeds[s.name] for b in batches]) for s in inputs} for batches in passes]
    for spec in inputs:
        np.testing.assert_array_equal(feeds[0][spec.name], feeds[1][spec.name])
        assert feeds[0][spec.name].dtype == spec.dtype
    labels = [batch.labels for batch in passes[0] if batch.labels is not None]
    return feeds[0], np.concatenate(labels) if labels else None


def test_what_preprocess_says() -> None:
    said = Preprocess.parse("resize=256,crop=224x192,mean=0.485,0.456,0.406,std=0.229,0.224,0.225,layout=nhwc")
    assert (said.resize, said.crop, said.layout) == (256, (224, 192), "NHWC")
    assert said.normalize is not None and said.normalize.std == (0.229, 0.224, 0.225)
    assert Preprocess.parse("tokenizer=a,b.json,length=16").tokenizer == "a,b.json"


@pytest.mark.parametrize("said", ["256", "resize=big", "crop=0", "layout=HWC", "mean=x", "channels=CMYK", "length=-1"])
def test_what_it_cannot_say(said: str) -> None:
    with pytest.raises(InputError):
        Preprocess.parse(said)


# -- images ------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Array]:
    """Seven 12 x 10 PNGs in folders of two classes, and their pixels (7, 12, 10, 3) in the order of the classes."""
    image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (7, 12, 10, 3), dtype=np.uint8)
    for i, values in enumerate(pixels):
        folder = tmp_path / "photos" / ("cat" if i < 4 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(values).save(folder / f"{i}.png")
    return tmp_path / "photos", pixels


def test_folders_are_classes_and_pixels_are_as_said(pictures: tuple[Path, Array]) -> None:
    folder, pixels = pictures
    feeds, labels = gathered(folder, IMAGES, "crop=8,mean=0.5,0.4,0.3,std=0.2,0.3,0.4")
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    want = ((pixels[:, 2:10, 1:9] / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(feeds["x"], want, atol=1e-5)
    assert labels is not None and labels.tolist() == [0] * 4 + [1] * 3


def test_layout_channels_and_a_flat_folder(pictures: tuple[Path, Array]) -> None:
    folder, pixels = pictures
    inputs = (TensorSpec("x", np.dtype(np.uint8), (None, 12, 10, 3)),)
    feeds, labels = gathered(folder / "cat", inputs, "layout=NHWC,channels=BGR")
    np.testing.assert_array_equal(feeds["x"], pixels[:4, ..., ::-1])
    assert labels is None
    grey, _ = gathered(folder, (TensorSpec("x", FLOAT, (None, 1, 12, 10)),), "channels=L,mean=0")
    assert grey["x"].shape == (7, 1, 12, 10) and 0 <= grey["x"].min() < grey["x"].max() <= 1


def test_resizing_keeps_the_shape_of_the_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 32, 3))
    image.fromarray(ramp).save(tmp_path / "ramp.png")
    feeds, _ = gathered(tmp_path, (TensorSpec("x", FLOAT, (None, 3, 32, 16)),), "resize=16,mean=0")
    np.testing.assert_allclose(feeds["x"][0, 0, 2:-2, 3], np.linspace(0, 1, 64).reshape(32, 2).mean(1)[2:-2], atol=0.01)


@pytest.mark.parametrize(
    ("said", "message"),
    [("crop=20", "give a larger resize"), (None, "--normalize|shape"), ("resize=8,mean=0", r"reshape it|shape")],
)
def test_pictures_that_do_not_fit(pictures: tuple[Path, Array], said: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gathered(pictures[0], IMAGES, said)


def test_a_broken_picture_is_named(pictures: tuple[Path, Array]) -> None:
    (pictures[0] / "dog" / "5.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"5\.png cannot be read as an image"):
        gathered(pictures[0], IMAGES, "crop=8,mean=0")


# -- tables ------------------------------------------------------------------------------------


def write(table: Any, path: Path) -> None:
    """A pyarrow table as .parquet, as an Arrow file, or as the stream that Hugging Face writes."""
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=4)
        return
    ipc = pytest.importorskip("pyarrow.ipc")
    kind = ipc.new_stream if path.stem.startswith("data") else ipc.new_file
    with kind(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "data-00000-of-00001.arrow"])
def test_columns_feed_the_inputs_of_their_names(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    arrow = pytest.importorskip("pyarrow")
    a, b = rng.standard_normal((11, 5)).astype(np.float32), rng.integers(0, 9, (11, 2, 3))
    table = arrow.table({"a": a.tolist(), "b": b.tolist(), "label": list(range(11)), "other": ["?"] * 11})
    write(table, tmp_path / name)
    inputs = (TensorSpec("a", FLOAT, (None, 5)), TensorSpec("b", np.dtype(np.int32), (None, 2, 3)))
    feeds, labels = gathered(tmp_path / name, inputs)
    np.testing.assert_allclose(feeds["a"], a)
    np.testing.assert_array_equal(feeds["b"], b)
    assert labels is not None and labels.tolist() == list(range(11))


def test_a_folder_as_hugging_face_saves_it(pictures: tuple[Path, Array], tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    image = pytest.importorskip("PIL.Image")
    rows = []
    for values in pictures[1]:
        buffer = io.BytesIO()
        image.fromarray(values).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    saved = tmp_path / "saved"
    saved.mkdir()
    for part, (start, stop) in {"00001": (4, 7), "00000": (0, 4)}.items():
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        columns = {"image": arrow.array(rows[start:stop], kind), "label": list(range(start, stop))}
        write(arrow.table(columns), saved / f"data-{part}-of-00002.arrow")
    (saved / "dataset_info.json").write_text("{}")
    names = ", ".join(f'{{"filename": "data-{part}-of-00002.arrow"}}' for part in ("00000", "00001"))
    (saved / "state.json").write_text(f'{{"_data_files": [{names}]}}')
    feeds, labels = gathered(saved, IMAGES, "crop=8,mean=0")
    np.testing.assert_allclose(feeds["x"], pictures[1][:, 2:10, 1:9].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    assert labels is not None and labels.tolist() == list(range(7))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["saved"]}')
    with pytest.raises(InputError, match=r"several splits.*saved"):
        gathered(tmp_path, IMAGES)


@pytest.mark.parametrize(
    ("column", "message"),
    [([[1.0, 2.0], [1.0]], "several lengths"), ([[1.0, 2.0], None], "without a value"), (["a", "b"], "no numbers")],
)
def test_tables_that_are_no_arrays(column: list[Any], message: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    write(arrow.table({"x": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        gathered(tmp_path / "t.parquet", (TensorSpec("x", FLOAT, (None, 2)),))


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("t.parquet", "t.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 no table")
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            gathered(tmp_path / name, IMAGES)


# -- texts -------------------------------------------------------------------------------------

TOKENS = (TensorSpec("input_ids", np.dtype(np.int64), (None, None)),
          TensorSpec("attention_mask", np.dtype(np.int64), (None, None)))  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Splits at blanks and knows five words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "the", "cat", "sat", "[PAD]", "down"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_texts_become_ids_and_masks(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the cat sat down\n\nthe dog\n")
    feeds, _ = gathered(tmp_path / "texts.txt", TOKENS, f"tokenizer={tokenizer},length=3")
    assert feeds["input_ids"].tolist() == [[1, 2, 3], [1, 0, 4]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_texts_of_a_table_with_labels(tokenizer: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    columns = {"id": ["a", "b"], "sentence": ["the cat", "sat"], "label": [1, 0]}
    write(arrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="text=NAME"):
        gathered(tmp_path / "t.parquet", TOKENS, f"tokenizer={tokenizer},length=3")
    feeds, labels = gathered(tmp_path / "t.parquet", TOKENS, f"tokenizer={tokenizer},length=3,text=sentence")
    assert feeds["input_ids"].tolist() == [[1, 2, 4], [3, 4, 4]]
    assert labels is not None and labels.tolist() == [1, 0]


def test_texts_for_a_model_that_takes_none(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the cat\n")
    with pytest.raises(InputError, match="tokens go to input_ids"):
        gathered(tmp_path / "texts.txt", IMAGES, f"tokenizer={tokenizer}")
    with pytest.raises(InputError, match="need a tokenizer"):
        gathered(tmp_path / "texts.txt", TOKENS)


def test_a_tokenizer_near_the_model_is_found(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the cat\nsat down the cat\n")
    near = [tmp_path / "nothing", tokenizer.parent]
    data = open_data(tmp_path / "texts.txt", TOKENS, preprocess=replace(Preprocess.parse("length=auto"), near=near))
    (batch,) = data.batches(8)
    assert batch.feeds["input_ids"].tolist() == [[1, 2, 4, 4], [3, 5, 1, 2]]
    assert data.notes == (f"texts are tokenised by {tokenizer}",)
    with pytest.raises(InputError, match=r"there is none in .*nothing"):
        open_data(tmp_path / "texts.txt", TOKENS, preprocess=Preprocess(near=near[:1]))


def test_inspect_looks_near_the_model_as_well(tokenizer: Path, tmp_path: Path) -> None:
    weights = {
        "table": np.eye(6, 4, dtype=np.float32),
        "w": np.ones((4, 4), np.float32),
        "v": np.ones((4, 2), np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "S"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "S", 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    (tmp_path / "texts.txt").write_text("the cat sat\n" * 4)
    found = inspect(tmp_path / "m.onnx", tmp_path / "texts.txt", preprocess="length=auto")
    assert f"texts are tokenised by {tokenizer}" in found.warnings


def test_preprocessing_of_arrays_is_refused_whatever_it_says(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--preprocess is for files"):
        open_data(np.zeros((2, 3, 8, 8), np.float32), IMAGES, preprocess=Preprocess.parse("layout=NCHW"))


def test_paragraphs_are_texts_too(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\nthe cat\nsat down\n\n \nthe dog\n")
    feeds, _ = gathered(tmp_path / "texts.txt", TOKENS, f"tokenizer={tokenizer},length=auto,split=paragraphs")
    assert feeds["input_ids"].tolist() == [[1, 2, 3, 5], [1, 0, 4, 4]]


def test_a_length_that_the_model_fixes_holds(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the cat\n")
    fixed = [TensorSpec(spec.name, spec.dtype, (None, 3)) for spec in TOKENS]
    feeds, _ = gathered(tmp_path / "texts.txt", fixed, f"tokenizer={tokenizer},length=auto")
    assert feeds["input_ids"].tolist() == [[1, 2, 4]]


@pytest.mark.parametrize(
    ("direction", "ids", "places"), [("right", [1, 2, 4], [0, 1, 1]), ("left", [4, 1, 2], [0, 0, 1])]
)
def test_places_count_from_the_first_token(
    tokenizer: Path, tmp_path: Path, direction: str, ids: list[int], places: list[int]
) -> None:
    made = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tokenizer))
    made.enable_padding(direction=direction, pad_id=4)
    made.save(str(tokenizer))
    (tmp_path / "texts.txt").write_text("the cat\n")
    inputs = [TensorSpec(name, np.dtype(np.int64), (None, None)) for name in ("input_ids", "position_ids")]
    feeds, _ = gathered(tmp_path / "texts.txt", inputs, f"tokenizer={tokenizer},length=3")
    assert feeds["input_ids"].tolist() == [ids]
    assert feeds["position_ids"].tolist() == [places]


# -- the command -------------------------------------------------------------------------------


def test_shrink_takes_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    with np.load(MODELS / "digits_images.npz") as file:
        x, labels = file["input"][:120], file["labels"][:120]
    for i, (pixels, label) in enumerate(zip(x, labels, strict=True)):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.round(255 * pixels[0] / x.max()).astype(np.uint8)).save(folder / f"{i}.png")
    said = ["--data", str(tmp_path / "digits"), "--preprocess", f"channels=L,std={1 / float(x.max())}"]
    said += ["--width", "0.75", "--refine", "0", "--threads", "1", "-o", str(tmp_path / "small.onnx")]
    assert main(["shrink", str(MODELS / "digits_cnn.onnx"), *said]) == 0
    shown = capsys.readouterr().out
    accuracy = float(next(line for line in shown.splitlines() if line.startswith("accuracy")).split()[2])
    assert accuracy > 90
