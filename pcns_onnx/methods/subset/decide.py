"""What the data says of the groups, from a file of statistics or from the data."""

from __future__ import annotations

import os

from pcns_onnx.api.options import Options
from pcns_onnx.methods.registry import Method
from pcns_onnx.methods.subset.score import score_channels
from pcns_onnx.methods.subset.stream_weight import weigh_streams
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.plan import fingerprint
from pcns_onnx.planning.problem import Problem
from pcns_onnx.planning.stats_file import load as load_stats
from pcns_onnx.planning.stats_file import save as save_stats
from pcns_onnx.rewrite.canonical import Canonical


def importance_of(form: Canonical, problem: Problem, method: Method, options: Options, *, probes: bool) -> Importance:
    """What the data says of the groups; from --stats where that file is there, else written to it."""
    if options.stats is not None and os.path.exists(options.stats):
        return load_stats(options.stats, problem, fingerprint(form.original), method.name)
    probes = probes or options.stats is not None
    found = score_channels(problem, method, options, probes=probes)
    if probes:
        found = weigh_streams(problem, method, found, options)
    if options.stats is not None:
        save_stats(options.stats, found, fingerprint(form.original), method.name, probed=True)
    return found
