"""Killed, out of disk, without a folder, two at once: what is there is the old file or the new one, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pcns_onnx import InputError, shrink
from pcns_onnx import files as placing
from pcns_onnx.files import GRACE, Scratch, staged, write_atomic
from pcns_onnx.graph import Graph
from robustness.kills import Bench, kill, model, too_small_a_disk, write_external


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def old(path: Path) -> float:
    """Make something look as if its run had died a while ago."""
    then = time.time() - 2 * GRACE
    os.utime(path, (then, then))
    return then


# -- killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.02, 0.05, 0.11, 0.2])
def test_a_kill_in_the_middle_of_writing(bench: Bench, after: float) -> None:
    process = bench.saver()
    time.sleep(0.1)
    assert kill(process, after)
    bench.taken_up()
    assert bench.out.exists() and bench.faults() == []


def test_a_kill_of_the_command_leaves_the_old_model(bench: Bench) -> None:
    """It dies early, with everything still to come."""
    bench.out.write_bytes(bench.model.read_bytes())
    shutil.copy(bench.sources / "model.data", bench.place)
    before = {path.name: path.read_bytes() for path in bench.place.iterdir()}
    assert kill(bench.start([*bench.command, "--stats", str(bench.place / "stats.npz")]), 0.3)
    assert {path.name: path.read_bytes() for path in bench.place.iterdir()} == before


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    tool = Path(__file__).parents[2] / "tools" / "robustness" / "kills.py"
    done = subprocess.run([sys.executable, tool, "--kills", "50"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 kills" in done.stdout and ", 0 faults" in done.stdout


_HOLDER = """
import sys, time
from pcns_onnx.files import Scratch, _named, _lock
from pathlib import Path
scratch = Scratch()
handle, path = _named(Path(sys.argv[1]))
_lock(handle)
print(scratch.name, path, flush=True)
time.sleep(600)
"""


def test_what_a_killed_run_left_goes_with_the_next_but_not_what_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files have to have a name from the start, and for what is spilled to TMPDIR."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    target, other = tmp_path / "out.onnx", tmp_path / ".out.onnx.notes.part"
    other.write_bytes(b"somebody's")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    processes, held = [], []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(target)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        processes.append(process)
        held.append([Path(name) for name in process.stdout.readline().split()])
    try:
        processes[0].send_signal(signal.SIGKILL)
        processes[0].communicate()
        for path in (*held[0], *held[1], other):
            old(path)
        with Scratch() as mine:
            write_atomic(target, b"new")
            assert {path.name for path in (tmp_path / "tmp").iterdir()} >= {Path(mine).name, held[1][0].name}
        assert [path.exists() for path in (*held[0], *held[1])] == [False, False, True, True]
        assert target.read_bytes() == b"new" and other.exists()
    finally:
        processes[1].kill()
        processes[1].communicate()


@pytest.mark.parametrize("names", ["without", "with"])
@pytest.mark.parametrize("before", [None, b"old"], ids=["new", "replaced"])
def test_nothing_is_there_until_it_is_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, before: bytes | None
) -> None:
    if names == "with":
        monkeypatch.setattr(placing, "_nameless", lambda folder: None)
    path = tmp_path / "out"
    if before is not None:
        path.write_bytes(before)
    with staged(path, [b"a", b"b"]) as place:
        assert (path.read_bytes() if path.exists() else None) == before
        place()
        assert path.read_bytes() == b"ab"
    with staged(path, b"never"):
        pass
    assert path.read_bytes() == b"ab" and list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("placed", [False, True], ids=["data only", "both"])
def test_a_kill_in_the_exchange_of_two_files_is_made_good_by_the_next_save(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, placed: bool
) -> None:
    first = Graph.load(write_external(model(32, 1), bench.sources / "first.onnx"))
    first.save(bench.out)
    bench.digests |= {first.digest(), Graph.load(bench.model).digest()}
    child = os.fork()
    if child == 0:
        graph = Graph.load(bench.model)
        if placed:
            monkeypatch.setattr("os.unlink", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            monkeypatch.setattr(Path, "unlink", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        else:
            monkeypatch.setattr("os.replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        graph.save(bench.out)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (bench.place / ".out.onnx.todo").exists() and len([*bench.place.glob("*.data")]) == 2
    assert Graph.load(bench.out).digest() == (Graph.load(bench.model) if placed else first).digest()
    assert bench.taken_up() and bench.faults() == []


# -- no room, no folder ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 4096])
def test_a_file_size_limit_is_one_line_and_leaves_nothing(bench: Bench, size: int) -> None:
    blocks = -(-size // 512)
    command = ["sh", "-c", f'ulimit -f {blocks} && exec "$@"', "sh", *bench.command]
    done = subprocess.run(command, env=bench.environment, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("pcns-onnx: error: cannot write")
    assert not bench.out.exists() and bench.faults() == []


def test_a_disk_that_is_too_small_is_one_line_and_leaves_nothing(bench: Bench) -> None:
    done = too_small_a_disk(bench)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("no name space of our own to mount a small disk in")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and "No space left on device" in lines[0]
    assert set(lines[1:]) <= {"plan.json", "report.json"}


FOLDERS = {
    "vanished": ("shutil.rmtree(out)", "No such file or directory"),
    "a file now": ("shutil.rmtree(out); open(out, 'w').close()", "Not a directory"),
}


@pytest.mark.parametrize(("deed", "said"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_goes_away_in_mid_run_is_one_line(bench: Bench, deed: str, said: str) -> None:
    (bench.root / "vandal.py").write_text(
        "import os, shutil\nimport numpy as np\nout = os.environ['OUT']\n"
        f"def feeds():\n    yield dict(np.load(os.environ['DATA']))\n    if os.path.isdir(out):\n        {deed}\n"
    )
    environment = {**bench.environment, "OUT": str(bench.place), "DATA": str(bench.sources / "data.npz")}
    command = [part if not part.endswith("data.npz") else "vandal:feeds" for part in bench.command]
    done = subprocess.run(command, env=environment, cwd=bench.root, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0], done.stderr
    assert not bench.place.is_dir()


def test_a_read_only_folder_is_refused_before_any_work(bench: Bench) -> None:
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid", "65534", "--clear-groups", *bench.command]
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anywhere")
        for folder in (bench.root, *bench.root.parents[:2]):
            folder.chmod(0o755)
    else:
        command = bench.command
    bench.place.chmod(0o555)
    try:
        done = subprocess.run(command, env=bench.environment, capture_output=True, text=True)
    finally:
        bench.place.chmod(0o755)
    lacking = any(text in done.stderr for text in ("Permission denied", "ModuleNotFoundError"))
    if lacking and "read-only" not in done.stderr:
        pytest.skip("another user cannot even run the interpreter here")
    assert done.returncode == 2 and "its folder is read-only" in done.stderr and done.stderr.count("\n") == 1


def test_no_place_for_temporary_files_is_an_input_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"^no temporary folder \(.*\): set TMPDIR to one with room$"):
        Scratch()


# -- two at once -------------------------------------------------------------------------------


def test_two_runs_of_the_same_out_leave_one_whole_model(bench: Bench) -> None:
    """Each replaces the other's model, and takes away its data: never that of the model which is there."""
    processes = [bench.saver(), bench.saver()]
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        with suppress(InputError):  # the data can go between the model that names it and a look at it
            assert Graph.load(bench.out).digest() in bench.digests
    for process in processes:
        kill(process, 0)
    bench.taken_up()
    assert bench.faults() == []


# -- taken up again ----------------------------------------------------------------------------


@pytest.fixture
def killed_late(bench: Bench) -> Iterator[Bench]:
    """A run that has written its statistics, killed before it has written anything else."""
    process = bench.start([*bench.command, "--stats", str(bench.root / "stats.npz")])
    while not (bench.root / "stats.npz").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    yield bench


def test_a_run_killed_late_goes_on_from_its_statistics(killed_late: Bench) -> None:
    bench, stats = killed_late, killed_late.root / "stats.npz"
    assert not bench.out.exists() and bench.faults() == []
    before = stats.read_bytes()
    assert subprocess.run([*bench.command, "--stats", str(stats)], env=bench.environment).returncode == 0
    stages = json.loads((bench.place / "report.json").read_bytes())["stages"]
    assert "capture" not in stages and "re-fit" in stages
    assert stats.read_bytes() == before
    whole = shrink(bench.model, bench.sources / "data.npz", width=0.5, refine=0, threads=1)
    assert Graph.load(bench.out).digest() == Graph(whole.model).digest()
    assert np.isfinite(whole.report.agreement.error)
