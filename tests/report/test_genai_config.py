"""onnxruntime-genai's configuration goes along where it is true of what is written, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from builders import states
from pcns_onnx import shrink
from robustness.transformers import row

DECODER = {
    "filename": "model.onnx",
    "head_size": 16,
    "hidden_size": 64,
    "inputs": {
        "input_ids": "input_ids",
        "past_key_names": "past.layer%d.attention.k",
        "past_value_names": "past.layer%d.attention.v",
    },
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
}
SHRUNK: dict[str, Any] = {"width": 0.5, "caches": "narrow", "decode": 4}
PROMPTS = {"input_ids": np.random.default_rng(2).integers(0, 40, (20, 4))}


def shrunk(
    folder: Path, decoder: dict[str, Any], target: str = "out/small.onnx", **choices: Any
) -> tuple[dict[str, Any] | None, list[str], onnx.ModelProto]:
    """What lies beside the result, and what is said."""
    unit = "heads" if choices.get("heads") == "whole" else "dims"
    model, _ = row("GPT-2 with a cache", "plain", layers=2, unit=unit)
    model.metadata_props.add(key="head_size", value="16")
    model.metadata_props.add(key="num_key_value_heads", value="4")
    onnx.save(model, folder / "model.onnx")
    (folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder, "type": "gpt2"}, "search": {}}))
    output = folder / target
    output.parent.mkdir(exist_ok=True)
    choices = SHRUNK | choices
    result = shrink(folder / "model.onnx", PROMPTS, output, threads=1, refine=0, **choices)
    path = output.parent / "genai_config.json"
    written = json.loads(path.read_text()) if path.exists() and output.parent != folder else None
    return written, [line for line in result.report.warnings if "genai_config" in line], onnx.load(output)


def test_the_width_of_heads_follows(tmp_path: Path) -> None:
    written, lines, model = shrunk(tmp_path, DECODER)
    assert written is not None
    assert written["model"]["decoder"] == {**DECODER, "filename": "small.onnx", "head_size": 8}
    assert written["search"] == {}
    assert lines == ["genai_config.json is written beside the model, with head_size 8 (was 16)"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["head_size"], metadata["num_key_value_heads"]) == ("8", "4")
    assert states.shapes(model)["past.layer1.attention.v"] == ["N", 4, "P", 8]
    assert json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"] == DECODER


def test_the_number_of_heads_follows(tmp_path: Path) -> None:
    written, lines, _ = shrunk(tmp_path, DECODER, heads="whole")
    assert written is not None
    decoder = {**DECODER, "filename": "small.onnx", "num_key_value_heads": 2, "num_attention_heads": 2}
    assert written["model"]["decoder"] == decoder
    assert "num_key_value_heads 2 (was 4)" in lines[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_size": 64}, "it says 4 heads of 64, which the model's caches are not"),
        ({"num_hidden_layers": 3}, "cache 'past.layer2.attention.k' keeps its shape, and the file has one for all"),
        ({"inputs": {}}, "it does not say what its decoder's caches are ('past_key_names')"),
    ],
)
def test_what_would_not_be_true_is_not_written(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    written, lines, _ = shrunk(tmp_path, {**DECODER, **changes})
    assert written is None
    assert lines == [f"genai_config.json is not brought along: {reason}"]


def test_the_originals_own_stays(tmp_path: Path) -> None:
    _, lines, _ = shrunk(tmp_path, DECODER, "small.onnx")
    assert "it is the original's, which lies in the same folder" in lines[0]
    assert json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"] == DECODER


def test_another_models_file_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    other = {"model": {"decoder": {"filename": "other.onnx"}}}
    (tmp_path / "out" / "genai_config.json").write_text(json.dumps(other))
    written, lines, _ = shrunk(tmp_path, DECODER)
    assert written == other
    assert "is there already, for 'other.onnx'" in lines[0]


@pytest.mark.parametrize(
    ("decoder", "caches", "width"),
    [(DECODER, "narrow", 8), ({**DECODER, "head_size": 64}, "narrow", None), (DECODER, "keep", 16)],
)
def test_a_folder_gets_it_where_it_is_true(
    tmp_path: Path, decoder: dict[str, Any], caches: str, width: int | None
) -> None:
    source = tmp_path / "decoder"
    source.mkdir()
    shrunk(source, decoder)
    shrink(source, PROMPTS, tmp_path / "small", threads=1, refine=0, **SHRUNK | {"caches": caches})
    path = tmp_path / "small" / "genai_config.json"
    assert path.exists() == (width is not None)
    if width is not None:
        assert json.loads(path.read_text())["model"]["decoder"] == {**decoder, "head_size": width}
