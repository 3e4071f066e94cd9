"""A smaller net designed from a trained one by a single PCA pass: widths, depth, and a net to train anew.

    spectra (what layers use) → depth (which stay) → chain (what that costs, and the net) → blueprint (what is said)

The low-effort design of Garg, Panda and Roy; `pipeline` tells the story.
"""

from __future__ import annotations

from pcns_onnx.designing.blueprint import Architecture, Blueprint, DesignedLayer, configuration_text, design_tables
from pcns_onnx.designing.pipeline import DesignResult, design, ungrouped

__all__ = [
    "Architecture", "Blueprint", "DesignResult", "DesignedLayer", "configuration_text", "design", "design_tables",
    "ungrouped",
]  # fmt: skip
