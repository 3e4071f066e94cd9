"""Every word that heads a column or a line of our tables stands in the glossary, which is in order and easy to find."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcns_onnx.cli.main import main
from pcns_onnx.cost.resources import RESOURCES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TITLES = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
NAMED = [" ".join(words.split()) for words in re.findall(r"\*\*([^*]+)\*\*", PAGE)]
TERMS = {term.lower() for text in (*TITLES, *NAMED) for term in (text, *text.split(", "))}
TABLES = sorted(
    path for path in (ROOT / "pcns_onnx" / "cli").rglob("*.py") if path.name not in ("doctor.py", "options.py")
)
PAGES = sorted((ROOT / "pcns_onnx" / "report" / "html").glob("*.html"))
PLAIN = {"", "command", "model", "original", "shrunk", "budget, of the model before"}
PLAIN |= {"--method pcns", "significant dimensions"}
"""What needs no entry: it names a model, or an option that has a page of its own."""


def headers_of(path: Path) -> Iterator[str]:
    """What heads columns and lines of the tables of a module, as far as it is written out there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.For):
            targets, value = (node.targets, node.value) if isinstance(node, ast.Assign) else ([node.target], node.iter)
            for target in targets:
                if isinstance(target, ast.Name) and isinstance(value, ast.Tuple):
                    values.setdefault(target.id, []).append(value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in ("plain_table", "add_column"):
                given = [*node.args, *(word.value for word in node.keywords if word.arg == "right")]
            else:
                given = node.args[:1] if name == "add_row" else []
            for argument in given:
                yield from _texts(argument, values)


def _texts(node: ast.expr, values: dict[str, list[ast.expr]]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple):
        for element in node.elts:
            yield from _texts(element, {})
    elif isinstance(node, ast.Name):
        for value in values.get(node.id, []):
            yield from _texts(value, {})


def missing(headers: list[str]) -> list[str]:
    """Headers without an entry; what stands in brackets behind one is its unit."""
    bare = {re.sub(r" \([^)]*\)$", "", header): header for header in headers}
    return sorted(
        header for name, header in bare.items() if header not in PLAIN and not {name.lower(), header.lower()} & TERMS
    )


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_headers_of_the_terminal_have_an_entry(path: Path) -> None:
    assert missing(list(headers_of(path))) == []


def test_headers_are_found() -> None:
    headers = {header for path in TABLES for header in headers_of(path)}
    assert {
        "re-fit error",
        "samples/neuron",
        "on new rows",
        "ratio",
        "weights differ by",
        "file size (bytes)",
    } <= headers


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_headers_of_the_pages_have_an_entry(path: Path) -> None:
    assert missing(re.findall(r"<th[^>]*>([^<{]*)</th>", path.read_text(encoding="utf-8"))) == []


def test_costs_and_what_advise_says_have_an_entry() -> None:
    of_advice = ["MACs", "points lost", "decisions lost", "relative error", "latency", "file (KB)", "takes"]
    assert missing([*(row.label for row in RESOURCES.values()), *of_advice]) == []


def test_entries_are_in_order_and_lead_on() -> None:
    assert sorted(TITLES, key=str.lower) == TITLES and len(set(TITLES)) == len(TITLES)
    entries = re.split(r"^### .+$", PAGE, flags=re.MULTILINE)[1:]
    assert all(re.search(r"\]\([\w/-]+\.md", entry) for entry in entries), (
        "each has a link to the page that goes deeper"
    )


def test_help_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "docs/glossary.md" in " ".join(capsys.readouterr().out.split())
