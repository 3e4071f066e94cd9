"""Widths for PCNS: from the eigenvalues of the groups' outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcns_onnx.api.options import Options
from pcns_onnx.calibration.eigenbasis import Basis
from pcns_onnx.calibration.layer_outputs import bases
from pcns_onnx.methods.pcns.activations import Activation
from pcns_onnx.methods.pcns.components import components_in, neurons_for, width_curve
from pcns_onnx.methods.pcns.eligibility import activation_of
from pcns_onnx.methods.registry import Method
from pcns_onnx.numerics.arrays import to_numpy
from pcns_onnx.planning.budget import Budget
from pcns_onnx.planning.decision import Decision, widths_for
from pcns_onnx.planning.plan import Plan
from pcns_onnx.planning.problem import Problem


def decide_bases(
    problem: Problem, method: Method, options: Options, plan: Plan | None, budgets: Sequence[Budget]
) -> Decision:
    """Widths for a method that makes new neurons: from the eigenvalues of the groups' outputs."""
    full = {g.name: g.width for g in problem.groups}
    found = {g.name: b for g, b, _ in bases(problem.calibration, problem.graph, problem.dependencies, problem.groups)}
    sigmas = {g.name: activation_of(problem.graph, problem.dependencies, g) for g in problem.groups}
    bent = {name: width_curve(b, s) for name, b in found.items() if isinstance(s := sigmas[name], Activation)}
    wanted = widths_for(problem, options, plan, bent, budgets, {}, lambda: _basis_variance(found, sigmas, options))
    widths = {name: _whole_pairs(width, full[name], sigmas[name]) for name, width in wanted.items()}
    return Decision(method, full, widths, {n: bent[n][w] for n, w in widths.items()}, bases=found, curves=bent)


def _whole_pairs(width: int, full: int, sigma: Activation | str) -> int:
    """The width that PCNS really makes: behind a one-sided activation components come in pairs."""
    if width >= full or isinstance(sigma, str):
        return width
    return neurons_for(components_in(width, sigma), sigma)


def _basis_variance(
    found: Mapping[str, Basis], sigmas: Mapping[str, Activation | str], options: Options
) -> dict[str, int]:
    share = options.variance or 1.0
    return {
        name: min(neurons_for(b.components(share), sigma), len(to_numpy(b.values)))
        for name, b in found.items()
        if isinstance(sigma := sigmas[name], Activation)
    }
