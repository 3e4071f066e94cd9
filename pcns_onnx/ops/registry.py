"""The table of operators that state facts about channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Literal

from pcns_onnx.errors import InputError, PcnsError
from pcns_onnx.graph import Array, Node
from pcns_onnx.ops.facts import OpContext, OpFacts, describe, freeze

Rule = Callable[[OpContext], OpFacts]
BiasShape = Callable[[Node, Callable[[str], Array | None]], tuple[int, ...] | None]
"""From a node and the constants by name: the shape of the bias that an Add behind the node holds, None for no layer."""

_RULES: dict[tuple[str, str], Rule] = {}
_BIAS_SHAPES: dict[tuple[str, str], BiasShape] = {}


def rule(
    *ops: str, domain: str = "", operands: Literal["first", "all"] = "first", bias_behind: BiasShape | None = None
) -> Callable[[Rule], Rule]:
    """Register a rule for these operator types.

    With `operands` 'first' the rule speaks of channels in the first input only; channels that
    enter elsewhere (a computed slope, say) are frozen for it. `bias_behind` is for layers without
    an input for the bias: it is asked before anything else is known of the node.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            if (domain, op) in _RULES:
                raise ValueError(f"two rules for {domain or 'ai.onnx'}.{op}")
            _RULES[domain, op] = function if operands == "all" else _first_only(function)
            if bias_behind is not None:
                _BIAS_SHAPES[domain, op] = bias_behind
        return function

    return register


def _first_only(function: Rule) -> Rule:
    @wraps(function)
    def guarded(context: OpContext) -> OpFacts:
        if any(labels is not None for labels in context.labels[1:]):
            return freeze(context, f"{describe(context.node)} takes the channels of a layer as a parameter")
        return function(context)

    return guarded


def bias_behind(node: Node, value: Callable[[str], Array | None]) -> tuple[int, ...] | None:
    """The shape of the bias in the Add behind a layer that has no input for it; None if the node is no such layer."""
    shape = _BIAS_SHAPES.get((node.domain, node.op))
    return None if shape is None else shape(node, value)


def rules() -> Mapping[tuple[str, str], Rule]:
    """(domain, operator) -> rule, for every operator that is understood."""
    return dict(_RULES)


def facts_of(context: OpContext, *, local: bool = False) -> OpFacts:
    """What is true of the node; an operator without a rule freezes all channels that touch it.

    A `local` one is a function of the model, whatever its name. Of these and of operators of other
    domains, those that have weights are named.
    """
    known = _RULES.get((context.node.domain, context.node.op))
    if known is not None and not local:
        try:
            return known(context)
        except PcnsError:
            raise
        except Exception as error:  # rules take for granted what the operator's specification demands
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"{describe(context.node)} is not as its operator demands ({why}): check it") from error
    named = (local or bool(context.node.domain)) and any(c is not None and c.size > 1 for c in context.constants)
    why = "is a function of the model, which is left as it is" if local else "is not understood"
    return freeze(context, f"{describe(context.node)} {why}", macs=0 if named else None)
