"""A good citizen: nothing behind the user's back, streams that fail, Ctrl-C at any moment, modes and links kept."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime
import pytest

from builders.commands import Ran
from builders.mlp import mlp, saved
from pcns_onnx import InputError, shrink
from pcns_onnx.cli import terminal
from pcns_onnx.files import check_targets, write_atomic
from pcns_onnx.progress import Watched

SMALL = "--width 0.5 --refine 0 --threads 1"
CODES = {0, 2, 3, 4, 130}
COMMAND = f"{shlex.quote(sys.executable)} -m pcns_onnx"


def bash(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx and data.npz."""
    path = tmp_path_factory.mktemp("manners")
    saved(path)
    return path


# -- telemetry ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["import pcns_onnx, onnxruntime", "from pcns_onnx.cli.main import main; main(['inspect', 'model.onnx',"
             " '--data', 'data.npz', '-q'])", "from pcns_onnx.runtime.engine import versions; versions()"],
    ids=["both", "inspect", "engine"],
)  # fmt: skip
def test_onnxruntime_leaves_nothing_in_the_users_home(line: str, folder: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    for home in (str(tmp_path), "/dev/null"):
        done = subprocess.run(
            [sys.executable, "-c", line], env={**environment, "HOME": home}, capture_output=True, text=True, cwd=folder
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "pcns-onnx" not in str(path)]


def test_what_the_user_says_of_telemetry_holds() -> None:
    code = "import os, pcns_onnx; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


# -- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "unbuffered"),
    [
        ("inspect model.onnx >&-", 0, ""),
        ("inspect model.onnx >/dev/full", 2, "1"),
        ("inspect model.onnx --json >/dev/full", 2, ""),
        ("--help >/dev/full", 2, ""),
        ("inspect model.onnx >/dev/null 2>&-", 0, ""),
        ("inspect nothing.onnx >&- 2>&-", 2, "1"),
        ("inspect nothing.onnx 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(line: str, code: int, unbuffered: str, folder: Path) -> None:
    done = bash(f"{COMMAND} {line}", folder, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code
    expected = "pcns-onnx: error: cannot write to stdout: No space left on device\n" if ">/dev/full" in line else ""
    assert done.stderr == (expected if code == 2 and "2>" not in line else "")


def test_a_reader_that_leaves_has_seen_enough(folder: Path) -> None:
    for line in ("inspect model.onnx", "inspect model.onnx --json"):
        done = bash(f"set -o pipefail; {COMMAND} {line} | head -1 >/dev/null", folder)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_model_that_is_written_is_kept_and_named(folder: Path) -> None:
    shrinking = f"{COMMAND} shrink model.onnx --data data.npz {SMALL} -o"
    done = bash(f"{shrinking} full.onnx >/dev/full", folder)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.endswith("No space left on device; wrote full.onnx")
    done = bash(f"set -o pipefail; {shrinking} head.onnx | true", folder)
    assert (done.returncode, done.stderr.count("error")) == (0, 0)
    assert (folder / "full.onnx").read_bytes() == (folder / "head.onnx").read_bytes()


def test_a_gate_speaks_though_nobody_reads(folder: Path) -> None:
    done = bash(
        f"{COMMAND} shrink model.onnx --data data.npz {SMALL} --max-error 1e-9 -o gated.onnx >/dev/full", folder
    )
    assert done.returncode == 4 and "gate failed" in done.stderr.splitlines()[-1]
    assert not (folder / "gated.onnx").exists()


def test_what_stdout_cannot_spell_is_escaped(folder: Path) -> None:
    done = bash(f"{COMMAND} inspect $'no\\xff \\u00e4.onnx'", folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "no such model file" in done.stderr and len(done.stderr.splitlines()) == 1


# -- Ctrl-C ------------------------------------------------------------------------------------

_IMPORTING = """
import builtins, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
real, pending = builtins.__import__, {names!r}
def importing(name, *rest, **named):
    if name == pending[0]:
        pending[0] = ""
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest, **named)
builtins.__import__ = importing
import sys
sys.argv = ["pcns-onnx", "shrink", "model.onnx", "--data", "data.npz", "--width", "0.5", "-o", "stopped.onnx"]
from pcns_onnx.__main__ import run
run()
"""


@pytest.mark.parametrize("name", ["click", "pcns_onnx.cli.shrink", "numpy", "onnx", "scipy.linalg", "msgspec"])
def test_ctrl_c_while_something_is_imported(name: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTING.format(names=[name])], capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pcns-onnx: error: interrupted\n")
    assert not (folder / "stopped.onnx").exists()


_WORKING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import pcns_onnx.api.shrink as api
real = api._check_files
def check(*rest):
    real(*rest)
    if {when}:
        os.kill(os.getpid(), signal.SIGINT)
api._check_files = check
sys.argv = ["pcns-onnx", "shrink", "model.onnx", "--data", "data.npz", "--width", "0.5", "-o", "stopped.onnx"]
from pcns_onnx.__main__ import run
run()
"""


@pytest.mark.parametrize("when", ["len(rest[0]) == 4", "len(rest[0]) == 0"], ids=["before", "within"])
def test_ctrl_c_while_it_works(when: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WORKING.format(when=when)], capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pcns-onnx: error: interrupted\n")
    assert not list(folder.glob("*stopped*"))


def test_an_interrupt_that_is_ignored_stays_so(folder: Path) -> None:
    """As in the background of a shell script."""
    code = _IMPORTING.format(names=["numpy"]).replace("signal.default_int_handler", "signal.SIG_IGN")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and "interrupted" not in done.stderr
    assert (folder / "stopped.onnx").exists()
    (folder / "stopped.onnx").unlink()


# -- a line a minute ---------------------------------------------------------------------------


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_silent_run_says_what_is_done_and_what_is_left() -> None:
    clock = Clock()
    progress = Watched(clock)
    assert progress.now() == "0 s: at work"
    with progress.stage("total"):
        items = progress.track(range(12), "re-fit", 12)
        for _ in range(4):
            next(items)
            clock.now += 40
        next(items)
        with progress.stage("refine"):
            assert progress.now() == "3 min: re-fit, 4 of 12, about 5 min left; refine"
        assert list(items) == list(range(5, 12))
        unknown = progress.track(iter("abc"), "capture", None)
        assert [next(unknown), next(unknown)] == ["a", "b"]
        clock.now += 7200
        assert progress.now() == "2 h 3 min: capture, 1 so far"
    assert set(progress.seconds) == {"total", "re-fit", "refine"} or "capture" in progress.seconds


@pytest.mark.parametrize(("options", "lines"), [({}, 2), ({"verbose": True}, 2), ({"quiet": True}, 0)], ids=str)
def test_a_line_a_minute_comes_on_stderr(
    options: dict[str, bool], lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = iter([False, False, True])
    real: Callable[..., Any] = terminal.told
    monkeypatch.setattr(terminal, "told", lambda progress: real(progress, lambda seconds: next(minutes)))
    with terminal.bars(**options) as progress, progress.stage("probe"):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["pcns-onnx"] * lines


def test_news_come_with_the_next_minute_and_are_not_told_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.bars() as progress:
        progress.say("expect a loss")
        assert progress.notices == []  # it is told with the report where the run takes less than a minute
        minutes = iter([False, False, True])
        with terminal.told(cast(Any, progress), lambda seconds: next(minutes)):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pcns-onnx: expect a loss" and len(lines) == 3 and progress.notices == ["expect a loss"]


# -- modes and links ---------------------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[None]:
    """That of most users."""
    old = os.umask(0o022)
    yield
    os.umask(old)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_what_is_written_over_keeps_its_mode(nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
    path = tmp_path / "private"
    write_atomic(path, b"old")
    assert mode(path) == 0o644
    for bits in (0o600, 0o640, 0o664, 0o755):
        path.chmod(bits)
        write_atomic(path, b"new")
        assert (mode(path), path.read_bytes()) == (bits, b"new")


@pytest.mark.usefixtures("umask")
def test_every_file_of_a_run_keeps_its_mode(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    outputs = ["small.onnx", "small.int8.onnx", "report.json", "plan.json", "stats.npz"]
    argv = ["shrink", model, "--data", data, *SMALL.split(), "-o", "small.onnx", "--int8", "--report", "report.json",
            "--plan-out", "plan.json"]  # fmt: skip
    assert run(*argv).code == 0
    for name in outputs[:-1]:
        assert mode(tmp_path / name) == 0o644
        (tmp_path / name).chmod(0o600)
    assert run(*argv).code == 0
    assert all(mode(tmp_path / name) == 0o600 for name in outputs[:-1])


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_is_written_through(there: bool, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    target, link = tmp_path / "models" / "v3", tmp_path / "current"
    if there:
        target.write_bytes(b"old")
        target.chmod(0o600)
    middle = tmp_path / "middle"
    middle.symlink_to("models/v3")
    link.symlink_to("middle")
    check_targets((), link)
    write_atomic(link, b"new")
    assert link.is_symlink() and middle.is_symlink() and target.read_bytes() == b"new"
    assert mode(target) == (0o600 if there else 0o644)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["current", "middle", "models", "v3"]


@pytest.mark.parametrize("chain", [["a"], ["a", "b"]], ids=["itself", "each other"])
def test_links_in_a_circle_are_one_line(chain: list[str], run: Callable[..., Ran], tmp_path: Path) -> None:
    for name, other in zip(chain, chain[1:] + chain[:1], strict=True):
        (tmp_path / name).symlink_to(other)
    model, data = saved(tmp_path)
    for option in ("-o", "-o small.onnx --report", "-o small.onnx --plan-out"):
        done = run("shrink", model, "--data", data, *SMALL.split(), *option.split(), "a")
        assert (done.code, done.out) == (2, "")
        assert done.err == "pcns-onnx: error: cannot write 'a': it is a link that leads back to itself\n"
    with pytest.raises(InputError, match="leads back to itself"):
        write_atomic(tmp_path / "a", b"")


def test_a_link_to_the_input_or_to_nowhere_is_refused(run: Callable[..., Ran], tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    (tmp_path / "input").symlink_to(model)
    (tmp_path / "nowhere").symlink_to("no/such/folder/model.onnx")
    (tmp_path / "pipe").symlink_to("/dev/null")
    for name, why in {"input": "it is an input", "nowhere": "there is no folder", "pipe": "no regular file"}.items():
        done = run("shrink", model, "--data", data, *SMALL.split(), "-o", name)
        assert done.code == 2 and why in done.err and len(done.err.splitlines()) == 1
        assert (tmp_path / name).is_symlink()


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("same_folder", [True, False], ids=["beside", "elsewhere"])
def test_a_model_with_a_data_file_behind_a_link(same_folder: bool, tmp_path: Path) -> None:
    """Runtimes find the data by the link's path and by its target's."""
    model, data = saved(tmp_path, mlp(widths=(6, 96, 64, 3)))
    whole = onnx.load(model)
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(whole, source / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    store = tmp_path / "serving" if same_folder else tmp_path / "store"
    for path in (tmp_path / "serving", store):
        path.mkdir(exist_ok=True)
    link, real = tmp_path / "serving" / "current.onnx", store / "v3.onnx"
    link.symlink_to(os.path.relpath(real, link.parent))
    for width in (0.5, 0.25):
        shrink(source / "m.onnx", str(data), link, width=width, refine=0, threads=1)
        assert link.is_symlink() and real.is_file()
        for path in (link, real):
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            assert shrink(path, str(data), width=0.5, refine=0, threads=1).report.before.bytes > 0
        assert len(list(store.glob("*.data"))) == 1
        assert len(list(link.parent.glob("*.data"))) == 1
        (kept,) = store.glob("*.data")
        assert mode(kept) == mode(real) == (0o644 if width == 0.5 else 0o600)
        real.chmod(0o600)


@pytest.mark.parametrize(("said", "seconds"), [("0.5", 0.5), ("", 60.0), ("often", 60.0), ("0", 60.0), ("nan", 60.0)])
def test_the_environment_says_how_often_a_run_tells_how_far_it_is(
    said: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PCNS_ONNX_PROGRESS", said)
    pauses: list[float] = []

    def wait(pause: float) -> bool:
        pauses.append(pause)
        return True

    with terminal.told(terminal._Minutes(), wait):
        pass
    assert pauses == [seconds]
