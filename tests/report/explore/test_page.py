"""The page to play with, as a file: everything in it, one script by its hash, names are texts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import msgspec
import pytest

from builders.mlp import mlp, rows
from pcns_onnx import explore
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.report.explore import drawing
from pcns_onnx.report.explore.page import SCRIPTS, command_of, exploration_page
from pcns_onnx.report.explore.record import Exploration

NASTY = """</script><script>alert("x")</script><!--&'$\n中文"""
FOLDER = Path(drawing.__file__).parent


@pytest.fixture(scope="module")
def exploration() -> Exploration:
    return explore(mlp(widths=(6, 40, 24, 3)), rows(), threads=1)


def test_nothing_is_fetched(exploration: Exploration) -> None:
    text = exploration_page(exploration)
    for tag in ("link", "img", "iframe", "object", "embed", "base"):
        assert f"<{tag}" not in text
    assert not re.search(r'\b(src|srcset|href|action)="', text) and "@import" not in text and "url(" not in text
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_one_script_that_runs_is_the_one_of_the_hash(exploration: Exploration) -> None:
    text = exploration_page(exploration)
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy
    assert "connect-src" not in policy and "unsafe-eval" not in policy
    assert "connect-src 'self'" in html.unescape(exploration_page(exploration, served=True))


def test_names_are_text_and_nothing_else(exploration: Exploration) -> None:
    groups = [msgspec.structs.replace(group, name=NASTY) for group in exploration.groups]
    boxes = [msgspec.structs.replace(box, label=NASTY, reason=NASTY) for box in exploration.drawing.boxes]
    points = [msgspec.structs.replace(point, command=f"pcns-onnx shrink {NASTY!r}") for point in exploration.points]
    nasty = msgspec.structs.replace(
        exploration, model=NASTY, groups=groups, points=points, warnings=[NASTY], versions={NASTY: NASTY},
        left_alone=[SkippedLayer(NASTY, NASTY)],
        drawing=msgspec.structs.replace(exploration.drawing, boxes=boxes),
    )  # fmt: skip
    plain, text = exploration_page(exploration), exploration_page(nasty)
    assert text.count("<script") == plain.count("<script") == 2 and text.count("</script") == 2
    held = json.loads(re.findall(r'id="exploration">(.*?)</script>', text, re.DOTALL)[0])
    assert held["exploration"]["groups"][0]["name"] == NASTY


def test_scripts_never_take_a_text_for_markup() -> None:
    assert {path.name for path in FOLDER.glob("*.js")} == set(SCRIPTS)
    for name in SCRIPTS:
        text = (FOLDER / name).read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "</script",
        ):
            assert word not in text


def test_without_scripts_there_is_a_table_of_all_points(exploration: Exploration) -> None:
    text = html.unescape(exploration_page(exploration))
    for point in exploration.points:
        assert command_of(point) in text
    assert [item.reason for item in exploration.left_alone if item.reason not in text] == []


def test_a_command_ends_in_what_is_written(exploration: Exploration) -> None:
    assert command_of(exploration.points[0], "a b.onnx").endswith(" -o 'a b.onnx'")


def test_the_graph_is_whole_and_a_large_one_is_its_groups(
    exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exploration.drawing
    assert [(box.kind, box.group) for box in whole.boxes] == [
        ("input", -1), ("Gemm", 0), ("Tanh", 0), ("Gemm", 1), ("Tanh", 1), ("Gemm", -1), ("output", -1),
    ]  # fmt: skip
    assert whole.edges == [(at, at + 1) for at in range(6)] and not whole.collapsed
    assert "feeds the model's output" in whole.boxes[5].reason
    monkeypatch.setattr(drawing, "MOST", 3)
    small = explore(mlp(widths=(6, 40, 24, 3)), rows(), threads=1).drawing
    assert small.collapsed and [(box.label, box.group, box.row) for box in small.boxes] == [
        ("g0", 0, 0), ("g1", 1, 1), ("g2", -1, 2),
    ]  # fmt: skip
    assert small.edges == [(0, 1), (1, 2)]


def test_the_same_exploration_gives_the_same_page(exploration: Exploration) -> None:
    assert exploration_page(exploration) == exploration_page(exploration)
