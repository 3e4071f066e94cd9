"""Every tool is a script that runs from the root of a checkout and says how."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
NEEDS = {
    "benchmarks/frontier.py": "matplotlib",
    "docs/notebook.py": "nbformat",
    "fixtures/decoder.py": "torch",
    "fixtures/minilm.py": "torch",
    "fixtures/reference_models.py": "torch",
    "papers/eigen/eigen.py": "matplotlib",
    "papers/pca_design/pca_design.py": "matplotlib",
    "papers/pcns/mnist.py": "torch",
}
"""What scripts import that is no dependency of the package."""
PARTS = {TOOLS / "benchmarks" / name for name in ("frontier_cases", "runtime_cases")}
"""Processes that a benchmark starts: no commands for people."""
SCRIPTS = sorted(
    str(path.relative_to(TOOLS))
    for path in TOOLS.rglob("*.py")
    if PARTS.isdisjoint(path.parents) and 'if __name__ == "__main__":' in path.read_text()
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_called(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    done = subprocess.run(
        [sys.executable, f"tools/{name}", "--help"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # the package of this checkout, installed or not
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {Path(name).name}")
    assert f"tools/{name}" in done.stdout


def test_every_folder_has_its_scripts() -> None:
    assert {name.partition("/")[0] for name in SCRIPTS} == {"benchmarks", "docs", "fixtures", "papers", "robustness"}


@pytest.mark.parametrize("path", sorted(TOOLS.rglob("*.py")), ids=lambda path: str(path.relative_to(TOOLS)))
def test_scripts_that_are_named_are_there(path: Path) -> None:
    named = re.findall(r"\btools/[\w/]+\.py", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
