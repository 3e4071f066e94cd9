"""How small: the goal that a caller sets, and the budgets that it may be made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pcns_onnx.cost.resources import QUALITIES, RESOURCES, Resource
from pcns_onnx.errors import InputError

EVEN = "even"
"""What `--streams` says where shared channels stay, and all others get about the same share of their width."""
_KINDS = {**RESOURCES, **QUALITIES}


@dataclass(frozen=True)
class Budget:
    """A limit that the shrunk model must keep.

    On costs (`RESOURCES`): the fraction of the original's that may be left. On quality
    (`QUALITIES`), on samples that were not solved on: 'error', the relative L2 error of any output, and
    'drop', the points of accuracy (or metric) that may be lost.
    """

    resource: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """'macs=0.5' -> Budget; raises `InputError`."""
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = float("nan")
        if name not in _KINDS or not 0 < limit <= _KINDS[name].most:
            costs, qualities = ([r.example for r in rows.values()] for rows in (RESOURCES, QUALITIES))
            raise InputError(
                f"budget '{text}' is not understood: write {', '.join(costs[:-1])} or {costs[-1]}, fractions in "
                f"(0, 1], {' or '.join(qualities)}"
            )
        return cls(name, limit)

    @property
    def kind(self) -> Resource:
        """The row of what is limited."""
        return _KINDS[self.resource]

    @property
    def is_cost(self) -> bool:
        """Whether it limits a cost, not the quality."""
        return self.kind.is_cost

    def __str__(self) -> str:
        return f"{self.resource}={self.limit:g}"


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _metavar(rows: dict[str, Resource], letter: str) -> str:
    return "|".join(f"{name}={letter}" for name in rows)


@dataclass(frozen=True)
class Goal:
    """How small, by which method, on which grid of widths.

    Exactly one of `budget` ('macs=0.5', 'params=0.4' or a list: all must hold), `width` (fraction of every hidden
    width), `variance` (share of the activations' variance to keep) and `plan` (a file made by `plan_out`) says how
    small. `rank_ratio` in (0, 1]: the share of each rank that 'eigenremove' keeps. `streams`: how much more the error
    of channels that several blocks share counts where a budget is spent ('auto': found by trial; 'even': they stay, and
    all others keep about the same share). `rotate_streams`: how wide residual streams are behind a rotation ('48', a
    width, or '0.75', a share), which may be all that is asked for. `stats`: a file that keeps what was seen of the
    data, for other budgets.
    """

    method: str = field(
        default="auto",
        metadata={
            "commands": "shrink plan explore",
            "metavar": {"": "NAME", "plan": "obs|interpolative", "explore": "obs|interpolative"},
            "help": {
                "": "How to choose and solve (auto: obs); see below.",
                "explore": "How channels are chosen: obs (auto) or interpolative.",
                "plan": "How channels are chosen: obs (auto) or interpolative.",
            },
        },
    )
    budget: str | Sequence[str] = field(
        default=(),
        metadata={
            "commands": "shrink plan",
            "metavar": {
                "": f"{_metavar(RESOURCES, 'F')}|error=E|drop=P",
                "plan": _metavar(RESOURCES, "F"),
            },
            "help": {
                "": "What may be left of a cost (a fraction of the original), or be lost: relative error of an output, "
                "points of accuracy. Repeatable, all must hold.",
                "plan": "Fraction that may be left.",
            },
        },
    )
    width: float | None = field(
        default=None,
        metadata={
            "commands": "shrink plan",
            "interval": "(0, 1]",
            "help": "Fraction of every hidden width to keep.",
        },
    )
    variance: float | None = field(
        default=None,
        metadata={
            "commands": "inspect shrink",
            "interval": "(0, 1]",
            "help": {
                "": "Share of every layer's variance to keep, 0.999 say.",
                "inspect": "Count the eigenvectors that reach this share of the variance, too.",
            },
        },
    )
    plan: str | Path | None = field(
        default=None, metadata={"commands": "shrink", "metavar": "PLAN.json", "help": "Replay a plan."}
    )
    multiple: str | int = field(
        default="auto",
        metadata={
            "commands": "shrink plan advise explore",
            "metavar": "auto|N",
            "help": {
                "": "Widths are multiples of N (auto: what the kernels of --target like).",
                "plan": "Widths are multiples of N (auto: as timed on this machine).",
            },
        },
    )
    rank_ratio: float | None = field(
        default=None,
        metadata={
            "commands": "shrink",
            "interval": "(0, 1]",
            "help": "eigenremove: the share of each rank that is kept, 0.75 by default (1 is min-weight). Graham's "
            "rules of thumb: above 0.5 for small changes, late in training or after it; below 0.5 for drastic ones "
            "with training to follow (about how often, the thesis says both).",
        },
    )
    streams: str | float = field(
        default="auto",
        metadata={
            "commands": "shrink plan explore",
            "metavar": "auto|even|W",
            "help": "With a budget: how much more the error of channels counts that several blocks share; even: they "
            "stay, and all other layers get about the same share of their width (auto: found by trial).",
        },
    )
    rotate_streams: str | float | None = field(
        default=None,
        metadata={
            "commands": "shrink plan",
            "metavar": "WIDTH|SHARE",
            "help": "Narrow residual streams of pre-norm transformers to WIDTH channels, or a SHARE of them (0.75), by "
            "a rotation, before all else (SliceGPT): alone, or beside a budget or a width for the rest.",
        },
    )
    stats: str | Path | None = field(
        default=None,
        metadata={
            "commands": "shrink plan explore",
            "metavar": "FILE",
            "help": "Statistics of the data, kept in this file: other budgets then need no pass over it.",
            "described": False,
        },
    )

    def __post_init__(self) -> None:
        for text in self.budgets:
            Budget.parse(text)
        object.__setattr__(self, "multiple", str(self.multiple))
        object.__setattr__(self, "streams", str(self.streams))
        if self.rotate_streams is not None:
            object.__setattr__(self, "rotate_streams", str(self.rotate_streams))
            self.rotated_width(1)
        if self.streams not in ("auto", EVEN) and not _is_positive(str(self.streams)):
            raise InputError(f"--streams {self.streams} is not understood: write auto, even or a number above 0")
        if self.multiple != "auto" and not (str(self.multiple).isdecimal() and int(self.multiple) > 0):
            raise InputError(f"--multiple {self.multiple} is not understood: write auto or a whole number from 1")

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets as a tuple of texts."""
        return tuple(self.budget)

    @property
    def costs(self) -> tuple[Budget, ...]:
        """The budgets that limit a cost."""
        return tuple(b for b in map(Budget.parse, self.budgets) if b.is_cost)

    @property
    def qualities(self) -> tuple[Budget, ...]:
        """The budgets that limit what is lost."""
        return tuple(b for b in map(Budget.parse, self.budgets) if not b.is_cost)

    @property
    def needs_times(self) -> bool:
        """Whether layers have to be timed: a budget is on what is timed, or the fastest model is sought."""
        return any(b.kind.is_timed for b in self.costs) or bool(self.qualities)

    @property
    def limits(self) -> tuple[str, ...]:
        """The budgets and the width in short."""
        width = () if self.width is None else (f"width={self.width:.4g}",)
        return (*(f"{b.resource}={b.limit:.4g}" for b in map(Budget.parse, self.budgets)), *width)

    @property
    def undivided(self) -> str | None:
        """What it asks for that cannot be divided over several steps."""
        ways = {
            "--rotate-streams": self.rotate_streams,
            "--plan": self.plan,
            "--variance": self.variance,
            "--budget error or drop": self.qualities or None,
        }
        return next((name for name, value in ways.items() if value is not None), None)

    @property
    def asks_nothing(self) -> bool:
        """Whether the whole model meets it."""
        return self.width in (None, 1.0) and all(b.limit >= 1.0 for b in map(Budget.parse, self.budgets))

    def step(self, left: Mapping[str, float], share: float) -> Goal:
        """The goal of one of several steps, in fractions of a model that has `left` of the original's costs (and of
        its 'width'): `share` of the way from there, in logarithms."""

        def fraction(limit: float, name: str) -> float:
            return float(min(1.0, (limit / left.get(name, 1.0)) ** share))

        budgets = tuple(f"{b.resource}={fraction(b.limit, b.resource)!r}" for b in self.costs)
        width = None if self.width is None else fraction(self.width, "width")
        return replace(self, budget=budgets, width=width, stats=None if left else self.stats)

    def rotated_width(self, width: int) -> int:
        """What is left of a residual stream of this width: as asked for, a share in multiples of `multiple` (auto: of
        eight where the stream is one); raises `InputError`."""
        text = str(self.rotate_streams)
        if text.isdecimal() and int(text) > 0:
            return int(text)
        try:
            share = float(text)
        except ValueError:
            share = float("nan")
        if text.isdecimal() or not 0 < share <= 1:
            raise InputError(
                f"--rotate-streams {text} is not understood: write a width (48) or a share of it in (0, 1] (0.75)"
            )
        step = int(self.multiple) if self.multiple != "auto" else 8 if width % 8 == 0 else 1
        return min(max(round(share * width / step), 1) * step, width)

    @property
    def only_rotates(self) -> bool:
        """Whether narrower residual streams are all that is asked for."""
        ways = (self.budgets or None, self.width, self.variance, self.plan)
        return self.rotate_streams is not None and all(way is None for way in ways)

    def chosen_way(self) -> str:
        """Which of the ways says how small; raises `InputError` unless exactly one does, beside `rotate_streams`."""
        if self.only_rotates:
            return "--rotate-streams"
        ways = {
            "--budget": bool(self.budgets),
            "--width": self.width is not None,
            "--variance": self.variance is not None,
            "--plan": self.plan is not None,
        }
        chosen = [name for name, is_given in ways.items() if is_given]
        if len(chosen) != 1:
            problem = "nothing says" if not chosen else " and ".join(chosen) + " both say"
            raise InputError(f"{problem} how small to make the model: give one of {', '.join(ways)}")
        return chosen[0]
