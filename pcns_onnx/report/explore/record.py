"""What a page to play with knows: the model's groups, the points of the frontier, and a drawing of the graph."""

from __future__ import annotations

import msgspec

from pcns_onnx.cost.model import ModelSize
from pcns_onnx.planning.plan import SkippedLayer

SCHEMA = 1


class ExploredGroup(msgspec.Struct, frozen=True):
    """Channels that can be narrowed together: `width` classes of `unit` channels each. Costs are shares of the
    original's: of the layers that write the group."""

    name: str
    kind: str
    writers: list[str]
    readers: list[str]
    width: int
    unit: int
    coupled: bool
    macs: float
    parameters: int


class ExploredPoint(msgspec.Struct, frozen=True):
    """What one budget chooses. Lists are in the order of the groups.

    `costs` are shares of the original's; `error` is the predicted relative error at the outputs. `losses` are what
    the readers of a group lose of their variance, `shares` how much a group adds to the squared error. `command` is the
    line up to what is written, `output` where that goes if nobody says.
    """

    budget: float
    costs: dict[str, float]
    error: float
    widths: list[int]
    losses: list[float]
    shares: list[float]
    command: str
    output: str


class Box(msgspec.Struct, frozen=True):
    """A node, or with `nodes` all layers of a group. `group` is an index among the groups, -1 for what is in none.

    `row` counts from the inputs, `column` from the middle of its row, in widths of a box.
    """

    label: str
    kind: str
    group: int
    row: int
    column: float
    reason: str = ""
    nodes: int = 1


class Drawing(msgspec.Struct, frozen=True):
    """Boxes and the pairs of them that an edge joins; `collapsed` where there is a box for each group only."""

    boxes: list[Box]
    edges: list[tuple[int, int]]
    collapsed: bool = False


class Exploration(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to choose from. `milliseconds` of the original at `batch`, by the layers as timed here."""

    model: str
    groups: list[ExploredGroup]
    points: list[ExploredPoint]
    left_alone: list[SkippedLayer]
    drawing: Drawing
    before: ModelSize
    milliseconds: float
    batch: int
    threads: int
    provider: str
    samples: int
    warnings: list[str]
    versions: dict[str, str]
    schema: int = SCHEMA
