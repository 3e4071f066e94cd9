"""Passes shared out to real worker processes: the same bytes for any number of them, whoever dies."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import psutil
import pytest

from builders.models import MODELS, Array
from builders.observers import OutputMoments
from pcns_onnx import ShrinkResult, shrink
from pcns_onnx.api.options import Choices, Options
from pcns_onnx.data.dataset import open_data
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.runtime.activations import Cut
from pcns_onnx.runtime.dask_executor import executor_for
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.executor import LocalExecutor
from pcns_onnx.runtime.samples import Samples

# Dask closes its sockets and loops a moment after it says that it has.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

T = TypeVar("T")
distributed: Any = importlib.import_module("distributed")


def images() -> Array:
    with np.load(MODELS / "digits_images.npz") as archive:
        return np.asarray(archive["input"])


def small(workers: int | None, progress: Progress | None = None, **more: Any) -> ShrinkResult:
    """A run over twelve batches, in eight shards."""
    choices: dict[str, Any] = {"width": 0.5, "refine": 3, "samples": 200, "batch": 16, "threads": 1, **more}
    if workers is not None:
        choices["workers"] = workers
    return shrink(MODELS / "digits_cnn.onnx", images(), progress=progress, **choices)


def weights(result: ShrinkResult) -> dict[str, Array]:
    graph = Graph.load(result.model)
    return {name: value for name in result_names(graph) if (value := graph.constant(name)) is not None}


def result_names(graph: Graph) -> list[str]:
    return list(dict.fromkeys(name for node in graph.nodes for name in node.inputs))


def assert_close(a: ShrinkResult, b: ShrinkResult) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(right[name], value, rtol=1e-6, atol=1e-6 * float(np.abs(value).max(initial=0.0)))


def children() -> list[psutil.Process]:
    """The worker processes of this one."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if "spawn_main" in line and "resource_tracker" not in line:
            found.append(child)
    return found


def test_shards_add_up_in_order() -> None:
    """One worker process: all batches, in order, with the moments of a single pass, over two stops of a tape."""
    graph, data = Graph.load(MODELS / "digits_cnn.onnx"), images()[:100]
    (middle,) = graph.node(graph.outputs[0].name).inputs[:1]
    found = []
    with executor_for(1, None) as executor:
        for who in (executor, LocalExecutor()):
            samples = Samples(open_data(data, graph.inputs), 9)
            streams = who.streams(Engine(threads=1), samples, Progress(), 1 << 20, 1)
            with_logits = Cut(graph, ["logits"], graph.producers[middle].key, ["logits"])
            first = streams.advance([with_logits], OutputMoments())
            found.append((first, streams.advance([Cut(graph, ["logits"])], OutputMoments(), "capture")))
            streams.close()
    assert not children()
    for one, other in zip(*found, strict=True):
        assert one.batches == other.batches == list(range(12))
        assert one.first == other.first
        assert one.moments.rows == other.moments.rows == 100
        np.testing.assert_allclose(one.moments.covariance, other.moments.covariance, rtol=1e-12)
        np.testing.assert_allclose(one.moments.mean_x, other.moments.mean_x, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["obs", "pcns"])
def test_one_worker_and_four_give_the_same_bytes(method: str) -> None:
    model = {"obs": "digits_cnn.onnx", "pcns": "digits_mlp_leaky.onnx"}[method]
    with np.load(MODELS / ("digits_images.npz" if method == "obs" else "digits_rows.npz")) as archive:
        data = np.asarray(archive["input"])
    choices: dict[str, Any] = {"method": method, "width": 0.5, "samples": 300, "batch": 16, "threads": 1}
    if method == "obs":
        choices["refine"] = 3
    alone = shrink(MODELS / model, data, **choices)
    one, four = (shrink(MODELS / model, data, **choices, workers=count) for count in (1, 4))
    assert msgspec.json.encode(one.plan) == msgspec.json.encode(four.plan)
    assert one.model.SerializeToString() == four.model.SerializeToString()
    assert {name: entry.keep for name, entry in one.plan.groups.items()} == {
        name: entry.keep for name, entry in alone.plan.groups.items()
    }
    assert_close(alone, one)


class Killing(Progress):
    """Kills one worker when the second layer is about to be solved, and one before the first batch is back."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        if title == "capture":
            self.kill()
        for at, item in enumerate(super().track(items, title, total)):
            if title == "re-fit" and at == 1:
                self.kill()
            yield item

    def kill(self) -> None:
        alive = [child for child in children() if child.pid not in self.killed]
        # The oldest: one that is only starting would not be replaced.
        oldest = min(alive, key=lambda child: child.create_time()).pid
        self.killed.append(oldest)
        os.kill(oldest, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_costs_time_and_not_the_result(workers: int) -> None:
    progress = Killing()
    killed = small(workers, progress)
    assert len(progress.killed) == 2
    whole = small(2)
    assert killed.model.SerializeToString() == whole.model.SerializeToString()
    assert killed.plan == whole.plan
    assert not children()


@pytest.mark.slow
def test_a_scheduler_is_reached_by_its_address_and_left_as_it_was() -> None:
    quiet = {"dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **quiet) as cluster:
        there = small(None, scheduler=cluster.scheduler_address)
        assert len(children()) == 2
        assert not cluster.scheduler.tasks
    assert there.model.SerializeToString() == small(1).model.SerializeToString()


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "tcp://", "8786"])
def test_a_scheduler_that_is_not_there_is_refused_in_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcns_onnx.runtime.dask_executor.SECONDS", 1.0)
    with pytest.raises(InputError, match="no Dask scheduler answers at") as caught, executor_for(None, address):
        pass
    assert "\n" not in str(caught.value)


def test_without_dask_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'pcns-onnx\[dask\]'"), executor_for(2, None):
        pass


@pytest.mark.slow
def test_errors_of_workers_are_those_of_the_run() -> None:
    """NaN that a model makes of one sample is traced as if there were no workers, and nobody is left behind."""
    graph = Graph.load(MODELS / "digits_cnn.onnx")
    bad = images()[:100]
    bad[70] = 3e38
    said, choices = [], Choices(width=0.5, batch=8, holdout=0.0, threads=1)
    for choice in (choices, Choices(**choices, workers=2)):
        with pytest.raises(InputError, match="at sample 70 of the data") as caught:
            shrink(graph.proto, bad, **choice)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert not children()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"workers": 0}, "--workers 0 is too small"),
        ({"workers": 1.5}, "a whole number"),
        ({"scheduler": 8786}, "give a text"),
        ({"workers": 1, "scheduler": "tcp://127.0.0.1:1"}, "give one of the two"),
    ],
)
def test_choices_are_checked(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Options.of(**choices)


def command(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


SHRINK: Sequence[object] = (
    "-m", "pcns_onnx", "shrink", MODELS / "digits_cnn.onnx", "--data", MODELS / "digits_images.npz", "--width", "0.5",
    "--refine", "0", "--samples", "100", "--threads", "1", "--workers", "2",
)  # fmt: skip


@pytest.mark.slow
def test_the_command_says_nothing_of_dask(tmp_path: Path) -> None:
    done = subprocess.run(command(*SHRINK, "-o", tmp_path / "o.onnx"), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    assert "distributed" not in done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]


@pytest.mark.slow
def test_ctrl_c_takes_the_workers_along(tmp_path: Path) -> None:
    words = command(*SHRINK, "-v", "-o", tmp_path / "o.onnx")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as started:
        assert started.stderr is not None
        assert started.stderr.readline().startswith("capture")
        family = psutil.Process(started.pid).children(recursive=True)
        os.killpg(started.pid, signal.SIGINT)
        said = started.stderr.read()
        assert started.wait(60) == 130
    assert said.strip() == "pcns-onnx: error: interrupted"
    assert len(family) > 2
    _, alive = psutil.wait_procs(family, 20)
    assert not alive
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    body = f"""
        from pcns_onnx import PcnsError, shrink
        try:
            shrink({str(MODELS / "digits_cnn.onnx")!r}, {str(MODELS / "digits_images.npz")!r}, width=0.5, workers=1)
        except PcnsError as error:
            print(error)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    done = subprocess.run(command(script), capture_output=True, text=True, timeout=120)
    assert "if __name__ == '__main__':" in done.stdout
    assert "Traceback" not in done.stderr
