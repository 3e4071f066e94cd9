"""`diff A B`: what changed between two models, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pcns_onnx.cli.console import EXIT_CODES, Console, with_console
from pcns_onnx.cli.options import api_keywords, as_json, config_option, record_options

if TYPE_CHECKING:
    from pcns_onnx.api.diff import Difference


@click.command(epilog=EXIT_CODES)
@click.argument("a")
@click.argument("b")
@click.option("--all", "everything", is_flag=True, help="List also the layers that are the same.")
@as_json
@record_options("diff")
@config_option
@with_console
def diff(a: str, b: str, everything: bool, console: Console, **choices: Any) -> None:
    """Say what changed from model A to B, layer by layer. Nothing is run."""
    from pcns_onnx.api.diff import diff as run

    difference = run(a, b, **api_keywords(choices))
    if console.as_json:
        console.record(difference)
        return
    console.show(_tables(difference, everything))


def _tables(difference: Difference, everything: bool) -> Iterator[Any]:
    from pcns_onnx.cli.tables.records import plain_table

    if difference.equal:
        yield "the models are the same"
        return
    changed = [layer for layer in difference.layers if everything or layer.what != "the same"]
    if changed:
        table = plain_table("layer", right=("width", "now", "MACs", "now", "weights differ by"))
        table.add_column("what changed", overflow="fold")
        for layer in changed:
            sides = (layer.before, layer.after)
            widths = [f"{side.width or ''}" if side is not None else "" for side in sides]
            macs = ["" if side is None else "unknown" if side.macs is None else f"{side.macs:,}" for side in sides]
            share = "" if layer.weights is None else f"{layer.weights:.2%}"
            table.add_row(layer.name, *widths, *macs, share, layer.what)
        yield table
    same = len(difference.layers) - len(changed)
    if same:
        yield f"{same} layer{'' if same == 1 else 's'} the same"
    lines = [f"{op}: {before} nodes, now {after}" for op, (before, after) in difference.operators.items()]
    lines += [f"node '{name}': {what}" for name, what in difference.nodes.items()] + difference.interface
    old, new = difference.before, difference.after
    lines.append(f"MACs: {old.macs_text} -> {new.macs_text} ({old.macs_ratio(new)})")
    for what, x, y in (
        ("parameters", difference.before.parameters, difference.after.parameters),
        ("bytes", difference.before.bytes, difference.after.bytes),
    ):
        lines.append(f"{what}: {x:,} -> {y:,} ({y / max(x, 1):.3f})")
    yield "\n".join(lines)
