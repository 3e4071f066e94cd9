"""The re-fit of recurrent layers: solved on their own states, running free, and refined back in time."""

from __future__ import annotations

from pcns_onnx.reconstruction.recurrent.cell import solve_cell
from pcns_onnx.reconstruction.recurrent.refinement import CellRefinement
from pcns_onnx.reconstruction.recurrent.targets import CellObserver, CellSequences, fed_by

__all__ = ["CellObserver", "CellRefinement", "CellSequences", "fed_by", "solve_cell"]
