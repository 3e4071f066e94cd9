"""How a group is narrowed: `catalogue` has one row per method, here is what ranks for those that keep a subset."""

from __future__ import annotations

from collections.abc import Mapping

from pcns_onnx.catalogue import CHOICES, DEFAULT, METHODS, Method, method_named
from pcns_onnx.methods import interpolative, obs
from pcns_onnx.methods.ranking import Rank, Ranking, Reading, mixing

RANK_OF: Mapping[str, Rank] = {"obs": obs.rank, "interpolative": interpolative.rank}

__all__ = [
    "CHOICES", "DEFAULT", "METHODS", "RANK_OF", "Method", "Rank", "Ranking", "Reading", "method_named", "mixing",
]  # fmt: skip
