"""The steps of the GitHub action, as far as a shell runs them: the gate passes or fails the step with our exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "shrink" / "action.yml"
STEP = re.compile(r"      run: \|\n((?:        .*\n|\n)+)")


def steps() -> list[str]:
    """The scripts of the action."""
    return [textwrap.dedent(found) for found in STEP.findall(ACTION.read_text())]


def ran(script: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """A step as a runner starts it: bash with -e and pipefail, inputs as variables."""
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.unlink(missing_ok=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    variables = {"PATH": f"{python.parent}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(folder / "outputs")}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder, env=os.environ | variables | {"PYTHONPATH": paths} | inputs, capture_output=True, text=True,
    )  # fmt: skip


def inputs(options: str) -> dict[str, str]:
    models = ROOT / "models"
    return {
        "MODEL": str(models / "digits_mlp_tanh.onnx"), "DATA": str(models / "digits_rows.npz"),
        "OUTPUT": "my small.onnx", "REPORT": "my report.json", "OPTIONS": options,
    }  # fmt: skip


def test_inputs_are_never_part_of_a_script() -> None:
    assert len(steps()) == 2
    assert not any("${{" in script for script in steps())


def test_nothing_is_installed_where_no_package_is_named(tmp_path: Path) -> None:
    assert ran(steps()[0], tmp_path, PACKAGE="").returncode == 0


def test_a_model_that_passes_its_gate_is_written_and_its_size_is_an_output(tmp_path: Path) -> None:
    done = ran(steps()[1], tmp_path, **inputs("--budget macs=0.5 --effort low --threads 1 --max-error 0.9"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my small.onnx").exists() and (tmp_path / "my report.json").exists()
    name, _, value = (tmp_path / "outputs").read_text().strip().partition("=")
    assert name == "ratio" and 0 < float(value) <= 0.5


@pytest.mark.parametrize(
    "options, code", [("--budget macs=0.5 --effort low --threads 1 --max-error 1e-9", 4), ("--budget macs=nothing", 2)]
)
def test_the_step_fails_with_the_exit_code_of_the_command(tmp_path: Path, options: str, code: int) -> None:
    done = ran(steps()[1], tmp_path, **inputs(options))
    assert done.returncode == code and not (tmp_path / "my small.onnx").exists()


def test_options_are_words_and_no_commands(tmp_path: Path) -> None:
    done = ran(steps()[1], tmp_path, **inputs("--budget macs=0.5; touch gone $(touch gone)"))
    assert done.returncode == 2 and not (tmp_path / "gone").exists()
