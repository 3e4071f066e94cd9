"""The house rules: which module may import which, where third parties come in, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pcns_onnx.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "pcns_onnx"

BANDS = (
    "errors progress files numerics graph data runtime",  # ground
    "ops dependency rewrite autograd",  # structure
    "calibration cost",  # measurements
    "planning reconstruction",  # decisions
    "methods metrics evaluation distillation report architecture",  # story
    "api interop cli __main__",  # faces
)
"""From the ground up; inside a band a folder imports only what stands before it."""

APART = {("calibration", "cost"), ("planning", "reconstruction"), ("methods", "evaluation"), ("metrics", "evaluation")}
"""Neighbours in a band that do not know each other."""

DOORS = {
    "onnx": "graph",  # one place knows the format; all others see nodes, constants and edits
    "onnx_graphsurgeon": "interop",  # TensorRT's way of holding a model, taken and given back
    "onnx_ir": "",  # the tests' peer alone: it opens a file per tensor and loses sparse initializers (1.1.0)
    "google": "graph",  # protobuf, under onnx
    "onnxruntime": "runtime rewrite",  # sessions; and its quantiser, which rewrites a graph
    "cupy": "numerics",  # arrays are asked for their namespace everywhere else
    "torch": "autograd distillation",  # never needed to shrink a model
    "click": "cli",  # the API has no command line
    "starlette": "api",  # what serves a page is asked for where it is served
    "uvicorn": "api",
    "dask": "runtime",  # who runs the batches is the runtime's affair
    "distributed": "runtime",
    "openvino": "runtime",  # a target that models are timed in
}
"""The folders through which these come in, and why there."""

FLOORS = 12
"""Rooms on top of one another: as many as a newcomer can keep in mind."""

MODULES = 13
SCREEN = 60

KNOWN_TWICE: dict[str, list[str]] = {}
"""Public names of functions and classes that two modules define all the same, with a reason each."""

LIMIT = 300
"""Non-blank lines that a file may have."""

ALLOWED = {
    "pyproject.toml", "pcns_onnx", "tests", "models", "tools", "README.md", "docs", "findings", "mkdocs.yml", "LICENSE",
}  # fmt: skip

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


ORDER = [room for band in BANDS for room in band.split()]


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_its_room() -> None:
    assert {room_of(name_of(path)) for path in FILES} - {""} == set(ORDER)


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p)], ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    room = room_of(name_of(path))
    below = {*ORDER[: ORDER.index(room)], room} - {first for first, second in APART if second == room}
    assert {room_of(name) for name in inside(path)} <= below


def floors(needs: dict[str, set[str]]) -> int:
    """On how many floors these names stand, each above all that it needs; raises where they go in circles."""
    count = 0
    while ready := {name for name, waiting in needs.items() if not waiting}:
        needs = {name: waiting - ready for name, waiting in needs.items() if name not in ready}
        count += 1
    assert not needs, f"imports go in circles: {sorted(needs)}"
    return count


def test_imports_do_not_go_in_circles() -> None:
    # A package imports its modules to make them known; they may not ask it for anything back.
    assert floors({name_of(path): inside(path) - {name_of(path)} for path in FILES}) > 0


def test_the_house_has_few_floors() -> None:
    needs: dict[str, set[str]] = {room: set() for room in ORDER if room != "__main__"}  # the door is no floor
    for path in FILES:
        room = room_of(name_of(path))
        if room in needs:
            needs[room] |= {room_of(name) for name in inside(path)} - {room}
    assert floors(needs) <= FLOORS


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: folder.name)
def test_a_folder_is_taken_in_at_a_glance(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MODULES


def test_the_root_of_the_package_is_nearly_empty() -> None:
    assert {path.stem for path in HOUSE.glob("*.py")} == {"__init__", "__main__", "errors", "progress", "files"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: name_of(path) or "__init__")
def test_a_function_fits_a_screen(path: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > SCREEN] == []


def test_a_public_name_is_defined_once() -> None:
    homes: dict[str, set[str]] = {}
    for path in FILES:
        room = name_of(path)
        if room_of(room) in ("api", "cli"):
            continue  # a verb has the same name in both
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(room)
    twice = {name: sorted(rooms) for name, rooms in homes.items() if len(rooms) > 1}
    assert twice == KNOWN_TWICE


@pytest.mark.parametrize(("library", "door"), DOORS.items())
def test_third_parties_come_in_by_one_door(library: str, door: str) -> None:
    users = {
        room_of(name_of(path))
        for path in FILES
        if library in {full.partition(".")[0] for full in imports(path, types=False)}
    }
    assert users == set(door.split())


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


@pytest.mark.parametrize("path", sorted((ROOT / "tools").rglob("*.py")), ids=lambda path: path.stem)
def test_tools_import_onnxruntime_behind_the_package(path: Path) -> None:
    """Which switches its telemetry off."""
    lines: dict[str, int] = {}
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else [item.module or ""]
            for name in names:
                root = name.partition(".")[0]
                lines[root] = min(lines.get(root, item.lineno), item.lineno)
    assert "onnxruntime" not in lines or lines.get("pcns_onnx", lines["onnxruntime"]) < lines["onnxruntime"]


@pytest.mark.parametrize("path", sorted((ROOT / "findings").glob("*.sh")), ids=lambda path: path.stem)
def test_findings_queue_no_telemetry(path: Path) -> None:
    text = path.read_text()
    assert "import onnxruntime" not in text or "ORT_DISABLE_TELEMETRY" in text
