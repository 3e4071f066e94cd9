"""A report as one HTML file for people: no script, no network, readable on a phone, in the dark and printed.

Pictures are SVG by matplotlib, drawn once and written into the page; their colours are CSS
variables, so that one picture serves light, dark and paper. (A page with plotly.js would be
4.8 MB and run scripts over names that anyone may have chosen; this one is some 100 kB and
forbids scripts.) Jinja2 fills the template and escapes every value.
"""

from __future__ import annotations

import importlib
import importlib.resources
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.files import write_atomic
from pcns_onnx.report.html.figures import Picture, pictures
from pcns_onnx.report.html.headline import answers, precisions, verdict
from pcns_onnx.report.schema import Report
from pcns_onnx.report.shares import flipped, number, share, worst_share


def check_page(
    path: str | os.PathLike[str] | None,
    needed: Iterable[str] = ("jinja2", "matplotlib"),
    what: str = "--html",
    extra: str = "html",
) -> None:
    """Raise where a page is asked for and cannot be made: before a run, not behind it."""
    if path is None:
        return
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"'{path}' is no page: name it *.html")
    require_modules(needed, what, extra)


def require_modules(names: Iterable[str], what: str, extra: str) -> None:
    """Raise `UnsupportedError` where a library is missing that `what` needs, with the extra that has it."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UnsupportedError(f"{what} needs {name}: `pip install 'pcns-onnx[{extra}]'`") from None


def write_page(report: Report, path: str | os.PathLike[str]) -> None:
    """Write `report` as one HTML file, atomically."""
    write_atomic(path, page(report).encode("utf-8", "backslashreplace"))


def page(report: Report) -> str:
    """The whole file."""
    return rendered(
        "report.html",
        pictures(report),
        report=report,
        answers=answers(report),
        precisions=precisions(report),
        verdict=verdict(report),
        flipped=flipped,
        number=number,
        share=share,
        worst_share=worst_share,
    )


def rendered(template: str, drawn: Iterable[Picture], **values: object) -> str:
    """A template of this folder, with the style, the pictures and these values."""
    folder = importlib.resources.files(__package__)
    jinja2: Any = importlib.import_module("jinja2")
    markup: Any = importlib.import_module("markupsafe").Markup
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(
        style=markup((folder / "style.css").read_text("utf-8")),
        pictures=[(title, words, markup(svg)) for title, words, svg in drawn],
        **values,
    )
    return str(text)
