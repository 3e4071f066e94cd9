"""What the channels of a model are worth, as a run of `shrink` finds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from builders.models import Array
from builders.topologies import Sketch
from pcns_onnx.api.options import Options
from pcns_onnx.data.dataset import open_data
from pcns_onnx.graph import Graph
from pcns_onnx.methods.registry import method_named
from pcns_onnx.methods.subset.score import score_channels
from pcns_onnx.planning.importance import Importance
from pcns_onnx.planning.prepare import problem_for, selected
from pcns_onnx.planning.problem import Problem
from pcns_onnx.progress import Progress
from pcns_onnx.rewrite.canonical import Canonical
from pcns_onnx.runtime.engine import Engine

WIDTH = 12


def looked(model: onnx.ModelProto, x: Array, *, probes: bool = True, **choices: Any) -> tuple[Problem, Importance]:
    options = Options(multiple="1", **choices)
    form, method = Canonical.of(Graph.load(model)), method_named(options.method)
    problem = problem_for(form, Engine("cpu", 1), open_data(x, form.twin.inputs), options, Progress())
    problem, _ = selected(problem, options, method.family)
    return problem, score_channels(problem, method, options, probes=probes)


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
