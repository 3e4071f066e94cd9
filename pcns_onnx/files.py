"""Files that appear whole or not at all, and folders that do not outlive their run.

A new file is written without a name (Linux: O_TMPFILE) and gets one when it is whole and on the
disk: a run that is killed before leaves nothing. Where a file system has no such files, and for the
instant in which a name is moved onto an older file, it is a hidden neighbour. What a killed run
left of these, and of its temporary folders, goes with the next run: whoever is alive holds a lock
(flock) on his own, which the kernel drops when he dies.

Who may read a file is its owner's affair: what is written over keeps its mode and group, a new file gets those of the
umask. What is a link stays one: its target is written, be it there or not.

What is locked is always the thing itself, which libraries of lock files (filelock) cannot do: they lock a
file of their own, which stays beside the user's model, or, put elsewhere, is not seen by another user or
another machine that writes into the same folder.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pcns_onnx.errors import InputError

if sys.platform != "win32":
    import fcntl

GRACE = 60.0
"""Seconds that a folder is not taken for abandoned: between its birth and its lock."""
_RUN = "pcns-onnx.run-"
_BY_HANDLE = "/proc/self/fd"


def write_atomic(path: str | os.PathLike[str], content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write `content`, whole or in parts, and put it at `path`; raises `InputError` with nothing changed."""
    with staged(path, content) as place:
        place()


@contextmanager
def staged(
    path: str | os.PathLike[str], content: bytes | Iterable[bytes | memoryview], like: Path | None = None
) -> Iterator[Callable[[], None]]:
    """`content` on the disk of `path`, and a function that puts it there; without that call it is gone.

    A new file is as private as the file `like`, where there is one. Raises `InputError` where it cannot be written or
    placed.
    """
    target = written_through(path)
    with _refusing(target):
        _sweep_beside(target)
        handle, name = _nameless(target.parent), None
        if handle is None:
            handle, name = _named(target)
    hidden_name = [name]

    def place() -> None:
        with _refusing(target):
            hidden = hidden_name[0]
            if hidden is None:
                if not target.exists() and _link(handle, target):
                    return
                hidden_name[0] = hidden = _neighbour(target)
                _link(handle, hidden)
            os.replace(hidden, target)
            hidden_name[0] = None

    try:
        _lock(handle)
        with _refusing(target), open(handle, "wb", closefd=False) as file:
            _keep_mode(handle, target, like)
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(handle)
        yield place
    finally:
        if hidden_name[0] is not None:
            hidden_name[0].unlink(missing_ok=True)
        os.close(handle)


def written_through(path: str | os.PathLike[str]) -> Path:
    """The file that is written at `path`: where links lead to, whether it is there or not; raises `InputError`."""
    if not os.path.islink(path):
        return Path(path)
    target = os.path.realpath(path)
    if os.path.islink(target):
        raise InputError(f"cannot write '{path}': it is a link that leads back to itself")
    return Path(target)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other run is inside here for this folder: for files that belong together."""
    with _refusing(folder):
        handle = os.open(folder, os.O_RDONLY) if sys.platform != "win32" else None
    try:
        if handle is not None:
            _lock(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder; one whose run was killed goes when the next is made. Raises `InputError`."""

    def __init__(self) -> None:
        try:
            _sweep_folders(Path(tempfile.gettempdir()))
            super().__init__(prefix=_RUN)
        except OSError as error:
            raise InputError(f"no temporary folder ({error.strerror or error}): set TMPDIR to one with room") from None
        if sys.platform != "win32":
            handle = os.open(self.name, os.O_RDONLY)
            self._unlock = weakref.finalize(self, os.close, handle)
            _lock(handle)

    def cleanup(self) -> None:
        """Remove the folder with all that is in it."""
        super().cleanup()
        if sys.platform != "win32":
            self._unlock()


@contextmanager
def _refusing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write '{target}': {error.strerror or error}") from None


# -- files without a name ----------------------------------------------------------------------


def _nameless(folder: Path) -> int | None:
    """A file without a name in `folder`, None where the system has no such thing."""
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir(_BY_HANDLE):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:
        return None


def _link(handle: int, path: Path) -> bool:
    """Give a nameless file its name; False if there is a file of that name."""
    try:
        # Only with a folder's handle (not used, the path being absolute) does Python follow the link in /proc.
        os.link(f"{_BY_HANDLE}/{handle}", path, src_dir_fd=handle)
    except FileExistsError:
        return False
    return True


def _named(target: Path) -> tuple[int, Path]:
    """A hidden neighbour of `target`, with the permissions that a new file gets."""
    path = _neighbour(target)
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), path


def _keep_mode(handle: int, target: Path, like: Path | None) -> None:
    """Give a file the mode, group and owner of the one that it replaces; raises `OSError`.

    Where the group cannot be kept, another one may do no more than everybody.
    """
    model = next((path for path in (target, like) if path is not None and path.exists()), None)
    if model is None or sys.platform == "win32":
        return
    old = model.stat()
    for owner, group in ((-1, old.st_gid), (old.st_uid, -1)):
        with suppress(OSError):
            os.fchown(handle, owner, group)
    mode = old.st_mode & 0o777
    if os.fstat(handle).st_gid != old.st_gid:
        mode &= ~0o070 | (mode & 0o007) << 3
    os.fchmod(handle, mode)


def _neighbour(target: Path) -> Path:
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")


# -- what killed runs left ---------------------------------------------------------------------


def _lock(handle: int) -> None:
    if sys.platform != "win32":
        with suppress(OSError):  # some network file systems have no locks: then nobody sweeps there either
            fcntl.flock(handle, fcntl.LOCK_EX)


def _sweep_beside(target: Path) -> None:
    """Remove the hidden neighbours of `target` that no run holds any more."""
    pattern = re.compile(re.escape(f".{target.name[:40]}.") + r"[0-9a-f]{8}\.part")
    for path in target.parent.glob(f"{glob.escape(f'.{target.name[:40]}.')}*.part"):
        if pattern.fullmatch(path.name) and path.is_file() and _is_abandoned(path, age=0):
            path.unlink(missing_ok=True)


def _sweep_folders(folder: Path) -> None:
    for path in folder.glob(f"{_RUN}*"):
        if path.is_dir() and _is_abandoned(path, age=GRACE):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path, *, age: float) -> bool:
    """Whether something of ours, that nobody has touched for `age` seconds, is not locked."""
    if sys.platform == "win32":
        return False
    try:
        state = path.lstat()
        if path.is_symlink() or state.st_uid != os.geteuid() or time.time() - state.st_mtime < age:
            return False
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def check_targets(
    sources: Sequence[object], *targets: str | os.PathLike[str] | None, stats: str | os.PathLike[str] | None = None
) -> None:
    """Refuse outputs that cannot be written, or that are an input, before any work is done.

    `stats` are an input where they are there, else an output.
    """
    if stats is not None and os.path.exists(stats):
        sources = (*sources, stats)
    else:
        targets = (*targets, stats)
    taken = [Path(source) for source in sources if isinstance(source, str | os.PathLike)]
    for shown in (Path(target) for target in targets if target is not None):
        path = written_through(shown)
        try:
            if shown.exists() and not (shown.is_file() or shown.is_dir()):
                raise InputError(f"cannot write '{shown}': it is no regular file")
            if not path.parent.is_dir():
                raise InputError(f"cannot write '{shown}': there is no folder '{path.parent}'")
            if path.is_dir() or not os.access(path.parent, os.W_OK):
                raise InputError(f"cannot write '{shown}': it is a folder or its folder is read-only")
            if any(_is_same_file(path, other) for other in taken):
                raise InputError(f"cannot write '{shown}': it is an input or another output, choose another name")
        except (OSError, RuntimeError) as error:
            raise InputError(f"cannot write '{shown}': {error}") from None
        taken.append(path)


def _is_same_file(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))
