"""What is slow, or needs a device, runs only where it is asked for, whatever else is on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = """
import pytest

def test_plain(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.gpu
def test_gpu(): pass

@pytest.mark.slow
@pytest.mark.gpu
def test_both(): pass

@pytest.mark.filterwarnings("ignore")
def test_other(): pass
"""


def outcomes(folder: Path, *argv: str) -> tuple[set[str], dict[str, str]]:
    """Tests that passed, and the reasons of those that were skipped, by this project's own settings."""
    (folder / "test_sample.py").write_text(SAMPLE)
    settings = ["-c", str(ROOT / "pyproject.toml"), "-p", "conftest", "-p", "no:cacheprovider", "-vv"]
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "tests"))
    # No device is visible, whatever the machine has.
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1", "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, *argv, str(folder / "test_sample.py")],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    passed, skipped = set(), {}
    for line in done.stdout.splitlines():
        name = line.partition("::test_")[2].partition(" ")[0]
        if " PASSED" in line and name:
            passed.add(name)
        elif " SKIPPED" in line and name:
            skipped[name] = line.partition(" SKIPPED ")[2]
    return passed, skipped


NO_DEVICE = "device 'cuda' was asked for but"


@pytest.mark.parametrize(
    ("argv", "passed", "skipped", "reason"),
    [
        ((), "plain other", "slow gpu both", "gpu: run with -m gpu"),
        (("-k", "plain or slow"), "plain", "slow both", ""),  # marks are keywords, too
        (("-m", "not filterwarnings"), "plain", "slow gpu both", "gpu: run with -m gpu"),
        (("-m", "slow"), "slow", "both", ""),
        (("-m", "slow or not slow"), "plain other slow", "gpu both", "gpu: run with -m gpu"),
        (("-m", "gpu"), "", "gpu both", f"gpu: {NO_DEVICE}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_only_what_is_named_runs(argv: tuple[str, ...], passed: str, skipped: str, reason: str, tmp_path: Path) -> None:
    ran, left = outcomes(tmp_path, *argv)
    assert ran == set(passed.split()) and set(left) == set(skipped.split())
    assert reason in left.get("gpu", "")
    assert "slow" not in left or "slow: run with -m slow" in left["slow"]
