"""The page that people read: everything in it, nothing run by it, at any width."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from builders.mlp import mlp, rows
from builders.models import MODELS, run
from pcns_onnx import GateError, InputError, UnsupportedError, compare, shrink
from pcns_onnx.planning.plan import SkippedLayer
from pcns_onnx.report.html.figures import pictures
from pcns_onnx.report.html.headline import answers
from pcns_onnx.report.html.page import page
from pcns_onnx.report.schema import GroupInfo, Report

NASTY = """<script>alert("x")</script>&'$\\frac{1}$</svg>\n\t\x07中文"""
BROWSER = shutil.which("chromium")
CNN, IMAGES = str(MODELS / "digits_cnn.onnx"), str(MODELS / "digits_images.npz")


class Elements(HTMLParser):
    """What a page consists of, as a parser sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str, Path]:
    """The convolutional reference model at half its MACs: report, page, folder."""
    folder = tmp_path_factory.mktemp("page")
    report = shrink(
        CNN, IMAGES, folder / "small.onnx", budget="macs=0.5", refine=0, threads=1, seed=3,
        html=folder / "report.html", plan_out=folder / "plan.json", command="pcns-onnx shrink 'a b'",
    ).report  # fmt: skip
    return report, (folder / "report.html").read_text(), folder


def hostile(report: Report) -> Report:
    """The same report with names that anyone may have chosen."""
    groups = [msgspec.structs.replace(group, name=NASTY + group.name) for group in report.groups]
    left = [SkippedLayer(NASTY, NASTY)]
    assert report.origin is not None
    origin = msgspec.structs.replace(report.origin, command=NASTY, hashes={NASTY: NASTY})
    outputs = [msgspec.structs.replace(output, name=NASTY) for output in report.agreement.outputs]
    return msgspec.structs.replace(
        report, groups=groups, left_alone=left, warnings=[NASTY], options={NASTY: NASTY}, versions={NASTY: NASTY},
        origin=origin, agreement=msgspec.structs.replace(report.agreement, outputs=outputs),
    )  # fmt: skip


def test_the_page_has_what_the_report_has(shrunk: tuple[Report, str, Path]) -> None:
    report, text, _ = shrunk
    words = " ".join(Elements(text).texts)
    for group in report.groups:
        assert group.name in words
    for item in report.left_alone:
        assert item.name in words
        assert item.reason in words
    assert report.origin is not None
    for said in (f"{report.after.macs:,}", "pcns-onnx shrink 'a b'", "seed 3", report.origin.provider,
                 *report.origin.hashes.values(), *report.versions.values()):  # fmt: skip
        assert said in words
    for sample in report.agreement.outputs[0].worst:
        assert f"{sample.error:.4f}" in words
    assert Elements(text).tags.count("svg") == 6


def test_the_answer_comes_before_the_pictures(shrunk: tuple[Report, str, Path]) -> None:
    report, text, _ = shrunk
    saved = 100 * (1 - report.after.macs / report.before.macs)
    assert text.index(f"{saved:.1f} % fewer multiply-adds", text.index("<h1>")) < text.index("<svg")


def test_the_tiles_say_what_the_verdict_says(shrunk: tuple[Report, str, Path]) -> None:
    report, text, _ = shrunk
    words = " ".join(Elements(text).texts)
    for before, after in ((report.before.macs, report.after.macs), (1.0, report.latency.ratio)):
        assert f"{100 * (after / before - 1):+.1f} %".replace("-", "\N{MINUS SIGN}") in words
    untimed = msgspec.structs.replace(report, latency=msgspec.structs.replace(report.latency, ratio=float("nan")))
    assert ("latency", "not known") in [tile[:2] for tile in answers(untimed)]


def test_models_in_fewer_bits_are_on_the_page(tmp_path: Path) -> None:
    report = shrink(
        CNN, IMAGES, tmp_path / "small.onnx", width=0.5, refine=0, threads=1, samples=200, int8=True, fp16=True,
        html=tmp_path / "report.html",
    ).report  # fmt: skip
    text = (tmp_path / "report.html").read_text()
    assert {made.kind for made in report.precisions} == {"int8", "fp16"}
    for made in report.precisions:
        row = next(line for line in text.splitlines() if f"shrunk, {made.kind}" in line)
        for said in (f"{made.bytes:,}", f"{made.on_top:.3f}", f"{made.agreement.error:.4f}"):
            assert f">{said}<" in row


def test_hashes_are_those_of_the_files(shrunk: tuple[Report, str, Path]) -> None:
    report, _, folder = shrunk
    assert report.origin is not None
    files: dict[str, str | Path] = {"model": CNN, "data": IMAGES, "plan": folder / "plan.json"}
    assert report.origin.hashes == {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in files.items()
    }


def test_the_chosen_point_lies_on_the_frontier(shrunk: tuple[Report, str, Path]) -> None:
    report, *_ = shrunk
    assert report.chosen is not None
    assert report.chosen in report.frontier  # a budget of a half is one of its steps
    errors = [point.error for point in report.frontier]
    assert errors == sorted(errors)


def test_eigenvalues_are_shares_and_curves_reach_full_width(shrunk: tuple[Report, str, Path]) -> None:
    for group in shrunk[0].groups:
        assert group.eigenvalues is not None
        assert group.curve is not None
        assert sum(group.eigenvalues) == pytest.approx(1)
        assert group.eigenvalues == sorted(group.eigenvalues, reverse=True)
        assert len(group.curve) == group.width + 1


def test_every_run_was_timed_and_its_medians_are_those_reported(shrunk: tuple[Report, str, Path]) -> None:
    latency = shrunk[0].latency
    assert len(latency.times_a) == len(latency.times_b) == latency.rounds
    assert np.median(latency.times_a) == pytest.approx(latency.seconds_a)
    assert np.median(latency.times_b) == pytest.approx(latency.seconds_b)


def test_worst_samples_are_those_with_the_largest_errors(tmp_path: Path) -> None:
    a = mlp()
    b = onnx.ModelProto()
    b.CopyFrom(a)
    weight = onnx.numpy_helper.to_array(b.graph.initializer[0]).copy()
    b.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight * 1.1, b.graph.initializer[0].name))
    x = rows(50)
    x[17] *= 30  # tanh is bent: here they differ as nowhere else
    found = compare(a, b, x, threads=1).agreement.outputs[0]
    errors = [sample.error or 0.0 for sample in found.worst]
    assert errors == sorted(errors, reverse=True)
    left, right = (run(model, x) for model in (a, b))
    distances = np.linalg.norm(left - right, axis=1)
    assert found.worst[0].sample == int(distances.argmax())
    assert errors[0] / errors[-1] == pytest.approx(distances.max() / distances[found.worst[-1].sample], rel=1e-3)


def test_names_are_text_and_nothing_else(shrunk: tuple[Report, str, Path]) -> None:
    plain, nasty = Elements(page(shrunk[0])), Elements(page(hostile(shrunk[0])))
    # The names of the layers are drawn and listed as before, in as many elements.
    assert set(nasty.tags) <= set(plain.tags) | {"p", "span"}
    assert "script" not in nasty.tags
    assert not [name for name, _ in nasty.attributes if name.startswith("on")]
    assert any("alert(" in text for text in nasty.texts)
    # Each text that has it is the whole of it, tags included: nothing was taken for markup.
    listed = [text for text in nasty.texts if "</script>" in text]
    assert len(listed) >= 8


def test_nothing_is_fetched_and_nothing_is_run(shrunk: tuple[Report, str, Path]) -> None:
    _, text, _ = shrunk
    found = Elements(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    assert all(value is None or value.startswith("#") for name, value in found.attributes if name.endswith("href"))
    assert not [name for name, _ in found.attributes if name in ("src", "srcset")]
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)\)", text))
    assert "default-src 'none'" in text


def test_pictures_take_their_colours_from_the_page(shrunk: tuple[Report, str, Path]) -> None:
    svgs = re.findall(r"<svg.*?</svg>", shrunk[1], re.DOTALL)
    for svg in svgs:
        assert "var(--line)" in svg
        assert "#0101" not in svg
    assert len({svg for svg in svgs}) == len(svgs)
    ids = re.findall(r' id="([^"]*)"', " ".join(svgs))
    assert len(ids) == len(set(ids))


def test_runs_that_something_else_slowed_are_counted_and_not_drawn(shrunk: tuple[Report, str, Path]) -> None:
    def drawn(*times: float) -> tuple[str, str]:
        latency = msgspec.structs.replace(shrunk[0].latency, times_a=[2.0, 2.1, 2.0, *times], times_b=[1.0, 1.0, 1.1])
        report = msgspec.structs.replace(shrunk[0], latency=latency)
        return next((words, svg) for title, words, svg in pictures(report) if title.startswith("Latency"))

    calm, busy, busier = drawn(), drawn(50.0, 2.0), drawn(5000.0, 2.0)
    assert "left out" not in calm[0]
    assert "1 that took over 3 medians" in busy[0]
    assert busy == busier


def test_the_same_report_gives_the_same_page(shrunk: tuple[Report, str, Path]) -> None:
    assert page(shrunk[0]) == page(shrunk[0])


def test_a_failed_gate_is_said_and_the_page_is_written(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        shrink(
            mlp(), rows(), tmp_path / "small.onnx", width=0.3, max_error=1e-9, refine=0, threads=1,
            html=tmp_path / "report.html",
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "max-error" in (tmp_path / "report.html").read_text()
    assert "FAILED" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("method", ["pcns", "eigenremove"])
def test_methods_that_do_not_rank_have_a_page_too(tmp_path: Path, method: str) -> None:
    data = rows() if method == "pcns" else None
    report = shrink(mlp(), data, method=method, width=0.5, html=tmp_path / "r.html", threads=1).report
    assert report.frontier == []
    assert all((group.eigenvalues is not None) == (method == "pcns") for group in report.groups)
    assert report.groups[0].name in (tmp_path / "r.html").read_text()


def test_compare_has_a_page(tmp_path: Path) -> None:
    compare(mlp(), mlp(), rows(), html=tmp_path / "r.html", threads=1)
    assert "as many multiply-adds" in (tmp_path / "r.html").read_text()


def test_many_layers_are_drawn_in_part_and_listed_in_whole(shrunk: tuple[Report, str, Path]) -> None:
    one: GroupInfo = shrunk[0].groups[0]
    many = [msgspec.structs.replace(one, name=f"layer {i}.") for i in range(300)]
    text = page(msgspec.structs.replace(shrunk[0], groups=many))
    assert all(f"<td>layer {i}.</td>" in text for i in range(300))
    assert len(text) < 1_000_000


def test_a_page_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "r.txt", "name it"), (tmp_path / "no" / "r.html", "no folder")):
        with pytest.raises(InputError, match=said):
            shrink(mlp(), rows(), tmp_path / "small.onnx", width=0.5, html=path)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r"matplotlib.*pcns-onnx\[html\]"):
        shrink(mlp(), rows(), width=0.5, html=tmp_path / "r.html")


# -- in a browser ------------------------------------------------------------------------------

PROBE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0"><script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
const frame = document.createElement("iframe");
frame.style = "border:0;height:2000px;width:WIDTHpx";
frame.srcdoc = PAGE;
frame.onload = () => {
  const inner = frame.contentDocument, view = frame.contentWindow;
  const room = () => inner.documentElement.clientWidth;
  const wide = () => inner.documentElement.scrollWidth - room();
  const cut = () => [...inner.querySelectorAll("svg text")].filter(e => {
    const mine = e.getBoundingClientRect(), all = e.closest("svg").getBoundingClientRect();
    return mine.left < all.left - 2 || mine.right > all.right + 2 || mine.bottom > all.bottom + 2;
  }).map(e => e.textContent);
  const beyond = () => [...inner.querySelectorAll("body *")].filter(e => !e.closest(".scroll") &&
    e.checkVisibility() && e.getBoundingClientRect().right > room() + 1).map(e => e.tagName);
  const states = [];
  for (let round = 0; round < 2; round++)
    for (const summary of inner.querySelectorAll("summary")) {
      const details = summary.parentElement, before = details.open;
      summary.click();
      states.push({toggled: details.open !== before, wide: wide(), beyond: beyond(), cut: cut()});
    }
  const style = view.getComputedStyle(inner.body);
  const seen = JSON.stringify({states, errors, width: view.innerWidth, ink: style.color, paper: style.backgroundColor});
  document.body.innerHTML = "";
  document.body.dataset.found = seen;
};
document.body.append(frame);
</script>"""


def opened(text: str, width: int, folder: Path, *flags: str) -> dict[str, object]:
    """Open a page in headless Chromium, click every summary twice, and measure."""
    assert BROWSER is not None
    probe = folder / f"probe{width}.html"
    literal = json.dumps(text).replace("<", "\\u003c")
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", literal))
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
            "--window-size=1400,2000", "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", *flags,
            probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    held = re.search(r'data-found="([^"]*)"', done.stdout)
    assert held is not None, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, object] = json.loads(html.unescape(held[1]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_in_a_browser_nothing_overflows_and_no_script_fails(
    shrunk: tuple[Report, str, Path], width: int, kind: str, tmp_path: Path
) -> None:
    text = shrunk[1] if kind == "plain" else page(hostile(shrunk[0]))
    found = opened(text, width, tmp_path)
    assert found["width"] == width
    assert found["errors"] == []
    states = found["states"]
    assert isinstance(states, list)
    assert len(states) == 2 * text.count("<summary>")
    for state in states:
        assert state == {"toggled": True, "wide": 0, "beyond": [], "cut": []}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
def test_dark_mode_turns_ink_and_paper(shrunk: tuple[Report, str, Path], tmp_path: Path) -> None:
    light = opened(shrunk[1], 800, tmp_path)
    dark = opened(shrunk[1], 800, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(18, 22, 27)"
    assert light["ink"] != dark["ink"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here (Debian: apt-get install chromium)")
def test_the_probe_sees_what_overflows(tmp_path: Path) -> None:
    wide = "<!DOCTYPE html><details><summary>s</summary><div style='width:900px'>wide</div></details>"
    found = opened(wide, 360, tmp_path)
    assert isinstance(found["states"], list)
    assert found["states"][0]["wide"] > 0
    assert "DIV" in found["states"][0]["beyond"]
