"""The notebook of the first hour, run, and the page that is made of it.

    pip install ".[cpu,images,html,heal,docs]"
    python tools/docs/notebook.py [--page]

Executes `docs/notebooks/first_hour.ipynb` in an empty folder and writes it back with its outputs; then writes
`docs/first-hour.md` and its pictures of it. `--page` leaves out the run: the page is made of the outputs as they stand.
The run needs pip and a network (the model comes out of a package) and takes some minutes on one core.

The page is Markdown and not a plugin's: mkdocs-jupyter brings nbconvert, whose pages fetch scripts from elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first_hour.ipynb"
PAGE = ROOT / "docs" / "first-hour.md"
PICTURES = "notebooks/first_hour"
"""Where the pictures of the page lie, as the page names them."""
PATIENCE = 900
"""Seconds that one cell may take, on a machine that has other work."""
MAGIC = "%%bash\n"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with the outputs of a run in this folder; raises nbclient's error of the cell that fails."""
    from nbclient import NotebookClient

    before = dict(os.environ)
    os.environ.update(_environment(before))
    try:
        client = NotebookClient(
            notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
            record_timing=False,
        )  # fmt: skip
        client.execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    notebook.metadata.pop("widgets", None)
    return notebook


def _joined(outputs: Sequence[Any]) -> list[Any]:
    """What a cell has printed in one piece, then what it has drawn, then what it has said on stderr."""
    texts: dict[str, str] = {}
    for output in outputs:
        if output.output_type == "stream":
            texts[output.name] = texts.get(output.name, "") + output.text  # a piece may end within an escape
    streams = {name: nbformat.v4.new_output("stream", name=name, text=_bare(text)) for name, text in texts.items()}
    drawn = [output for output in outputs if output.output_type != "stream"]
    return [*filter(None, [streams.get("stdout")]), *drawn, *filter(None, [streams.get("stderr")])]


def _bare(text: str) -> str:
    lines = ESCAPES.sub("", text).strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """`pcns-onnx` and `pip` are those beside this Python, and the package is that of this checkout."""
    paths = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)}
    joined = {name: os.pathsep.join(filter(None, (first, given.get(name)))) for name, first in paths.items()}
    return joined | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def page_of(notebook: Any) -> tuple[str, dict[str, bytes]]:
    """The page, and its pictures by their names."""
    pictures: dict[str, bytes] = {}
    parts = list(_parts(notebook, pictures))
    return "\n\n".join(parts) + "\n", pictures


def _parts(notebook: Any, pictures: dict[str, bytes]) -> Iterator[str]:
    for cell in notebook.cells:
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            yield source.replace("](../", "](")
            continue
        language = "bash" if source.startswith(MAGIC) else "python"
        yield _fenced(source.removeprefix(MAGIC), language)
        for output in cell.outputs:
            yield from _shown(output, cell.id, pictures)


def _shown(output: Any, cell: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """What a cell has printed, warned of or drawn."""
    if output.output_type == "stream":
        yield _fenced(output.text, "text")
        return
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{cell}.png"
        pictures[name] = base64.b64decode(data["image/png"])
        yield f"![{data['text/plain'] if _is_said(data) else cell.replace('-', ' ')}]({PICTURES}/{name})"
    elif "text/plain" in data:
        yield _fenced(data["text/plain"], "text")


def _is_said(data: Mapping[str, str]) -> bool:
    return not data.get("text/plain", "<").startswith("<")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{_bare(text)}```"


def write_page(notebook: Any) -> None:
    """Write the page and its pictures; pictures of cells that are gone go, too."""
    text, pictures = page_of(notebook)
    folder = PAGE.parent / PICTURES
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in pictures:
            path.unlink()
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    """Run it, save it, and make the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="only make the page again, of the outputs as they stand")
    args = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if not args.page:
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(notebook, Path(folder))
        nbformat.write(notebook, NOTEBOOK)
    write_page(notebook)


if __name__ == "__main__":
    main()
