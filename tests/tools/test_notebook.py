"""The notebook of the first hour: kept with its outputs, small, the page is that of it, and it runs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")

from docs.notebook import NOTEBOOK, PAGE, PICTURES, executed, page_of  # noqa: E402

LARGEST = 400_000
"""Bytes that the notebook may have, with its outputs and plots."""
NEEDED = ("nbclient", "ipykernel", "matplotlib", "jinja2", "PIL")
COMMANDS = ("advise", "shrink", "compare", "quantize", "heal")


@pytest.fixture
def notebook() -> Any:
    """The notebook as it is kept."""
    return nbformat.read(NOTEBOOK, as_version=4)


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_it_is_kept_with_its_outputs_and_small(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < LARGEST
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run from the first to the last"
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 4
    for command in COMMANDS:
        assert any(f"pcns-onnx {command}" in cell.source and printed(cell) for cell in cells), command


def test_its_text_repeats_no_figure_that_another_run_changes(notebook: Any) -> None:
    """Figures with a decimal point in the text are those that the cells ask for, or examples that say so."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert set(re.findall(r"\d+\.\d+", text)) <= {"0.65", "0.8", "0.7", "0.2"}


def test_the_page_is_that_of_the_notebook(notebook: Any) -> None:
    text, pictures = page_of(notebook)
    assert PAGE.read_text(encoding="utf-8") == text, "python tools/docs/notebook.py --page"
    kept = {path.name: path.read_bytes() for path in (PAGE.parent / PICTURES).iterdir()}
    assert kept == pictures


@pytest.mark.slow
def test_it_runs(notebook: Any, tmp_path: Path) -> None:
    for name in NEEDED:
        pytest.importorskip(name)
    if _pip_fails(tmp_path):
        pytest.skip("pip cannot bring the package that the model is from")
    executed(notebook, tmp_path)
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    assert "\nrecommended: " in printed(cells["advise"])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["after"]["macs"] <= 0.65 * report["before"]["macs"]
    healed = (tmp_path / "healed.onnx").exists()
    assert healed == (importlib.util.find_spec("torch") is not None)
    assert printed(cells["gate"]).count("exit code") == 2 and "exit code 4" in printed(cells["gate"])
    assert printed(cells["side-by-side"]).count(".onnx") == 3 + healed
    assert (tmp_path / "report.html").exists()


def _pip_fails(folder: Path) -> bool:
    """Whether the package cannot be had here, as where there is no network."""
    words = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder / "tried")]
    done = subprocess.run([*words, "rapidocr-onnxruntime==1.4.4"], capture_output=True)
    return done.returncode != 0
