"""README is short; the pages hang together: links resolve, all are in the menu, commands and tables are up to date."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from pcns_onnx.methods.registry import EXPANSIONS, METHODS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = (README, *PAGES)
COMMANDS = (
    "advise", "shrink", "heal", "quantize", "inspect", "compare", "plan", "explore", "expand", "design", "diff",
    "doctor",
)  # fmt: skip

README_LINES = 250
"""README is for a newcomer; it stays under so many lines."""

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
TOOL = re.compile(r"python (tools/\S+\.py)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links_of(path: Path) -> Iterator[str]:
    """Where the relative links and pictures of a page lead to, code left out."""
    prose = CODE.sub("", FENCE.sub("", path.read_text()))
    return (target for target in LINK.findall(prose) if not target.startswith(("http://", "https://", "mailto:")))


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def commands_of(path: Path) -> Iterator[list[str]]:
    """The words of every `pcns-onnx COMMAND ...` that stands in a block of code, whichever way its line goes on."""
    for block in FENCE.findall(path.read_text()):
        for line in block.replace("\\\n", " ").replace("\n    --", " --").splitlines():
            _, found, rest = line.partition("pcns-onnx ")
            if found and rest.split()[0] in COMMANDS:
                yield shlex.split(rest.partition(" #")[0])


@cache
def options_of(command: str) -> frozenset[str]:
    """The long options of a command, as its help lists them."""
    shown = subprocess.run(
        [sys.executable, "-m", "pcns_onnx", command, "--help"], capture_output=True, text=True, check=True
    )
    heads = [line[:32] for line in shown.stdout.splitlines() if re.match(r"  -", line)]
    return frozenset(OPTION.findall("\n".join(heads)))


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) < README_LINES


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    lost = []
    for link in links_of(path):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_pages_link_only_to_what_the_site_has(path: Path) -> None:
    targets = {(path.parent / link.partition("#")[0]).resolve() for link in links_of(path)}
    assert all(target.is_relative_to(DOCS) for target in targets)


def test_every_page_is_in_the_menu_and_the_other_way_round() -> None:
    menu = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = re.findall(r": (\S+\.md)$", menu, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in PAGES)


def test_every_method_has_its_row() -> None:
    rows = "\n".join(method.row for method in (*METHODS.values(), *EXPANSIONS.values()))
    assert rows in (DOCS / "methods.md").read_text(), f"the table of methods is out of date; it should be:\n{rows}"


def test_readme_names_every_method_of_shrink() -> None:
    assert [name for name in METHODS if f"`{name}`" not in README.read_text()] == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_commands_have_the_options_that_they_are_shown_with(path: Path) -> None:
    unknown = [
        f"{words[0]} {option}"
        for words in commands_of(path)
        for option in (word for word in words if OPTION.fullmatch(word))
        if option not in options_of(words[0])
    ]
    assert not unknown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command: str) -> None:
    explained = set(OPTION.findall((DOCS / "options.md").read_text()))
    assert options_of(command) - {"--help"} <= explained


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_tools_are_where_the_pages_say(path: Path) -> None:
    assert [tool for tool in TOOL.findall(path.read_text()) if not (ROOT / tool).exists()] == []


def test_pictures_are_those_that_the_tools_made() -> None:
    made = {path.name: path for path in (ROOT / "tools" / "results").rglob("*.*")}
    old = [path.name for path in (DOCS / "pictures").iterdir() if path.read_bytes() != made[path.name].read_bytes()]
    assert not old, "copy them again from tools/results"
