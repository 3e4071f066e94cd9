"""All that a caller may choose: the stages' own records, filled from flat keywords and checked from their metadata.

A field says once what it is: its type and default, and in its metadata `help`, `metavar`, the `commands` that take
it, its range (`least`, `interval`, `choices`), a `flag` of another name, and whether reports list it (`described`).
The command line, the range checks, what reports say of the choices and the docs' table are made from that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pcns_onnx.api.outputs import Outputs
from pcns_onnx.data.options import DataOptions, InputOptions
from pcns_onnx.dependency.options import Scope
from pcns_onnx.distillation.options import HealOptions
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.options import GateOptions
from pcns_onnx.methods.registry import method_named
from pcns_onnx.planning.budget import Goal
from pcns_onnx.reconstruction.options import SolveOptions
from pcns_onnx.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from pcns_onnx.data.conform import Normalize
    from pcns_onnx.data.sources import DataSource
    from pcns_onnx.evaluation.metric import Metric

_MOST = 2**31 - 1
_OPEN = ("eval", "plan", "metric", "multiple", "memory", "custom_ops", "normalize")
"""Fields of several types, which their own records look at."""


@dataclass(frozen=True)
class Options:
    """The records of all stages. `Options.of(width=0.5, seed=1)` sorts flat keywords into them by their names."""

    goal: Goal = field(default_factory=Goal)
    scope: Scope = field(default_factory=Scope)
    solving: SolveOptions = field(default_factory=SolveOptions)
    healing: HealOptions = field(default_factory=HealOptions)
    data: DataOptions = field(default_factory=DataOptions)
    inputs: InputOptions = field(default_factory=InputOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    gates: GateOptions = field(default_factory=GateOptions)
    outputs: Outputs = field(default_factory=Outputs)

    @classmethod
    def of(cls, **choices: Any) -> Options:
        """From flat keywords; raises `InputError` where a value is out of range, `TypeError` for unknown names."""
        unknown = choices.keys() - FIELDS.keys()
        if unknown:
            raise TypeError(f"unexpected keyword argument '{min(unknown)}': choose from {', '.join(FIELDS)}")
        checked = {name: _checked(FIELDS[name][1], value) for name, value in choices.items()}
        method_named(checked.get("method", Goal.method))
        records = {
            name: record(**{f.name: checked[f.name] for f in fields(record) if f.name in checked})
            for name, record in RECORDS.items()
        }
        return cls(**records)

    def described(self) -> dict[str, str]:
        """The choices that shape the result, as text, for reports."""
        values = {
            name: getattr(getattr(self, record), name)
            for name, (record, option) in FIELDS.items()
            if option.metadata.get("described", True)
        }
        return {
            name: ", ".join(value) if isinstance(value, tuple | Mapping) else str(value)
            for name, value in values.items()
            if value is not None and not (isinstance(value, tuple | Mapping) and not value)
        }


RECORDS: Mapping[str, type[Any]] = {
    "goal": Goal,
    "scope": Scope,
    "solving": SolveOptions,
    "healing": HealOptions,
    "data": DataOptions,
    "inputs": InputOptions,
    "runtime": RuntimeOptions,
    "gates": GateOptions,
    "outputs": Outputs,
}
"""The records by their names in `Options`."""


def _all_fields() -> Iterator[tuple[str, tuple[str, Field[Any]]]]:
    for name, record in RECORDS.items():
        yield from ((option.name, (name, option)) for option in fields(record))


FIELDS: Mapping[str, tuple[str, Field[Any]]] = dict(_all_fields())
"""By the name of a choice: its record's name and its field."""


def flag_of(option: Field[Any]) -> str:
    """How the command line names a field."""
    return str(option.metadata.get("flag", f"--{option.name.replace('_', '-')}"))


def is_taken(option: Field[Any], command: str) -> bool:
    """Whether a command takes this choice."""
    return command in option.metadata["commands"].split()


def takes_many(option: Field[Any]) -> bool:
    """Whether a field takes a list."""
    return "Sequence" in str(option.type)


def kind_of(option: Field[Any]) -> type | None:
    """The number that a field holds, str for other texts; None where it is of several types."""
    for name, kind in (("int", int), ("float", float), ("bool", bool)):
        if str(option.type) in (name, f"{name} | None"):
            return kind
    return None if option.name in _OPEN else str


def options_page() -> str:
    """The docs' tables of options, a section for each record."""
    sections = []
    for record in RECORDS.values():
        title = (record.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        rows = [_row(option) for option in fields(record) if option.metadata["commands"]]
        sections.append(
            "\n".join([f"## {title}", "", "| option | commands | default | meaning |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(sections)


def _row(option: Field[Any]) -> str:
    metavar, text = (option.metadata.get(name) or "" for name in ("metavar", "help"))
    metavar = metavar[""] if isinstance(metavar, Mapping) else metavar
    if not metavar and kind_of(option) in (int, float):
        metavar = "N" if kind_of(option) is int else "F"
    texts = (
        [f"{where}: {meaning}" if where else meaning for where, meaning in text.items()]
        if isinstance(text, Mapping)
        else [text]
    )
    default = "" if option.default in (None, (), False, True) else f"`{option.default}`"
    shown = f"`{flag_of(option)} {metavar}`".replace(" `", "`").replace("|", "\\|")
    commands = option.metadata["commands"].replace(" ", ", ")
    return f"| {shown} | {commands} | {default} | {'<br>'.join(texts)} |".replace("|  |", "| |")


def _checked(option: Field[Any], value: Any) -> Any:
    """A value as its record keeps it; raises `InputError` where it is not what the field takes."""
    name, facts = flag_of(option).partition("/")[0], option.metadata
    if "Mapping" in str(option.type) and isinstance(value, Mapping):
        return value
    if takes_many(option) and option.name != "custom_ops":
        texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{name} {value!r} is not understood: give a text or a list of texts")
        return texts
    if value is None and option.default is None:
        return None
    kind = kind_of(option)
    if option.name == "normalize" and type(value).__name__ != "Normalize":
        raise InputError(f"{name} {value!r} is not understood: it must be a pcns_onnx.Normalize(mean, std)")
    if kind is int and not isinstance(value, Integral):
        raise InputError(f"{name} {value!r} is not understood: it must be a whole number")
    if kind is float and not isinstance(value, Real):
        raise InputError(f"{name} {value!r} is not understood: it must be a number")
    if option.name in ("preprocess", "scheduler", "mask") and not isinstance(value, str):
        raise InputError(f"{name} {value!r} is not understood: give a text")
    if "choices" in facts and value not in facts["choices"]:
        choices = facts["choices"]
        raise InputError(f"{name} {value} is not understood: write {', '.join(choices[:-1])} or {choices[-1]}")
    if "least" in facts and value < facts["least"]:
        raise InputError(f"{name} {value} is too small: it must be at least {facts['least']}")
    if "least" in facts and value > _MOST:
        raise InputError(f"{name} {value} is too large: it must be at most {_MOST}")
    if "interval" in facts and not _is_inside(value, facts["interval"]):
        interval = facts["interval"]
        wanted = f"it must be {interval}" if "more" in interval else f"it is a fraction in {interval}"
        raise InputError(f"{name} {value:g} is out of range: {wanted}")
    return value


def _is_inside(value: float, interval: str) -> bool:
    """Whether a number lies in '(0, 1]', '[0, 0.5]' or '0 or more'; NaN never does."""
    if interval.endswith("or more"):
        return value >= float(interval.split()[0])
    low, high = (float(end) for end in interval[1:-1].split(","))
    return (value > low if interval[0] == "(" else value >= low) and value <= high


class Running(TypedDict, total=False):
    """Keyword arguments that say how to run a model; see `Options` for their meaning."""

    heads: str
    states: str
    caches: str
    shape: str | Sequence[str]
    samples: int
    batch_latency: int
    stats: str | Path
    batch: int
    normalize: Normalize
    preprocess: str
    constant: str | Sequence[str] | Mapping[str, Any]
    batch_axis: str | Sequence[str]
    carry: str | Sequence[str]
    decode: int
    mask: str
    seed: int
    device: str
    target: str
    threads: int
    memory: str | int
    custom_ops: str | Path | Sequence[str]


class Choices(Running, total=False):
    """Keyword arguments of `shrink`, `heal`, `inspect` and `compare`; see `Options` for their meaning."""

    method: str
    budget: str | Sequence[str]
    width: float
    variance: float
    plan: str | Path
    streams: str | float
    rotate_streams: str | float
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    multiple: str | int
    order: str
    refit: bool
    rank_ratio: float
    refine: int
    effort: str
    heal: int
    updates: int
    heal_batch: int
    heal_loss: str
    heal_augment: str
    heal_accept: str
    rounds: int
    freeze: str | Sequence[str]
    heal_curve: bool
    resume: bool
    coupled: bool
    depth: bool
    low_rank: bool
    holdout: float
    eval: DataSource
    trials: int
    max_error: float
    max_drop: float
    metric: str | Metric
    output_weight: str | Sequence[str]
    plan_out: str | Path
    report: str | Path
    html: str | Path
    command: str
    workers: int
    scheduler: str
    int8: bool
    fp16: bool
