"""Where the boxes of a graph stand: rows by depth, and within a row near to what they come from.

A box stands one row below the lowest of those that lead to it (the longest path from the inputs), so that edges lead
down. Within a row boxes are sorted by the mean column of what leads to them, the barycentre of Sugiyama, Tagawa and
Toda (1981), and the row is centred.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def placed(
    count: int, edges: Iterable[tuple[int, int]], depths: Sequence[int] | None = None
) -> list[tuple[int, float]]:
    """(row, column) of `count` boxes whose order is topological but for edges that lead back, which are passed over.

    Where `depths` are given, of a graph that the boxes stand for, rows are in their order.
    """
    before: list[list[int]] = [[] for _ in range(count)]
    for first, second in edges:
        if first < second:
            before[second].append(first)
    if depths is None:
        rows = depths_of(before)
    else:
        row_of = {depth: row for row, depth in enumerate(sorted(set(depths)))}
        rows = [row_of[depth] for depth in depths]
    columns = [0.0] * count
    by_row: list[list[int]] = [[] for _ in range(max(rows, default=-1) + 1)]
    for box, row in enumerate(rows):
        by_row[row].append(box)
    for members in by_row:
        near = {box: _mean([columns[other] for other in before[box]]) for box in members}
        members.sort(key=lambda box: (near[box], box))
        for at, box in enumerate(members):
            # A box alone in its row stays under what leads to it: long branches are lines, not zigzags.
            columns[box] = near[box] if len(members) == 1 else at - (len(members) - 1) / 2
    return list(zip(rows, columns, strict=True))


def depths_of(before: Sequence[Sequence[int]]) -> list[int]:
    """How many boxes lead to each at most, by those that lead to it at once, all of which stand in front of it."""
    depths: list[int] = []
    for sources in before:
        depths.append(1 + max((depths[source] for source in sources), default=-1))
    return depths


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
