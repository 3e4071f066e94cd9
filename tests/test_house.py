"""The house rules: which module may import which, where third parties come in, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pcns_onnx.methods import METHODS

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "pcns_onnx"

ORDER = (
    "errors", "placing", "memory", "catalogue", "progress", "backend", "linalg", "graph", "runtime", "ops", "data",
    "fold", "factors", "sizes", "walk", "layers", "groups", "rewrite", "blocks", "stopwatch", "layertimes", "timing",
    "costs", "plans", "allocation", "bounds", "moments", "tracing", "capture", "gathering", "workers", "methods",
    "solve", "reading", "windows", "refine", "passes", "refit", "probing", "rotation", "basis", "verify", "latency",
    "interop", "choices", "options", "report", "tables", "figures", "page", "terminal", "inspecting", "feeding",
    "findings", "stats", "choosing", "ranks", "cautions", "shrinking", "trying", "weighing", "searching", "tradeoff",
    "planning", "outlook", "origin", "checking", "lowering", "pipeline", "frontier", "expanding", "designing",
    "differing", "doctor", "integrations", "commands", "cli", "__main__",
)  # fmt: skip
"""From the ground up: a module imports only what stands before it."""

DOORS = {
    "onnx": "graph",
    "onnx_graphsurgeon": "graph",
    "onnx_ir": "",  # the tests' peer alone: it opens a file per tensor and loses sparse initializers (1.1.0)
    "google": "graph",
    "onnxruntime": "runtime lowering",
    "cupy": "backend",
    "torch": "interop",
    "click": "commands",
    "dask": "workers",
    "distributed": "workers",
}
"""The modules through which these come in; `commands` hang from `cli`, onnxruntime's tools have a door of their own."""

LIMIT = 300
"""Non-blank lines that a file may have."""

ALLOWED = {"pyproject.toml", "pcns_onnx", "tests", "models", "tools", "README.md", "LICENSE"}

FILES = sorted(HOUSE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name inside the package: 'graph', 'ops', 'ops.linear'."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, *, types: bool = True) -> Iterator[str]:
    """Full names of all that a file imports, wherever it does; `types` includes TYPE_CHECKING blocks."""
    yield from _imports(ast.parse(path.read_text()).body, types)


def _imports(nodes: Iterable[ast.AST], types: bool) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            yield from _imports(node.orelse, types)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield _text(node.args[0])
        yield from _imports(ast.iter_child_nodes(node), types)


def _text(node: ast.expr) -> str:
    """What a string or an f-string says; '?' for each part that is computed."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "?"


def inside(path: Path) -> set[str]:
    """Modules of this package that a file imports, as dotted names inside it."""
    known = {name_of(file) for file in FILES}
    found = set()
    for full in imports(path):
        package, _, rest = full.partition(".")
        if package != HOUSE.name or "?" in rest:
            continue
        while rest and rest not in known:
            rest = rest.rpartition(".")[0]
        found.add(rest)
    return found - {""}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import onnx.checker", ["onnx.checker"]),
        ("from onnx import helper, checker", ["onnx.helper", "onnx.checker"]),
        ("def f():\n    if True:\n        from pcns_onnx import basis", ["pcns_onnx.basis"]),
        ("if TYPE_CHECKING:\n    import onnx\nelse:\n    import cupy", ["cupy"]),
        ("x = importlib.import_module('cupy')", ["cupy"]),
        ("return_ = import_module(f'pcns_onnx.{name}')", ["pcns_onnx.?"]),
    ],
)
def test_the_guard_sees_every_kind_of_import(source: str, expected: list[str]) -> None:
    assert list(_imports(ast.parse(source).body, types=False)) == expected


def test_every_module_has_its_floor() -> None:
    top = {name_of(path).partition(".")[0] for path in FILES} - {""}
    assert top == set(ORDER)


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p)], ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    mine = name_of(path).partition(".")[0]
    below = {*ORDER[: ORDER.index(mine)], mine}
    assert {name.partition(".")[0] for name in inside(path)} <= below


@pytest.mark.parametrize("package", ["graph", "ops", "methods", "data", "designing"])
def test_inside_a_package_imports_do_not_go_in_circles(package: str) -> None:
    files = {name_of(path): path for path in FILES if name_of(path).partition(".")[0] == package}
    # A package imports its modules to make them known; they may not ask it for anything back.
    waiting = {name: (inside(path) & files.keys()) - {name} for name, path in files.items()}
    while ready := {name for name, needs in waiting.items() if not needs}:
        waiting = {name: needs - ready for name, needs in waiting.items() if name not in ready}
    assert not waiting


@pytest.mark.parametrize(("library", "door"), DOORS.items())
def test_third_parties_come_in_by_one_door(library: str, door: str) -> None:
    users = {
        name_of(path).partition(".")[0]
        for path in FILES
        if library in {full.partition(".")[0] for full in imports(path, types=False)}
    } - ({"cli"} if door == "commands" else set())
    assert users == set(door.split()) or (not users and library == "onnx_graphsurgeon")


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path) or "__init__")
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= LIMIT


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path) or "__init__")
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_drawer_for_the_rest() -> None:
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in ROOT.glob("*/**/*.py") if path.stem in drawers and "site-packages" not in path.parts]


def test_nothing_else_lies_at_the_top() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no git here")
    if listed.returncode:
        pytest.skip("this is no checkout")
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= ALLOWED


def test_readme_knows_every_method() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not written yet")
    text = readme.read_text()
    assert [name for name in METHODS if f"`{name}`" not in text] == []
