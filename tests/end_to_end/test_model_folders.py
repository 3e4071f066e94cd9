"""Folders as optimum and sentence-transformers have them go in, and folders that load come out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from builders.models import MODELS
from pcns_onnx import InputError, compare, shrink
from pcns_onnx.cli.main import main

DIGITS = MODELS / "digits_cnn.onnx"
IMAGES = str(MODELS / "digits_images.npz")
QUICK = ["--data", IMAGES, "--width", "0.5", "--refine", "0", "--threads", "1"]
AROUND = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "1_Pooling/config.json": b"[1]",
    "2_Dense/model.safetensors": b"w",
}
WEIGHTS = {"model.safetensors": b"x", "pytorch_model.bin": b"y"}


def laid_out(root: Path, place: str, **more: bytes) -> Path:
    for name, content in {**AROUND, **WEIGHTS, ".git/HEAD": b"ref", **more}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / place).parent.mkdir(exist_ok=True)
    shutil.copy(DIGITS, root / place)
    return root


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx", "exported.onnx"])
def test_a_folder_comes_out_as_it_went_in(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = laid_out(tmp_path / "in", place), tmp_path / "out"
    assert main(["shrink", str(folder), *QUICK, "-o", str(out)]) == 0
    assert files(out) == {place, *AROUND}
    assert all((out / name).read_bytes() == content for name, content in AROUND.items())
    assert "model.safetensors, pytorch_model.bin" in "".join(capsys.readouterr())
    onnx.checker.check_model(onnx.load(out / place), full_check=True)
    feeds = {"input": np.load(IMAGES)["input"][:5]}
    shapes = [
        [o.shape for o in onnxruntime.InferenceSession(at / place, providers=["CPUExecutionProvider"]).run(None, feeds)]
        for at in (folder, out)
    ]
    assert shapes[0] == shapes[1]
    assert (out / place).stat().st_size < (folder / place).stat().st_size
    sizes = compare(folder, out, IMAGES)
    assert sizes.after.parameters < sizes.before.parameters


def test_the_result_is_that_of_the_file_alone(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "in", "model.onnx")
    shrink(folder, IMAGES, tmp_path / "out", width=0.5, refine=0)
    shrink(DIGITS, IMAGES, tmp_path / "small.onnx", width=0.5, refine=0)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tmp_path / "small.onnx").read_bytes()


def test_precisions_lie_beside_the_model(tmp_path: Path) -> None:
    folder = laid_out(tmp_path / "in", "onnx/model.onnx")
    assert main(["shrink", str(folder), *QUICK, "--int8", "-o", str(tmp_path / "out")]) == 0
    assert {"onnx/model.onnx", "onnx/model.int8.onnx"} <= files(tmp_path / "out")


def test_other_models_of_the_folder_do_not_go_along(tmp_path: Path) -> None:
    other = {"onnx/model_quantized.onnx": b"q", "onnx/model.onnx_data": b"d"}
    folder = laid_out(tmp_path / "in", "onnx/model.onnx", **other)
    assert main(["shrink", str(folder), *QUICK, "-o", str(tmp_path / "out")]) == 0
    assert files(tmp_path / "out") == {"onnx/model.onnx", *AROUND}


def test_what_else_is_in_an_older_result_stays(tmp_path: Path) -> None:
    folder, out = laid_out(tmp_path / "in", "model.onnx"), tmp_path / "out"
    out.mkdir()
    (out / "notes.md").write_text("mine")
    (out / "config.json").write_text("old")
    assert main(["shrink", str(folder), *QUICK, "-o", str(out)]) == 0
    assert (out / "notes.md").read_text() == "mine"
    assert (out / "config.json").read_bytes() == AROUND["config.json"]


def test_what_the_run_writes_there_is_not_written_over(tmp_path: Path) -> None:
    folder, out = laid_out(tmp_path / "in", "model.onnx", **{"report.json": b"old"}), tmp_path / "out"
    out.mkdir()
    assert main(["shrink", str(folder), *QUICK, "-o", str(out), "--report", str(out / "report.json")]) == 0
    assert (out / "report.json").stat().st_size > 100


def test_nothing_is_left_where_nothing_was_made(tmp_path: Path) -> None:
    folder, out = laid_out(tmp_path / "in", "model.onnx"), tmp_path / "out"
    assert main(["shrink", str(folder), *QUICK, "--max-error", "1e-9", "-o", str(out)]) != 0
    assert main(["shrink", str(folder), "--data", "nowhere.npz", "--width", "0.5", "-o", str(out)]) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("output", "said"),
    [("in", "lie in each other"), ("in/small", "lie in each other"), (".", "lie in each other"),
     ("small.onnx", "name a folder"), ("taken", "is a file")],
)  # fmt: skip
def test_folders_that_cannot_be_written(tmp_path: Path, output: str, said: str) -> None:
    folder = laid_out(tmp_path / "in", "model.onnx")
    (tmp_path / "taken").write_text("")
    before = files(tmp_path)
    with pytest.raises(InputError, match=said):
        shrink(folder, IMAGES, tmp_path / output, width=0.5, refine=0)
    assert files(tmp_path) == before


def test_what_is_in_the_way_is_said_before_the_run(tmp_path: Path) -> None:
    folder, out = laid_out(tmp_path / "in", "onnx/model.onnx"), tmp_path / "out"
    (out / "config.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"config\.json is in the way"):
        shrink(folder, IMAGES, out, width=0.5, refine=0)
    assert files(out) == set()


def test_a_folder_of_no_model_and_of_several(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"holds no \.onnx file"):
        shrink(tmp_path / "none", IMAGES, width=0.5)
    for name in ("a.onnx", "b.onnx"):
        laid_out(tmp_path / "several", name)
    with pytest.raises(InputError, match=r"holds 2 models: name one of them \(a\.onnx, b\.onnx\)"):
        shrink(tmp_path / "several", IMAGES, width=0.5)
