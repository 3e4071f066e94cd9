"""Options of the commands: made from the fields of the records in `api.options`, or read from a file.

A command gets the options of every field that names it. `--config FILE.toml` holds any of a command's options and
arguments under the same names; what stands on the command line wins.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

import click

from pcns_onnx.api.options import FIELDS, flag_of, is_taken, kind_of, takes_many
from pcns_onnx.cli.console import Command
from pcns_onnx.errors import InputError
from pcns_onnx.methods.registry import CHOICES

DATA_HELP = "Samples: .npz, .npy, tables, images, texts, or module:function."

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")


def record_options(command: str) -> Callable[[Command], Command]:
    """Give a command the options of all fields that name it, in the order of the records."""

    def wrap(function: Command) -> Command:
        for _, one in reversed(list(FIELDS.values())):
            if is_taken(one, command):
                function = _option(one, command)(function)
        return function

    return wrap


def _option(one: Field[Any], command: str) -> Callable[[Command], Command]:
    texts: dict[str, Any] = {"help": _metadata(one, "help", command), "metavar": _metadata(one, "metavar", command)}
    flag, kind = flag_of(one), kind_of(one)
    if kind is bool and one.default is True:
        return click.option(flag, one.name, flag_value=False, default=None, type=bool, help=texts["help"])
    if kind is bool and one.default is False:
        return click.option(flag, one.name, is_flag=True, default=None, help=texts["help"])
    if kind is bool:
        return click.option(flag, one.name, default=None, help=texts["help"])
    if "optional" in one.metadata:
        return click.option(flag, one.name, type=kind, is_flag=False, flag_value=one.metadata["optional"], **texts)
    if one.name == "normalize":
        return click.option(flag, one.name, nargs=2, **texts)
    if takes_many(one):
        return click.option(flag, one.name, multiple=True, **texts)
    if one.name == "method" and command not in one.metadata["metavar"]:
        texts["metavar"] = "|".join(CHOICES)  # planning, which has the field, does not know the methods
    if "choices" in one.metadata and texts["metavar"] is None:
        texts["metavar"] = "|".join(one.metadata["choices"])
    return click.option(flag, one.name, type=kind if kind in (int, float) else str, **texts)


def _metadata(one: Field[Any], name: str, command: str) -> str | None:
    """What a field says to a command: the same to all, or by command."""
    value = one.metadata.get(name)
    return value.get(command, value[""]) if isinstance(value, Mapping) else value


def config_option(function: Command) -> Command:
    """Give a command `--config`."""
    return click.option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="Options of this command as a file; what is given here wins.",
    )(function)


def _read_config(context: click.Context, _: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    try:
        chosen = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read --config '{path}': {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config '{path}' is not a TOML file: {error}") from None
    known = {one.name: one for one in context.command.params if one.name and one.name not in ("config", "help")}
    values: dict[str, Any] = {}
    for key, value in chosen.items():
        name = {"json": "as_json"}.get(key, key.replace("-", "_"))
        if name not in known:
            names = ", ".join(sorted(_key(other) for other in known))
            raise InputError(f"--config '{path}': '{key}' is no option of {context.info_name}: it has {names}")
        values[name] = _value(known[name], value, f"--config '{path}': '{key}'")
    context.default_map = values


def _key(name: str) -> str:
    return "json" if name == "as_json" else name.replace("_", "-")


def _value(parameter: click.Parameter, value: Any, where: str) -> Any:
    """A value of a TOML file as click takes it; raises `InputError`."""
    many = getattr(parameter, "multiple", False)
    if isinstance(value, dict):
        raise InputError(f"{where} is a table: write its value in one line")
    if isinstance(value, list) and not many and parameter.nargs == 1:
        raise InputError(f"{where} takes one value, not a list")
    is_switch = isinstance(parameter, click.Option) and (parameter.is_flag or parameter.is_bool_flag)
    if isinstance(value, bool) is not is_switch:
        raise InputError(f"{where} takes {'true or false' if is_switch else 'a value'}, not {value!r}")
    if many and not isinstance(value, list):
        return [value]
    return value


def api_keywords(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was said on the command line (or in its file), in the API's types."""
    from pcns_onnx.runtime.memory import limit_process, parse_bytes

    keywords = {name: value for name, value in choices.items() if value is not None and value != ()}
    if "html" in keywords:
        keywords["command"] = shlex.join(["pcns-onnx", *click.get_current_context().obj])
    if "normalize" in keywords:
        from pcns_onnx.data.conform import Normalize

        keywords["normalize"] = Normalize.parse(*map(str, keywords["normalize"]))
    if "memory" in keywords:
        limit_process(parse_bytes(keywords["memory"]))
    return keywords


def epilog(paragraphs: list[str], exit_codes: str) -> str:
    """The table of methods and the exit codes, as help texts end."""
    return "\n\n".join(["Methods:", *paragraphs, exit_codes])
