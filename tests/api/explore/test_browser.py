"""The page in a real browser: clicks, keys, a real run, a reload in the middle of it, narrow and dark."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

from builders.models import MODELS
from builders.served import command
from pcns_onnx import explore
from pcns_onnx.report.explore.record import Exploration

BROWSER = shutil.which("chromium")
LACKING = [name for name in ("playwright", "starlette", "uvicorn") if find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian: apt-get install chromium)"),
    pytest.mark.skipif(bool(LACKING), reason=f"pip install {' '.join(LACKING)}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx and data.npz, and the page of both."""
    path = tmp_path_factory.mktemp("explored")
    shutil.copy(MODELS / "digits_cnn.onnx", path / "model.onnx")
    shutil.copy(MODELS / "digits_images.npz", path / "data.npz")
    return path


@pytest.fixture(scope="module")
def exploration(folder: Path) -> Exploration:
    return explore(folder / "model.onnx", folder / "data.npz", folder / "page.html", threads=1, samples=400)


def opened(browser: Any, address: str, wrong: list[str], **context: Any) -> Any:
    """A page in a context of its own; what goes wrong in it, and what it asks of others, is put down."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(120_000)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    base = address.rpartition("/")[0]
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(base) else None)
    page.goto(address)
    page.wait_for_selector("#play", state="visible")
    return page


def shown(page: Any) -> str:
    """The command line, as it is seen."""
    return " ".join(str(page.inner_text("#command")).split())


def widths(page: Any) -> list[int]:
    """The widths after, as the rows have them."""
    rows = page.locator(".group:not(.head) .number:nth-of-type(1)").all_inner_texts()
    return [int(text.partition("→")[2]) for text in rows]


def point_of(exploration: Exploration, page: Any) -> int:
    """The point that is chosen, by what the slider says."""
    return int(page.get_attribute("#frontier svg", "aria-valuenow")) - 1


def require_shown(exploration: Exploration, page: Any, index: int) -> None:
    """Widths, bars, command and tiles are those of a point."""
    point = exploration.points[index]
    assert point_of(exploration, page) == index
    assert widths(page) == [w * g.unit for w, g in zip(point.widths, exploration.groups, strict=True)]
    assert shlex.split(shown(page))[:-2] == shlex.split(point.command)
    bars = page.evaluate("[...document.querySelectorAll('.bar > div')].map(bar => parseFloat(bar.style.width))")
    shares = [100 * w / g.width for w, g in zip(point.widths, exploration.groups, strict=True)]
    assert bars == pytest.approx(shares, abs=0.01)
    assert f"{100 * point.costs['macs']:.1f} %" in page.inner_text("#tiles")


def test_a_click_on_a_point_shows_it(browser: Any, exploration: Exploration, folder: Path) -> None:
    wrong: list[str] = []
    page = opened(browser, (folder / "page.html").as_uri(), wrong)
    for index in (0, len(exploration.points) - 1, 3):
        page.locator("#frontier circle").nth(index).click()
        require_shown(exploration, page, index)
    page.select_option("#axis", "size")
    page.locator("#frontier circle").nth(2).click()
    require_shown(exploration, page, 2)
    page.locator(".group button", has_text="conv2").click()
    picked = page.locator(".box.picked")
    assert "conv2" in picked.first.text_content() and "64 channels" in page.inner_text("#box")
    page.locator(".box", has_text="/fc/Gemm").click()
    assert "keeps its width: it feeds the model's output" in page.inner_text("#box")
    assert wrong == []


def test_the_keyboard_is_enough(browser: Any, exploration: Exploration, folder: Path) -> None:
    wrong: list[str] = []
    address = (folder / "page.html").as_uri()
    page = opened(browser, address, wrong)
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('role') "
                                  "|| document.activeElement.textContent.trim()"))  # fmt: skip
        if seen[-1] == "slider":
            break
    start = point_of(exploration, page)
    page.keyboard.press("ArrowLeft")
    require_shown(exploration, page, start + 1)
    page.keyboard.press("Home")
    require_shown(exploration, page, len(exploration.points) - 1)
    page.keyboard.press("End")
    require_shown(exploration, page, 0)
    page.keyboard.press("ArrowRight")  # there is nothing beyond
    require_shown(exploration, page, 0)
    for wanted in ("copy", exploration.groups[0].name, "region"):
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("(wanted) => [document.activeElement.id, document.activeElement.getAttribute('role'), "
                             "document.activeElement.textContent.trim()].includes(wanted)", wanted):  # fmt: skip
                break
        else:
            raise AssertionError(f"{wanted} is not reached")
        if wanted == exploration.groups[0].name:
            page.keyboard.press("Enter")
            assert page.get_attribute(".group button >> nth=0", "aria-pressed") == "true"
    assert wrong == []


def test_the_command_is_copied(browser: Any, exploration: Exploration, folder: Path) -> None:
    wrong: list[str] = []
    page = opened(browser, (folder / "page.html").as_uri(), wrong)
    page.click("#copy")
    page.locator("#copied", has_text="cop").wait_for()
    point = exploration.points[point_of(exploration, page)]
    assert shlex.split(shown(page)) == [*shlex.split(point.command), "-o", point.output]
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out_and_colours_follow(
    browser: Any, exploration: Exploration, folder: Path, width: int, scheme: str
) -> None:
    wrong: list[str] = []
    address, size = (folder / "page.html").as_uri(), {"width": width, "height": 800}
    page = opened(browser, address, wrong, viewport=size, color_scheme=scheme)
    page.locator("summary").evaluate_all("all => all.forEach(one => { one.parentElement.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = page.evaluate(
        "(width) => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .graph, pre') && "
        "e.checkVisibility() && e.getBoundingClientRect().right > width + 1).map(e => e.tagName)", width
    )  # fmt: skip
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (beyond, paper) == ([], "rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 27)")
    assert wrong == []


def test_a_run_is_started_survives_a_reload_and_is_what_the_command_makes(browser: Any, folder: Path) -> None:
    wrong: list[str] = []
    words = ("model.onnx", "--data", "data.npz", "--threads", 1, "--samples", 400)
    with command(*words, folder=folder) as (address, _):
        page = opened(browser, address, wrong, viewport={"width": 360, "height": 800})
        page.focus("#frontier svg")
        page.keyboard.press("ArrowLeft")
        chosen = page.get_attribute("#frontier svg", "aria-valuenow")
        page.fill("#output", "my small one.onnx")
        line = shown(page)
        assert line.endswith("-o 'my small one.onnx'")
        page.focus("#run")
        page.keyboard.press("Enter")
        page.wait_for_selector("#cancel", state="visible")
        page.reload()
        page.wait_for_selector("#cancel", state="visible")
        assert page.get_attribute("#frontier svg", "aria-valuenow") == chosen
        assert shown(page) == line == " ".join(page.inner_text("#ran").split())
        page.wait_for_selector("#state.good")
        expected = widths(page)
        assert "wrote my small one.onnx" in page.inner_text("#result")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        small = onnx.load(folder / "my small one.onnx")
        shapes = {tensor.name: list(tensor.dims) for tensor in small.graph.initializer}
        kept = [shapes[node.input[1]][0] for node in small.graph.node if node.op_type == "Conv"]
        assert kept == expected
        page.fill("#output", "another.onnx")
        page.click("#run")
        page.click("#cancel")
        page.locator("#state", has_text="Cancelled").wait_for()
        assert not (folder / "another.onnx").exists()
    assert wrong == []


def test_a_page_without_its_server_says_so(browser: Any, folder: Path) -> None:
    words = ("model.onnx", "--data", "data.npz", "--threads", 1, "--samples", 400)
    with command(*words, folder=folder) as (address, process):
        page = opened(browser, address, [])
        process.terminate()
        process.wait(60)
        page.click("#run")
        page.locator("#state", has_text="does not answer").wait_for()
