"""LSTM, GRU and RNN: which channels their cells carry, and how the rows lie that their weights are solved from."""

from __future__ import annotations

from pcns_onnx.ops.recurrent.cell import GATES, recurrent_layer
from pcns_onnx.ops.recurrent.cell_rows import CellOp, own_steps, previous

__all__ = ["GATES", "CellOp", "own_steps", "previous", "recurrent_layer"]
