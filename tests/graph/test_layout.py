"""Where the samples lie is read off the names of sizes, and left open where they do not tell."""

from __future__ import annotations

import numpy as np
import pytest

from builders import fed
from pcns_onnx.graph import Graph, TensorSpec
from pcns_onnx.graph.layout import layout_of

Sizes = tuple[int | str | None, ...]


def specs(**inputs: Sizes) -> list[TensorSpec]:
    """Inputs of these sizes; a text is the name of an open one."""
    return [
        TensorSpec(
            name,
            np.dtype(np.float32),
            tuple(size if isinstance(size, int) else None for size in sizes),
            tuple(size if isinstance(size, str) else "" for size in sizes),
        )
        for name, sizes in inputs.items()
    ]


KNOWN: dict[str, tuple[dict[str, Sizes], dict[str, int | None], int | None, bool]] = {
    "rows": ({"x": ("N", 3)}, {"x": 0}, None, True),
    "a state": ({"x": ("batch", 3), "h": (2, "batch", 8)}, {"x": 0, "h": 1}, None, True),
    "a state in front": ({"h": (2, "bs", 8), "x": ("bs", 3)}, {"h": 1, "x": 0}, None, True),
    "time first": ({"x": ("T", "batch_size", 3)}, {"x": 1}, None, True),
    "the last axis": ({"x": (3, "N")}, {"x": 1}, None, True),
    "one name for both": ({"x": ("rows", 3), "h": (2, "rows", 8)}, {"x": 0, "h": 1}, None, False),
    "no names": ({"x": (None, 3), "h": (2, None, 8)}, {"x": 0, "h": 1}, None, False),
    "numbered names": (
        {"a": ("a_dynamic_axes_1", 3), "b": ("b_dynamic_axes_1", 3)},
        {"a": 0, "b": 0},
        None,
        False,
    ),
    "settings": (
        {"x": ("N", 3), "rate": (), "scales": (3,), "table": (64, 4)},
        {"x": 0, "rate": None, "scales": None, "table": None},
        None,
        True,
    ),
    "nodes and edges": ({"x": ("nodes", 3), "e": (2, "edges")}, {"x": 0, "e": None}, None, False),
    "a fixed batch": ({"x": (4, 3), "y": (4, 5)}, {"x": 0, "y": 0}, 4, True),
    "a fixed batch of 1": ({"h": (2, 1, 8), "x": (1, 3), "scales": (3,)}, {"h": 1, "x": 0, "scales": None}, 1, False),
    "a fixed batch and settings": ({"x": (4, 3), "scales": (3,)}, {"x": 0, "scales": None}, 4, False),
}


@pytest.mark.parametrize("case", KNOWN)
def test_names_of_sizes_tell_where_the_samples_lie(case: str) -> None:
    inputs, axes, fixed, certain = KNOWN[case]
    layout = layout_of(specs(**inputs))
    assert (dict(layout.axes), layout.fixed, layout.certain) == (axes, fixed, certain)


def test_what_is_stated_wins() -> None:
    inputs = specs(x=("frames", 3), h=(2, "other", 8))
    layout = layout_of(inputs, {"h": 1})
    assert layout.axes == {"x": 0, "h": 1} and layout.certain
    assert layout_of(inputs, {"x": None, "h": 1}).axes == {"x": None, "h": 1}
    assert layout_of(specs(x=(4, 3), y=(2, 4)), {"y": 1}).fixed == 4


def test_shapes_follow_the_batch_along_the_axis_of_each_input() -> None:
    graph = Graph.load(fed.with_state(("N", 16), (2, "N", 8)))
    shapes = graph.shapes(batch=5)
    assert (shapes["x"], shapes["state"], shapes["h"], shapes["y"]) == ((5, 16), (2, 5, 8), (1, 5, 8), (5, 8))
    whole = Graph.load(fed.over_time()).copy(layout_of(specs(x=("T", 16))).as_whole())
    assert whole.layout.batch == 1 and whole.shapes({"x": (9, 16)}, batch=3)["y"] == (9, 8)


OUTPUTS: list[tuple[Sizes, int | None]] = [
    (("N", 3), 0),
    ((2, "N", 8), 1),
    (("N", "N"), None),
    ((None, None, None), None),
    (("M", 3), None),
    ((), None),
]


@pytest.mark.parametrize(("sizes", "axis"), OUTPUTS)
def test_the_samples_of_an_output_lie_where_its_names_say(sizes: Sizes, axis: int | None) -> None:
    layout = layout_of(specs(x=("N", 3)))
    assert layout.named_axis(specs(y=sizes)[0]) == axis
    assert layout.as_whole().named_axis(specs(y=sizes)[0]) is None
