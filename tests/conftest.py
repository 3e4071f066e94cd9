"""Fixtures that all tests share, and what holds around every test."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from builders.commands import Ran
from pcns_onnx.cli import main as cli
from pcns_onnx.errors import PcnsError
from pcns_onnx.runtime.engine import choose_engine

ON_DEMAND = ("slow", "gpu")
"""Marks of tests that run only where `-m` names them."""


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Skip what is run on demand, and what needs a device that is not there.

    A default `-m` among `addopts` would be overridden by any other on the command line, and with it what it leaves out.
    """
    named = set(re.findall(r"\w+", config.getoption("markexpr")))
    reasons = {mark: f"run with -m {mark}" for mark in ON_DEMAND if mark not in named}
    if "gpu" in named and any(item.get_closest_marker("gpu") for item in items) and (lacking := _no_cuda()):
        reasons["gpu"] = lacking
    for item in items:
        for mark, reason in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"{mark}: {reason}"))


def _no_cuda() -> str | None:
    """Why nothing runs on a CUDA device here; None where it does."""
    try:
        choose_engine("cuda", 1)
    except PcnsError as error:
        return str(error)
    return None


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded randomness."""
    return np.random.default_rng(0)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Call the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(*argv: object) -> Ran:
        capfd.readouterr()
        code = cli.main([str(arg) for arg in argv])
        shown = capfd.readouterr()
        return Ran(code, shown.out, shown.err)

    return call


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices are slower on many threads, the more so where other work runs beside."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What layers take is measured once per run of the tests, and never kept with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
