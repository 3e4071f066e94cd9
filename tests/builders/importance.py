"""What the channels of a model are worth, as a run of `shrink` finds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from builders.models import Array
from builders.topologies import Sketch
from pcns_onnx.api.inputs import run
from pcns_onnx.api.options import Options
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.subset.score import score_channels
from pcns_onnx.planning.grids import GridRules
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.prepare import problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.rewrite.canonical import Canonical

WIDTH = 12


def looked(model: onnx.ModelProto, x: Array, *, probes: bool = True, **choices: Any) -> tuple[Problem, Importance]:
    options = Options.of(threads=1, device="cpu", **choices)
    form = Canonical.of(Graph.load(model))
    with run(options) as running:
        problem = problem_for(form, running.calibration(open_data(x, form.twin.inputs), form.twin), options.scope)
    problem, _ = selected(replace(problem, rules=GridRules("1")), options.scope, lambda *_: None)
    return problem, score_channels(problem, method_named("obs"), seed=options.data.seed, probes=probes)


def rows(count: int = 60) -> Array:
    return np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)


def branches(loud: float, quiet: float) -> onnx.ModelProto:
    """Two hidden layers side by side; what one adds to the output is scaled by `loud`, the other by `quiet`."""
    s = Sketch("N", 6)
    for name, scale in (("a", loud), ("b", quiet)):
        s.relu(s.gemm("x", name, (6, WIDTH)))
        s.gemm(f"{name}.r", f"{name}2", (WIDTH, 4))
        s.op("Mul", f"{name}2 {s.keep(f'{name}s', np.array(scale, np.float32))}", f"{name}3")
    s.add("a3", "b3", "y")
    return s.model()
