"""onnxruntime-web in Node and in headless Chromium: a small server gives a job its files and takes what comes."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

HERE = Path(__file__).parent
KINDS = {".mjs": "text/javascript", ".html": "text/html", ".wasm": "application/wasm"}
_NODE = """
import * as ort from {library!r};
import {{ measure }} from {ours!r};
await measure(ort, {base!r});
process.exit(0);
"""


def run_job(kind: str, folder: Path, place: Path, patience: float) -> None:
    """Runs the job at `place` with what npm installed in `folder`; raises what `subprocess` raises."""
    with _served(folder / "node_modules", place) as (base, done):
        if kind == "node":
            library = folder / "node_modules" / "onnxruntime-web" / "dist" / "ort.node.min.mjs"
            program = place.with_name("run.mjs")
            program.write_text(_NODE.format(library=str(library), ours=str(HERE / "measure.mjs"), base=base))
            subprocess.run(["node", str(program)], check=True, capture_output=True, text=True, timeout=patience)
            return
        with tempfile.TemporaryDirectory() as profile:
            words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
            browser = subprocess.Popen(
                [_chromium(), *words, f"{base}/page.html"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                if not done.wait(patience):
                    raise subprocess.TimeoutExpired("chromium", patience)
            finally:
                browser.terminate()
                browser.wait()


def is_here(kind: str) -> bool:
    """Whether there is a Node (and npm), or a Chromium."""
    found = bool(shutil.which("node") and shutil.which("npm"))
    return found and (kind == "node" or _chromium() is not None)


def _chromium() -> Any:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def _served(modules: Path, place: Path) -> Iterator[tuple[str, threading.Event]]:
    """The address of the server, and what is set once the outcome is there."""
    job = json.loads(place.read_text())
    given = {*job["files"], *(spec["file"] for spec in job["inputs"])}
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/job":
                self.answer(place)
            elif path == "/file" and unquote(query) in given:
                self.answer(Path(unquote(query)))
            elif path in ("/page.html", "/measure.mjs"):
                self.answer(HERE / path[1:])
            elif path.startswith("/modules/") and ".." not in path:
                self.answer(modules / path.removeprefix("/modules/"))
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            name = Path(self.path).name
            (place.parent / name).write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            if name == "outcome.json":
                done.set()

        def answer(self, file: Path) -> None:
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", KINDS.get(file.suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(content)))
            # Threads and precise clocks are for isolated pages only.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", done
    finally:
        server.shutdown()
        server.server_close()
