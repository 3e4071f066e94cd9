"""An exploration as one HTML file: a few plain scripts over one record, no network, light and dark as the report.

The content security policy lets run one script, by its hash, so that nothing that a name may hold can become one; the
scripts put names into texts only. The record stands in the page as JSON, in which '<' is written as an escape. A page
that is served is the same page, and may ask its own server how the run is.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import os
import shlex

import msgspec

from pcns_onnx.cost.resources import RESOURCES
from pcns_onnx.files import write_atomic
from pcns_onnx.planning.plan import by_cause
from pcns_onnx.report.explore.record import Exploration, ExploredPoint
from pcns_onnx.report.html.page import check_page, rendered
from pcns_onnx.report.shares import number

SCRIPTS = ("elements.js", "frontier.js", "layers.js", "graph.js", "command.js", "run.js", "start.js")
"""In the order in which they stand in the page."""


def check_explorable(path: str | os.PathLike[str] | None) -> None:
    """Raise where a page is asked for and cannot be made: before a run, not behind it."""
    check_page(path, ("jinja2",), "a page", "explore")


def write_exploration(exploration: Exploration, path: str | os.PathLike[str]) -> None:
    """Write the page, atomically."""
    write_atomic(path, exploration_page(exploration).encode("utf-8", "backslashreplace"))


def exploration_page(exploration: Exploration, *, served: bool = False, runs: bool = False) -> str:
    """The whole file. A `served` page asks its server; with `runs` it can have commands run."""
    folder = importlib.resources.files(__package__)
    parts = ((folder / name).read_text("utf-8") for name in SCRIPTS)
    script = "\n".join(["'use strict';", *parts])
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    labels = {name: row.label for name, row in RESOURCES.items()}
    record = {"exploration": exploration, "labels": labels, "served": served, "runs": runs}
    return rendered(
        "explore.html",
        (),
        exploration=exploration,
        costs=[name for name in RESOURCES if exploration.points and name in exploration.points[0].costs],
        left_alone=by_cause(exploration.left_alone),
        line=command_of,
        number=number,
        served=served,
        own_style=(folder / "explore.css").read_text("utf-8"),
        script=script,
        script_hash=f"'sha256-{digest}'",
        data=msgspec.json.encode(record).decode().replace("<", "\\u003c"),
    )


def command_of(point: ExploredPoint, output: str | None = None) -> str:
    """The whole line that makes a point, at its own place or at `output`."""
    return f"{point.command} -o {shlex.quote(point.output if output is None else output)}"
