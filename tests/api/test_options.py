"""One field says all there is to know of an option: the command line, the checks and the docs are made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from builders.mlp import saved
from pcns_onnx import InputError
from pcns_onnx.api.options import FIELDS, RECORDS, Choices, Options, flag_of, options_page
from pcns_onnx.cli.main import cli, main

DOCS = Path(__file__).parents[2] / "docs" / "options.md"
KNOWN = {"help", "metavar", "commands", "least", "interval", "choices", "flag", "described", "optional"}


def test_fields_and_keywords_are_the_same() -> None:
    assert set(FIELDS) == Choices.__required_keys__ | Choices.__optional_keys__


def test_a_record_is_taken_in_at_a_glance() -> None:
    for record in RECORDS.values():
        assert len(record.__dataclass_fields__) <= 10


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_says_what_is_known_of_it(name: str) -> None:
    metadata = FIELDS[name][1].metadata
    assert metadata.keys() <= KNOWN and {"help", "commands"} <= metadata.keys()
    assert set(metadata["commands"].split()) <= set(cli.commands)


@pytest.mark.parametrize(
    "command",
    ["inspect", "advise", "shrink", "plan", "explore", "expand", "compare", "design", "diff", "heal", "quantize"],
)
def test_a_command_has_the_options_of_the_fields_that_name_it(command: str) -> None:
    shown = {name for one in cli.commands[command].params if isinstance(one, click.Option) for name in one.opts}
    expected = {
        flag_of(one).partition("/")[0] for _, one in FIELDS.values() if command in one.metadata["commands"].split()
    }
    assert expected <= shown


def test_keywords_find_their_record() -> None:
    options = Options.of(width=0.5, include="a*", refine=3, samples=7, threads=1, max_drop=2, report="r.json")
    assert (options.goal.width, options.scope.include, options.solving.refine) == (0.5, ("a*",), 3)
    assert (options.data.samples, options.runtime.threads, options.gates.max_drop) == (7, 1, 2)
    assert options.outputs.report == "r.json"
    assert {"width": "0.5", "include": "a*", "refine": "3", "samples": "7"}.items() <= options.described().items()
    assert "report" not in options.described()


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        Options.of(widht=0.5)


def test_docs_have_the_table_of_options() -> None:
    page = options_page()
    assert page in DOCS.read_text(), f"docs/options.md is out of date; between the markers it should be:\n{page}"


# -- --config ----------------------------------------------------------------------------------


def configured(folder: Path, text: str, *words: object) -> int:
    (folder / "c.toml").write_text(text)
    return main(["shrink", "--config", str(folder / "c.toml"), *map(str, words)])


def test_a_file_holds_all_options_of_a_command(tmp_path: Path) -> None:
    model, data = saved(tmp_path, count=60)
    out, again = tmp_path / "a.onnx", tmp_path / "b.onnx"
    words = ["--width", 0.5, "--no-coupled", "--refine", 0, "--exclude", "no*", "--seed", 3, "-o", out]
    text = f"model = '{model}'\ndata = '{data}'\nwidth = 0.5\ncoupled = false\nrefine = 0\nexclude = 'no*'\nseed = 3\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code = main(["shrink", str(model), "--data", str(data), *map(str, words)])
        assert configured(tmp_path, text, "-o", again) == code
    assert out.exists() is again.exists() is (code == 0)
    if code == 0:
        assert out.read_bytes() == again.read_bytes()


def test_the_command_line_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = saved(tmp_path, count=60)
    text = f"model = '{model}'\ndata = '{data}'\nwidth = 2.0\nrefine = 0\noutput = '{tmp_path / 'small.onnx'}'\n"
    assert configured(tmp_path, text) == 2
    assert "--width 2 is out of range" in capsys.readouterr().err
    assert configured(tmp_path, text, "--width", 0.5) == 0 and (tmp_path / "small.onnx").exists()


BAD: dict[str, tuple[str, str]] = {
    "unknown": ("widht = 0.5", "'widht' is no option of shrink: it has"),
    "of another command": ("frontier = true", "'frontier' is no option of shrink"),
    "table": ("[width]\nx = 1", "'width' is a table"),
    "list": ("width = [0.5]", "'width' takes one value, not a list"),
    "switch": ("int8 = 'yes'", "'int8' takes true or false"),
    "no switch": ("width = true", "'width' takes a value, not True"),
    "no TOML": ("width = ", "is not a TOML file"),
    "itself": ("config = 'other.toml'", "'config' is no option"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_file_cannot_say_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD[case]
    assert configured(tmp_path, text, "m.onnx", "-o", "o.onnx") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o.onnx").exists()


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--config", str(tmp_path / "none.toml"), "a", "b"]) == 2
    assert "cannot read --config" in capsys.readouterr().err


def test_values_of_a_record_are_checked_when_it_is_made() -> None:
    values: Any = {"holdout": 0.7}
    with pytest.raises(InputError, match=r"--holdout 0.7 is out of range: it is a fraction in \[0, 0.5\]"):
        Options.of(**values)
