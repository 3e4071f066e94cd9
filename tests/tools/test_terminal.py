"""The recording of a terminal: what a command prints becomes text in a picture that fetches nothing."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from builders.mlp import saved
from docs.terminal import PICTURE, printed_by, recorded

LARGEST = 100_000


def words_of(picture: str) -> str:
    root = ElementTree.fromstring(picture)
    return "\n".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")).replace(
        "\N{NO-BREAK SPACE}", " "
    )


def test_a_run_becomes_a_picture(tmp_path: Path) -> None:
    saved(tmp_path)
    picture = recorded(["pcns-onnx inspect model.onnx"], tmp_path)
    words = words_of(picture)
    assert "pcns-onnx inspect model.onnx" in words and "can it shrink?" in words and "MACs per sample" in words
    assert not re.search(r"url\((?!#)|@import|href", picture), "nothing is fetched"
    assert picture == recorded(["pcns-onnx inspect model.onnx"], tmp_path)


def test_a_command_that_fails_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"exit code 2: .*no such model file"):
        printed_by("pcns-onnx inspect missing.onnx", tmp_path)


def test_the_picture_of_the_readme_is_small_and_of_today() -> None:
    picture = PICTURE.read_text(encoding="utf-8")
    words = words_of(picture)
    assert len(picture) < LARGEST and "url(http" not in picture
    assert "re-fit error" in words and "wrote small.onnx" in words and "passed" in words
