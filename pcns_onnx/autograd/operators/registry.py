"""The table of operators that can train: every kind's own table, put together here."""

from __future__ import annotations

from collections.abc import Mapping

from pcns_onnx.autograd.operators.attention import ATTENTION
from pcns_onnx.autograd.operators.elementwise import ELEMENTWISE
from pcns_onnx.autograd.operators.indexing import INDEXING
from pcns_onnx.autograd.operators.linear import LINEAR
from pcns_onnx.autograd.operators.normalization import NORMALIZATION
from pcns_onnx.autograd.operators.operator import Operator
from pcns_onnx.autograd.operators.recurrent import RECURRENT
from pcns_onnx.autograd.operators.reduction import REDUCTION
from pcns_onnx.autograd.operators.reshape import RESHAPE
from pcns_onnx.autograd.operators.resize import RESIZE
from pcns_onnx.autograd.operators.sliding_window import SLIDING_WINDOW

KINDS: Mapping[str, Mapping[str, Operator]] = {
    "matrix products": LINEAR,
    "convolutions, pools": SLIDING_WINDOW,
    "recurrent layers": RECURRENT,
    "attention": ATTENTION,
    "norms, Softmax": NORMALIZATION,
    "element by element": ELEMENTWISE,
    "reductions": REDUCTION,
    "resizing": RESIZE,
    "shapes, joins": RESHAPE,
    "picking, padding": INDEXING,
}

OPERATORS: Mapping[str, Operator] = {name: operator for table in KINDS.values() for name, operator in table.items()}
"""Every operator that is known, those of other domains with theirs in front ("com.microsoft.Gelu")."""


def operators_table() -> str:
    """What can train, as a table in Markdown."""
    rows = [f"| {kind} | {', '.join(f'`{name}`' for name in sorted(table))} |" for kind, table in KINDS.items()]
    return "\n".join(["| kind | operators |", "|---|---|", *rows, ""])
