"""What the data says of the groups, from a file of statistics or from the data."""

from __future__ import annotations

import os

from pcns_onnx.methods.strategy import Request
from pcns_onnx.methods.subset.score import score_channels
from pcns_onnx.methods.subset.stream_weight import as_stated, weigh_streams
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import fingerprint
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.stats_file import load as load_stats
from pcns_onnx.planning.stats_file import save as save_stats


def importance_of(problem: Problem, request: Request, *, probes: bool) -> Importance:
    """From --stats where that file is there, else from the data (and written to it)."""
    stats, model, method = request.goal.stats, fingerprint(problem.form.original), request.method.name
    if stats is not None and os.path.exists(stats):
        loaded = load_stats(stats, problem, model, method, seed=request.seed, has_data=request.has_data)
        return as_stated(problem, loaded, request.goal)
    probes = probes or stats is not None
    importance = score_channels(problem, request.method, seed=request.seed, probes=probes)
    if probes and (request.goal.streams == "auto" or stats is not None):
        importance = weigh_streams(problem, importance, request)
    if stats is not None:
        save_stats(stats, importance, model, method, probed=True, seed=request.seed)
    return as_stated(problem, importance, request.goal)
