"""What a caller may choose: one frozen record, checked when it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral, Real
from pathlib import Path
from typing import TypedDict, get_args

from pcns_onnx.data.conform import Normalize
from pcns_onnx.data.preprocess import Preprocess
from pcns_onnx.data.sources import DataSource
from pcns_onnx.errors import InputError
from pcns_onnx.evaluation.metric import Metric
from pcns_onnx.methods.registry import Method, method_named
from pcns_onnx.ops import Heads
from pcns_onnx.planning.budget import Budget
from pcns_onnx.runtime.memory import MemoryBudget, parse_bytes

ORDERS = ("ascending", "descending")
HEADS: tuple[Heads, ...] = get_args(Heads)
_MOST = 2**31 - 1
STEPS = 400
"""Steps of refinement, unless others are asked for."""
_KINDS: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (
        Integral,
        "a whole number",
        ("samples", "trials", "batch", "seed", "threads", "workers", "refine", "batch_latency"),
    ),
    (Real, "a number", ("width", "variance", "holdout", "max_error", "max_drop", "rank_ratio")),
    (Normalize, "a pcns_onnx.Normalize(mean, std)", ("normalize",)),
)
"""What callers from Python, whom no parser guards, must give: None only where that is the default."""


@dataclass(frozen=True)
class Options:
    """How to shrink, what to check, where to run.

    Exactly one of `budget` ('macs=0.5', 'params=0.4' or a list: fractions of the original that
    may be left, all must hold), `width` (fraction of every hidden width), `variance` (share of
    the activations' variance to keep) and `plan` (a file made by `plan_out`) says how small.
    `include` and `exclude` are globs on layer names (one or a list). `holdout` is the share of the samples kept
    from the solve for the check, unless `eval` gives others.
    `trials`: how many batches of every size `inspect` draws. `coupled` false leaves channels alone
    that several blocks share. `depth` false keeps all blocks, however little they do.
    `low_rank`: layers whose outputs cannot get fewer may become two of lower rank, where that was measured to pay.
    `refine`: so many steps of nonlinear least squares per layer and its
    reader, after the re-fit (None: 400 where neurons are kept). `batch_latency`: the batch that latency is measured
    at (None: `batch`). `stats`: a file that keeps what was seen of the data, for other budgets. `heads`: take the
    same dimensions from all attention heads ('width') or whole heads ('whole').
    `refit`: whether readers are solved again (None: as the method has it; 'pcns' can do
    without, the data-free methods do unless they are asked). `rank_ratio` in (0, 1]: the share of each rank that
    'eigenremove' keeps. `shape`: sizes of inputs that the model leaves open ('input=1x3x224x224').
    `html`: a page to read, beside the `report` for programs; `command` is what it says was run.
    `preprocess`: how files of images and texts become arrays ('resize=256,crop=224', see `data.Preprocess`).
    `workers` more processes, or those of a Dask `scheduler` ('tcp://host:8786'), take over what gathers moments.
    `memory` ('4GB'): what is gathered at once keeps to shares of it. `custom_ops`: libraries of operators that
    onnxruntime registers. `max_error` (relative L2 error of
    any output) and `max_drop` (points of accuracy or metric) make the run a gate. `int8` and `fp16`: make these
    of the shrunk model, too; for int8 `multiple` auto leaves a Conv 16 channels.
    """

    method: str = "auto"
    budget: str | Sequence[str] = ()
    width: float | None = None
    variance: float | None = None
    plan: str | Path | None = None
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    multiple: str | int = "auto"
    order: str = "ascending"
    refit: bool | None = None
    rank_ratio: float | None = None
    refine: int | None = None
    coupled: bool = True
    depth: bool = True
    low_rank: bool = False
    heads: str = "width"
    shape: str | Sequence[str] = ()
    samples: int | None = None
    batch_latency: int | None = None
    stats: str | Path | None = None
    batch: int = 64
    holdout: float = 0.1
    eval: DataSource | None = None
    trials: int | None = None
    normalize: Normalize | None = None
    preprocess: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    workers: int | None = None
    scheduler: str | None = None
    memory: str | int | None = None
    custom_ops: str | Path | Sequence[str] = ()
    max_error: float | None = None
    max_drop: float | None = None
    metric: str | Callable[..., float] | None = None
    plan_out: str | Path | None = None
    report: str | Path | None = None
    html: str | Path | None = None
    command: str | None = None
    int8: bool = False
    fp16: bool = False

    def __post_init__(self) -> None:
        for name in ("budget", "include", "exclude", "shape"):
            value = getattr(self, name)
            texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"--{name} {value!r} is not understood: give a text or a list of texts")
            object.__setattr__(self, name, texts)
        for kind, said, names in _KINDS:
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) and (value is not None or getattr(type(self), name) is not None):
                    raise InputError(f"--{name.replace('_', '-')} {value!r} is not understood: it must be {said}")
        for name in ("preprocess", "scheduler"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"--{name} {value!r} is not understood: give a text")
        if self.workers is not None and self.scheduler is not None:
            raise InputError("--workers and --scheduler both say who runs the batches: give one of the two")
        self.preparing()
        method_named(self.method)
        for text in self.budgets:
            Budget.parse(text)
        object.__setattr__(self, "multiple", str(self.multiple))
        if self.multiple != "auto" and not (str(self.multiple).isdecimal() and int(self.multiple) > 0):
            raise InputError(f"--multiple {self.multiple} is not understood: write auto or a whole number from 1")
        if self.order not in ORDERS:
            raise InputError(f"--order {self.order} is not understood: write {' or '.join(ORDERS)}")
        if self.heads not in HEADS:
            raise InputError(f"--heads {self.heads} is not understood: write {' or '.join(HEADS)}")
        self.shapes()
        if self.memory is not None:
            parse_bytes(self.memory)
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"--device {self.device} is not understood: write auto, cpu or cuda")
        lows = {"samples": 1, "trials": 1, "batch": 1, "batch_latency": 1, "threads": 0, "workers": 1, "seed": 0,
                "refine": 0}  # fmt: skip
        for name, low in lows.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"--{name} {value} is too small: it must be at least {low}")
            if value is not None and value > _MOST:
                raise InputError(f"--{name} {value} is too large: it must be at most {_MOST}")
        for name in ("width", "variance", "rank_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InputError(f"--{name.replace('_', '-')} {value:g} is out of range: it is a fraction in (0, 1]")
        if not 0 <= self.holdout <= 0.5:
            raise InputError(f"--holdout {self.holdout:g} is out of range: it is a fraction in [0, 0.5]")
        for name in ("max_error", "max_drop"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"--{name.replace('_', '-')} {value:g} is out of range: it must be 0 or more")

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets as a tuple of texts."""
        return tuple(self.budget)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that are made of the shrunk model."""
        return tuple(kind for kind, asked in (("int8", self.int8), ("fp16", self.fp16)) if asked)

    def wants(self, name: str) -> bool:
        """Whether `include` and `exclude` let a layer of this name through."""
        included = not self.include or any(fnmatchcase(name, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self.exclude)

    @property
    def shares(self) -> MemoryBudget:
        """How much may be gathered at once."""
        return MemoryBudget.of(None if self.memory is None else parse_bytes(self.memory))

    @property
    def libraries(self) -> tuple[str, ...]:
        """Paths of the libraries of custom operators."""
        given = (self.custom_ops,) if isinstance(self.custom_ops, str | os.PathLike) else self.custom_ops
        return tuple(os.fspath(path) for path in given)

    @property
    def costs(self) -> tuple[Budget, ...]:
        """The budgets that limit a cost."""
        return tuple(b for b in map(Budget.parse, self.budgets) if b.is_cost)

    @property
    def qualities(self) -> tuple[Budget, ...]:
        """The budgets that limit what is lost."""
        return tuple(b for b in map(Budget.parse, self.budgets) if not b.is_cost)

    @property
    def times(self) -> bool:
        """Whether layers have to be timed: a budget is on latency, a model is sought that is the fastest, or ranks that
        pay."""
        return self.low_rank or any(b.resource == "latency" for b in self.costs) or bool(self.qualities)

    def preparing(self) -> Preprocess | None:
        """How files of images and texts become arrays."""
        return None if self.preprocess is None else Preprocess.parse(self.preprocess)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of inputs that the caller states: 'input=1x3x224x224' -> {'input': (1, 3, 224, 224)}."""
        found = {}
        for text in self.shape:
            name, _, sizes = text.rpartition("=")
            parts = sizes.lower().split("x")
            if not name or not all(part.isdecimal() and int(part) > 0 for part in parts):
                raise InputError(f"--shape {text} is not understood: write a name and sizes, as in input=1x3x224x224")
            found[name] = tuple(int(part) for part in parts)
        return found

    def goal(self) -> str:
        """Which of the four ways says how small; raises `InputError` unless exactly one does."""
        given = {
            "--budget": bool(self.budgets),
            "--width": self.width is not None,
            "--variance": self.variance is not None,
            "--plan": self.plan is not None,
        }
        chosen = [name for name, is_given in given.items() if is_given]
        if len(chosen) != 1:
            said = "nothing says" if not chosen else " and ".join(chosen) + " both say"
            raise InputError(f"{said} how small to make the model: give one of {', '.join(given)}")
        if self.low_rank and chosen != ["--budget"]:
            raise InputError(f"--low-rank is a choice that a budget makes: give --budget and not {chosen[0]}")
        return chosen[0]

    def steps(self, method: Method) -> int:
        """Steps of refinement: as asked, else `STEPS` where neurons are kept and their readers solved."""
        return self.refine if self.refine is not None else STEPS if method.family == "subset" else 0

    def check_method(self, method: Method, *, data: bool) -> None:
        """Raise `InputError` where a choice does not go with `method`, or needs samples that are not there (`data`)."""
        if method.data and not data:
            named = self.method if self.plan is None else method.name
            raise InputError(f"method '{named}' looks at what neurons do: give samples with --data")
        if self.precisions and not data:
            raise InputError(f"--{self.precisions[0]} is calibrated and checked on samples: give them with --data")
        letter = self.refit is False and method.family == "subset"
        if method.family != "basis" and (self.order != ORDERS[0] or letter):
            raise InputError(f"--order and --no-refit are choices of method pcns: '{method.name}' has neither")
        if self.refine and method.family == "basis":
            raise InputError(f"--refine goes on from neurons that were kept: '{method.name}' makes new ones")
        if self.low_rank and method.family != "subset":
            raise InputError(f"--low-rank is for methods obs and interpolative, not '{method.name}'")
        if self.qualities and method.family != "subset":
            raise InputError(f"budgets error and drop are for methods obs and interpolative, not '{method.name}'")
        if self.rank_ratio is not None and method.name != "eigenremove":
            raise InputError(f"--rank-ratio is a choice of method eigenremove: '{method.name}' has none")
        if self.rank_ratio is not None and self.plan is not None:
            raise InputError("--rank-ratio is part of the plan: give one of the two")
        if self.variance is not None and method.family == "weights":
            raise InputError(f"--variance looks at what neurons do, '{method.name}' does not: give --width or --budget")
        if self.refit and not data:
            raise InputError("--refit solves on samples: give them with --data")
        if self.refine and method.family == "weights" and not self.refit:
            raise InputError("--refine comes after a re-fit: ask for that too with --refit and --data")
        gates = {"--max-error": self.max_error, "--max-drop": self.max_drop, "--metric": self.metric}
        asked = [name for name, value in gates.items() if value is not None]
        if asked and not data and self.eval is None:
            raise InputError(f"{asked[0]} is checked on samples: give them with --data or --eval")

    def described(self) -> dict[str, str]:
        """The choices that shape the result, as text, for reports."""
        shown = ("method", "budget", "width", "variance", "plan", "include", "exclude", "multiple", "order",
                 "refit", "rank_ratio", "coupled", "low_rank", "heads", "shape", "samples",
                 "batch", "holdout", "seed", "device", "threads", "normalize", "preprocess")  # fmt: skip
        values = {name: getattr(self, name) for name in shown}
        return {
            name: ", ".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None and value != ()
        }


class Running(TypedDict, total=False):
    """Keyword arguments that say how to run a model; see `Options` for their meaning."""

    heads: str
    shape: str | Sequence[str]
    samples: int
    batch_latency: int
    stats: str | Path
    batch: int
    normalize: Normalize
    preprocess: str
    seed: int
    device: str
    threads: int
    memory: str | int
    custom_ops: str | Path | Sequence[str]


class Choices(Running, total=False):
    """Keyword arguments of `shrink`, `inspect` and `compare`; see `Options` for their meaning."""

    method: str
    budget: str | Sequence[str]
    width: float
    variance: float
    plan: str | Path
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    multiple: str | int
    order: str
    refit: bool
    rank_ratio: float
    refine: int
    coupled: bool
    depth: bool
    low_rank: bool
    holdout: float
    eval: DataSource
    trials: int
    max_error: float
    max_drop: float
    metric: str | Metric
    plan_out: str | Path
    report: str | Path
    html: str | Path
    command: str
    workers: int
    scheduler: str
    int8: bool
    fp16: bool
