"""The experiment that the PCNS drafts leave to be written runs from end to end, and says what it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def test_the_experiment_writes_its_tables_and_figures(tmp_path: Path) -> None:
    for library in ("torch", "sklearn", "matplotlib"):
        pytest.importorskip(library)
    command = [sys.executable, str(ROOT / "tools" / "papers" / "pcns" / "mnist.py"), "--widths", "48", "48"]
    subprocess.run([*command, "--epochs", "8", "--draws", "1", "--out", str(tmp_path)], check=True, capture_output=True)
    text = (tmp_path / "README.md").read_text()
    assert text.count("## ") == 9 and "nan" not in text
    figures = {path.name: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert all(f"]({name})" in text for name in figures) and len(figures) == 5
    assert all(1_000 < size < 100_000 for size in figures.values())


def test_the_experiment_takes_data_from_files(tmp_path: Path) -> None:
    for library in ("torch", "sklearn"):
        pytest.importorskip(library)
    from papers.pcns.training import Training, fresh, read, widths_of

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        labels = rng.integers(0, 3, 200)
        x = np.eye(16, dtype=np.float32)[labels * 5] + 0.1 * rng.standard_normal((200, 16)).astype(np.float32)
        np.savez(tmp_path / f"{part}.npz", input=x, labels=labels)
    task = read(tmp_path / "train.npz", tmp_path / "test.npz")
    run = Training(task, fresh((16, 24, 20, 3), 0.1, 0), rate=0.01).train(12)
    assert run.accuracy() > 80 and widths_of(run.model) == (24, 20)
    run.shrink(task.calibration(400), width=0.5, method="obs")
    assert widths_of(run.model) == (12, 10) and run.accuracy() > 70
    assert run.train(14).epoch == 14 and len(run.curve) == 16
