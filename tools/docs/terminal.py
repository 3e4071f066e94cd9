"""A recording of the terminal as a picture: real runs of real commands on the models of this repository.

    pip install ".[cpu]"
    python tools/docs/terminal.py [--out docs/pictures/terminal.svg]

Every command runs in a process of its own whose stdout is a terminal, in an empty folder with a link to `models`. What
it prints goes through rich's own recorder (`Console.export_svg`), so that the picture is text: it scales, and can be
searched. Everything but the latencies is the same in every run.

The frame is not rich's, whose style sheet fetches a font: README is read where nothing may be fetched.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "pictures" / "terminal.svg"
KEPT = ROOT / "tools" / "results" / "page" / "terminal.svg"
COLUMNS = 104
COMMANDS = (
    """pcns-onnx shrink models/digits_cnn.onnx --data models/digits_images.npz \\
    --budget macs=0.5 --threads 1 -o small.onnx""",
    """pcns-onnx compare models/digits_cnn.onnx small.onnx --data models/digits_images_test.npz \\
    --max-drop 1 --threads 1""",
)
"""As one types them: those of README's first section, with a gate, and on one thread, since what waits for other work
times nothing."""

THEME = TerminalTheme(
    (24, 28, 36),
    (214, 220, 230),
    [
        (72, 79, 92), (240, 113, 120), (127, 206, 136), (230, 192, 110),
        (110, 170, 240), (190, 150, 235), (110, 205, 215), (214, 220, 230),
    ],
    [
        (72, 79, 92), (240, 113, 120), (127, 206, 136), (230, 192, 110),
        (110, 170, 240), (190, 150, 235), (110, 205, 215), (255, 255, 255),
    ],
)  # fmt: skip
FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">
<title>pcns-onnx in a terminal</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>\
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own frame without its fonts from elsewhere, and with what a reader of the screen is told."""


def printed_by(command: str, folder: Path) -> str:
    """What a command prints on a terminal, and then what it says on stderr."""
    _, *argv = shlex.split(command.replace("\\\n", " "))
    screen, shell = pty.openpty()
    fcntl.ioctl(shell, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "pcns_onnx", *argv],
        cwd=folder, env=environment, stdin=shell, stdout=shell, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(shell)
    printed = bytearray()
    try:
        while part := os.read(screen, 65_536):
            printed += part
    except OSError:
        pass  # Linux says so when the other end is closed
    os.close(screen)
    _, warned = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}: {warned.decode()}")
    return (bytes(printed) + warned).decode().replace("\r\n", "\n")


def recorded(commands: Sequence[str], folder: Path) -> str:
    """All commands with what they print, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for command in commands:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold bright_white")))
        console.print(Text.from_ansi(printed_by(command, folder).rstrip("\n")))
        console.print()
    return _trimmed(console.export_svg(title="pcns-onnx", theme=THEME, code_format=FRAME, unique_id="terminal"))


def _trimmed(picture: str) -> str:
    return "\n".join(line.strip() for line in picture.splitlines() if line.strip()) + "\n"


def main() -> None:
    """Run the commands and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"write it here and nowhere else ({PICTURE.relative_to(ROOT)})")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(ROOT / "models")
        picture = recorded(COMMANDS, Path(folder))
    for path in (KEPT, PICTURE) if args.out is None else (args.out,):
        path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
