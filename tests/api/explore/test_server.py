"""The page on this machine: whom it answers, what it runs, and how that ends."""

from __future__ import annotations

import http.client
import json
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from builders.mlp import mlp, saved
from builders.served import ROOT, command, served
from pcns_onnx import InputError, explore
from pcns_onnx.api.explore.server import PageServer
from pcns_onnx.cli.main import main
from pcns_onnx.report.explore.record import Exploration

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx and data.npz."""
    path = tmp_path_factory.mktemp("served")
    saved(path, mlp(widths=(6, 40, 24, 3)))
    return path


@pytest.fixture(scope="module")
def exploration(folder: Path) -> Exploration:
    return explore(folder / "model.onnx", folder / "data.npz", threads=1)


@pytest.fixture
def server(exploration: Exploration, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageServer]:
    """A server whose runs are of this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with served(exploration) as page:
        yield page


def asked(
    server: PageServer, path: str, body: object = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer; underscores in names of headers are hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    sent = {} if body is None else JSON
    data = body if body is None or isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, data, {**sent, **named})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


def told(server: PageServer, path: str, body: object = None) -> dict[str, Any]:
    status, _, text = asked(server, f"/{server.token}/{path}", body)
    assert status == 200, text
    record: dict[str, Any] = json.loads(text)
    return record


def over(server: PageServer) -> dict[str, Any]:
    """How a run is when it is over."""
    for thread in server.job.threads:
        thread.join(120)
    return told(server, "status")


def test_whoever_has_the_address_gets_the_page(server: PageServer) -> None:
    status, headers, text = asked(server, f"/{server.token}/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "Run it" in text and "http" not in headers.get("location", "")
    assert server.address == f"http://127.0.0.1:{server.port}/{server.token}/" and len(server.token) >= 32
    expected = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
    assert expected.items() <= headers.items() and "frame-ancestors 'none'" in headers["content-security-policy"]
    assert told(server, "status") == {"state": "idle"}


@pytest.mark.parametrize(
    "path", ["/", "/status", "/{token}x/", "/x{token}/", "//{token}/", "/%00/", "/é/", "/favicon.ico"]
)
def test_a_wrong_token_is_refused(path: str, server: PageServer) -> None:
    target = quote(path.format(token=server.token), safe="/%")
    for body in (None, {"point": 0, "output": "x.onnx"}):
        status, _, text = asked(server, target, body)
        assert status == 403 and server.token not in text
    assert told(server, "status") == {"state": "idle"}


@pytest.mark.parametrize("path", ["", "status", "run", "cancel"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.org"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1.example.org:{port}"},
        {"Origin": "http://example.org"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
    ],
    ids=lambda headers: " ".join(next(iter(headers.items()))),
)  # fmt: skip
def test_other_hosts_and_origins_are_refused(headers: dict[str, str], path: str, server: PageServer) -> None:
    stated = {name: value.format(port=server.port) for name, value in headers.items()}
    body = {"point": 0, "output": "x.onnx"} if path in ("run", "cancel") else None
    assert asked(server, f"/{server.token}/{path}", body, **stated)[0] == 403
    assert told(server, "status") == {"state": "idle"}


def test_its_own_names_and_a_link_that_leads_here_are_welcome(server: PageServer) -> None:
    path = f"/{server.token}/"
    assert asked(server, path, Host=f"localhost:{server.port}")[0] == 200
    own = f"http://127.0.0.1:{server.port}"
    assert asked(server, f"{path}status", Origin=own, Sec_Fetch_Site="same-origin")[0] == 200
    assert asked(server, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    posted = asked(server, f"{path}cancel", {}, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert posted[0] == 403


def test_it_is_not_heard_outside_this_machine(server: PageServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("{", "send JSON"), ([], "send the point"), ({}, "no such point"),
        ({"point": -1, "output": "x"}, "no such point"),
        ({"point": 999, "output": "x"}, "no such point"), ({"point": True, "output": "x"}, "no such point"),
        ({"point": 0}, "say where"), ({"point": 0, "output": " "}, "say where"),
        ({"point": 0, "output": 3}, "say where"),
        ({"point": 0, "output": "a\0b"}, "cannot be started"), ({"point": 0, "output": "\ud800"}, "cannot be started"),
        ({"point": 0, "output": "x" * 70_000}, "too much"), ("[" * 60_000, "send JSON"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_cannot_be_run_is_said_in_one_line(body: object, line: str, server: PageServer) -> None:
    status, _, text = asked(server, f"/{server.token}/run", body)
    assert status == 400 and line in json.loads(text)["error"]
    assert told(server, "status") == {"state": "idle"}


def test_a_form_of_another_page_could_not_run_anything(server: PageServer) -> None:
    body = json.dumps({"point": 0, "output": "x.onnx"})
    assert asked(server, f"/{server.token}/run", body, Content_Type="text/plain")[0] == 400
    assert asked(server, f"/{server.token}/run")[0] == 405


def test_the_command_that_is_shown_is_run(server: PageServer, exploration: Exploration, tmp_path: Path) -> None:
    out, by_hand = tmp_path / "a 'small' one.onnx", tmp_path / "by hand.onnx"
    started = told(server, "run", {"point": 4, "output": str(out)})
    assert (started["point"], started["path"]) == (4, str(out))
    assert shlex.split(started["command"]) == [*shlex.split(exploration.points[4].command), "-o", str(out)]
    ended = over(server)
    assert (ended["state"], ended["code"]) == ("done", 0), ended
    assert "g0" in ended["output"] and f"wrote {out}" in ended["output"]
    assert main([*shlex.split(exploration.points[4].command)[1:], "-o", str(by_hand), "-q"]) == 0
    assert out.read_bytes() == by_hand.read_bytes()


def test_a_run_that_fails_says_why(server: PageServer, tmp_path: Path) -> None:
    told(server, "run", {"point": 0, "output": str(tmp_path / "no" / "x.onnx")})
    ended = over(server)
    assert (ended["state"], ended["code"]) == ("failed", 2) and "no folder" in ended["latest"]


def slowed(folder: Path) -> str:
    """A source of samples that waits until it is interrupted."""
    (folder / "waiting.py").write_text("import threading\ndef samples():\n    threading.Event().wait(300)\n")
    return "waiting:samples"


@pytest.fixture
def waiting(
    exploration: Exploration, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PageServer]:
    """A server whose runs take until they are cancelled."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    source = slowed(tmp_path)
    line = exploration.points[0].command.replace(str(folder / "data.npz"), source)
    points = [msgspec.structs.replace(point, command=line) for point in exploration.points]
    with served(msgspec.structs.replace(exploration, points=points)) as page:
        yield page


def test_one_run_at_a_time_is_found_again_and_can_be_cancelled(waiting: PageServer, tmp_path: Path) -> None:
    told(waiting, "run", {"point": 2, "output": str(tmp_path / "x.onnx")})
    status, _, text = asked(waiting, f"/{waiting.token}/run", {"point": 0, "output": str(tmp_path / "y.onnx")})
    assert status == 400 and "a run is going on" in text
    again = told(waiting, "status")
    assert (again["state"], again["point"]) == ("running", 2)
    told(waiting, "cancel", {})
    ended = over(waiting)
    assert ended["state"] == "cancelled" and not list(tmp_path.glob("*.onnx"))
    told(waiting, "cancel", {})  # there is none any more


def test_a_run_does_not_outlive_its_server(waiting: PageServer, tmp_path: Path) -> None:
    told(waiting, "run", {"point": 2, "output": str(tmp_path / "x.onnx")})
    waiting.job.close()
    assert waiting.job.described()["state"] == "cancelled"


def test_without_samples_nothing_is_run(exploration: Exploration) -> None:
    with served(exploration, runs=False) as server:
        status, _, text = asked(server, f"/{server.token}/run", {"point": 0, "output": "x.onnx"})
        assert status == 400 and "--data" in text


def test_a_port_that_is_taken_is_said(exploration: Exploration) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="cannot listen on port"):
        PageServer(exploration, port=other.getsockname()[1])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_command_serves_until_it_is_ended(signum: int, code: int, folder: Path) -> None:
    words = ("model.onnx", "--data", "data.npz", "--threads", 1)
    with command(*words, folder=folder) as (address, process):
        host, _, rest = address.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", f"/{rest}")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (code, "")
