"""Why a tensor's channels stay: the walk from where that is felt back to where it comes from.

A sum of two tensors holds the channels of one fast if the other's cannot go. Which tensor that is and why it stays
is what a reader of the reason wants to know: it may be far ahead, behind any number of other sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pcns_onnx.dependency.states.stateful_inputs import carried_states
from pcns_onnx.graph import CarriedState, Graph, Node
from pcns_onnx.ops import MUST_STAY, Labels, OpFacts

_CONTRACTS = ("the model's contract", "the caller makes it")
"""How a reason ends that is a state's."""
_IS, _MADE_OF, _SINCE = "is", "is made of", "stays, since"


def root_of(reason: str) -> str:
    """The end of the walk that a complete reason tells of: equal for all that one cause holds back."""
    _, _, tail = reason.partition(f"{MUST_STAY}: '")
    _, _, clause = tail.partition("' ")
    link = next((link for link in (_MADE_OF, _SINCE, _IS) if clause.startswith(f"{link} ")), "")
    return clause.removeprefix(link).strip() or reason


@dataclass
class Causes:
    """What is known of the nodes in front: their facts and the labels of their tensors."""

    graph: Graph
    facts: Mapping[str, OpFacts]
    labels: Mapping[str, Labels]

    def complete(self, node: Node, reason: str) -> str:
        """The reason, with the tensor that it speaks of and why that one stays, where it does."""
        if reason.endswith(_CONTRACTS):
            names = (state for state in self._states if {state.input, state.output} & {*reason.split("'")[1::2]})
            return reason + self._way_out(next(names, None))
        if not reason.endswith(MUST_STAY):
            return reason
        name = self._fixed_input(node)
        return reason if name is None else f"{reason}: '{name}' {self._why(name)}"

    @cached_property
    def _states(self) -> tuple[CarriedState, ...]:
        """The states that keep their shape."""
        is_open = {state.input for state in self.graph.layout.states}
        return tuple(state for state in carried_states(self.graph, {}) if state.input not in is_open)

    def _way_out(self, state: CarriedState | None) -> str:
        """The option by which a state gets narrower."""
        if state is None:
            return ""
        return f" (--{'caches' if state.is_cache else 'states'} narrow: both ends get narrower, '{state.output}' too)"

    def _fixed_input(self, node: Node) -> str | None:
        """The first input that carries no channels; else the first that carries some beside others that stay."""
        names = [name for name in node.inputs if name and not self.graph.is_constant(name)]
        without = (name for name in names if name not in self.labels)
        mixed = (name for name in names if name in self.labels and (self.labels[name] < 0).any())
        stored = (name for name in node.inputs[:1] if self.graph.is_constant(name))
        return next(without, next(mixed, next(stored, None)))

    def _why(self, name: str) -> str:
        """Why the channels of a tensor stay, as what follows its name."""
        if self.graph.is_constant(name):
            return "is stored"
        start, visited = name, set[str]()
        while name not in visited:
            visited.add(name)
            maker = self.graph.producers.get(name)
            if maker is None:
                state = next((state for state in self._states if state.input == name), None)
                return f"{_IS if name == start else _MADE_OF} the model's input '{name}'{self._way_out(state)}"
            facts = self.facts.get(maker.key)
            if facts is None:
                break
            reason = facts.frozen[0].reason if facts.frozen else facts.reason
            if reason and not reason.endswith(MUST_STAY):
                return f"{_SINCE} {reason}"
            source = self._fixed_input(maker)
            if source is None:
                break
            name = source
        return "is made of constants alone" if name == start else f"comes from '{name}', which no layer makes"
