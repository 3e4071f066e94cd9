"""`explore`: the points of the frontier, and commands that make the very plans that are shown."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from builders.commands import Ran
from builders.mlp import mlp, rows, saved
from builders.topologies import two_blocks
from pcns_onnx import InputError, NothingToShrinkError, explore, shrink
from pcns_onnx.planning.plan import Plan
from pcns_onnx.report.explore.record import Exploration, ExploredPoint

WIDE = (6, 40, 24, 3)


def images(folder: Path) -> tuple[Path, Path]:
    """A network whose blocks share channels, and samples for it."""
    model = two_blocks()
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    onnx.save(model, folder / "model.onnx")
    np.save(folder / "data.npy", np.random.default_rng(2).standard_normal((120, *sizes)).astype(np.float32))
    return folder / "model.onnx", folder / "data.npy"


def planned(run: Callable[..., Ran], point: ExploredPoint, folder: Path) -> dict[str, int]:
    """The widths of the plan that a point's command makes."""
    words = shlex.split(point.command)
    assert words[:2] == ["pcns-onnx", "shrink"]
    ran = run(*words[1:], "--refine", 0, "--plan-out", folder / "plan.json", "-o", folder / "small.onnx")
    assert ran.code == 0, ran.err
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    return {name: group.width for name, group in plan.groups.items()}


def middle(exploration: Exploration) -> list[ExploredPoint]:
    """Points of both ends and one between."""
    points = exploration.points
    return [points[0], points[len(points) // 2], points[-1]]


def test_points_lead_from_the_largest_model_to_the_narrowest(tmp_path: Path) -> None:
    exploration = explore(*saved(tmp_path, mlp(widths=WIDE)), threads=1)
    errors = [point.error for point in exploration.points]
    macs = [point.costs["macs"] for point in exploration.points]
    assert len(errors) > 3 and errors == sorted(errors) and macs == sorted(macs, reverse=True)
    assert [(group.name, group.width) for group in exploration.groups] == [("g0", 40), ("g1", 24)]
    for point in exploration.points:
        assert point.costs["macs"] <= point.budget and set(point.costs) == {"macs", "params", "size", "latency"}
        assert sum(point.shares) == pytest.approx(1) or point.error == 0
        assert len(point.widths) == len(point.losses) == len(exploration.groups)
    assert exploration.milliseconds > 0 and exploration.samples == 270
    assert [item.name for item in exploration.left_alone] == ["g2"]


def test_a_command_makes_the_plan_that_is_shown(tmp_path: Path, run: Callable[..., Ran]) -> None:
    model, data = saved(tmp_path, mlp(widths=WIDE))
    exploration = explore(model, data, threads=1, seed=3, samples=200, multiple=4)
    for point in middle(exploration):
        widths = planned(run, point, tmp_path)
        assert [widths[group.name] for group in exploration.groups] == point.widths


@pytest.mark.parametrize("keeps", [False, True], ids=["stated", "statistics"])
def test_so_it_does_where_several_blocks_share_channels(keeps: bool, tmp_path: Path, run: Callable[..., Ran]) -> None:
    model, data = images(tmp_path)
    choices = {"stats": tmp_path / "s.npz"} if keeps else {}
    exploration = explore(model, data, threads=1, **choices)  # type: ignore[arg-type]
    assert any(group.coupled for group in exploration.groups)
    for point in middle(exploration):
        assert ("--streams" in point.command) is not keeps
        widths = planned(run, point, tmp_path)
        assert [widths[group.name] for group in exploration.groups] == point.widths


def test_statistics_stand_for_samples(tmp_path: Path) -> None:
    model, data = saved(tmp_path, mlp(widths=WIDE))
    with_data = explore(model, data, threads=1, stats=tmp_path / "s.npz")
    without = explore(model, threads=1, stats=tmp_path / "s.npz")
    assert [point.widths for point in without.points] == [point.widths for point in with_data.points]
    assert "--data DATA" in without.points[0].command


def test_what_was_said_stands_in_the_command(tmp_path: Path) -> None:
    model, data = saved(tmp_path, mlp(widths=WIDE))
    folder = tmp_path / "a folder"
    folder.mkdir()
    for path in (model, data):
        path.rename(folder / path.name)
    point = explore(folder / "model.onnx", folder / "data.npz", threads=1, holdout=0.2, exclude=["g1"]).points[0]
    words = shlex.split(point.command)
    assert words[2:5] == [str(folder / "model.onnx"), "--data", str(folder / "data.npz")]
    for flag, value in (("--holdout", "0.2"), ("--exclude", "g1"), ("--threads", "1"), ("--budget", "macs=0.9")):
        assert words[words.index(flag) + 1] == value
    assert point.output == str(folder / "model.0.9.onnx")


@pytest.mark.parametrize("stated", ["even", "1e6"])
def test_shared_channels_stay_where_that_is_stated(stated: str, tmp_path: Path) -> None:
    exploration = explore(*images(tmp_path), threads=1, streams=stated)
    shared = [at for at, group in enumerate(exploration.groups) if group.coupled]
    assert [exploration.points[0].widths[at] for at in shared] == [exploration.groups[at].width for at in shared]
    assert f"--streams {stated}" in exploration.points[0].command


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"streams": "0"}, "--streams 0 is not understood"),
        ({"streams": "much"}, "--streams much is not understood"),
        ({"streams": "even", "width": 0.5}, "--streams is a choice that a budget makes"),
        ({"streams": 2, "method": "pcns", "width": 0.5}, "--streams is for"),
    ],
)
def test_streams_are_refused_where_they_say_nothing(choices: dict[str, object], line: str) -> None:
    with pytest.raises(InputError, match=line):
        shrink(mlp(), rows(), **choices)  # type: ignore[arg-type]


def test_one_line_for_what_cannot_be_explored(tmp_path: Path, run: Callable[..., Ran]) -> None:
    model, data = saved(tmp_path)
    few = "nothing can be shrunk"
    for words, line in (
        ((model,), "give --data"),
        ((data, "--data", data), f"write MODEL --stats {data}"),
        ((model, "--data", data, "--method", "pcns"), "other methods have no frontier"),
        ((model, "--data", data, "-o", tmp_path / "page.txt"), "name it *.html"),
        ((model, "--data", data, "-o", tmp_path / "no" / "page.html"), "no folder"),
        ((model, "--data", data, "-o", "page.html", "--port", 8000), "--port is for a page that is served"),
        ((model, "--data", data, "--exclude", "g*", "-o", tmp_path / "page.html"), few),
    ):
        ran = run("explore", *words)
        assert ran.code == (3 if line is few else 2) and line in ran.err and "Traceback" not in ran.err
    assert not list(tmp_path.glob("*.html"))
    with pytest.raises(InputError, match="--budget is no choice of explore"):
        explore(model, data, budget="macs=0.5")
    with pytest.raises(NothingToShrinkError):
        explore(model, data, exclude="g*")


def test_json_is_the_record_and_the_page_holds_it(tmp_path: Path, run: Callable[..., Ran]) -> None:
    model, data = saved(tmp_path)
    ran = run("explore", model, "--data", data, "--threads", 1, "--json", "-o", "page.html", "-q")
    assert ran.code == 0
    record = msgspec.json.decode(ran.out, type=Exploration)
    held = (tmp_path / "page.html").read_text().partition('id="exploration">')[2].partition("</script>")[0]
    assert json.loads(held)["exploration"] == json.loads(ran.out) and record.points


def test_help_needs_no_server() -> None:
    program = (
        "import sys; from pcns_onnx.cli.main import main; main(['explore', '--help']);"
        "bad = {'starlette', 'uvicorn', 'jinja2', 'numpy', 'onnx'} & sys.modules.keys(); sys.exit(bool(bad))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
