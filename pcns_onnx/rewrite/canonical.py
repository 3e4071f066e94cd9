"""The form of a model that is solved: norms folded, every layer with a bias, once as stored and once in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pcns_onnx.graph import CarriedState, Graph, Layout
from pcns_onnx.rewrite.constant_shapes import store_constant_shapes
from pcns_onnx.rewrite.contract import open_states, state_outputs
from pcns_onnx.rewrite.explicit_bias import drop_zero_biases, explicit_biases
from pcns_onnx.rewrite.fold_batch_norm import fold_batch_norms
from pcns_onnx.rewrite.fused.attention import close_attention, open_attention
from pcns_onnx.rewrite.fused.biases import merge_biases
from pcns_onnx.rewrite.low_rank import additions
from pcns_onnx.rewrite.patch import Patch, apply
from pcns_onnx.rewrite.recurrent_cells import hide_steps, show_steps
from pcns_onnx.rewrite.shared_constants import own_biases, store_once


@dataclass(frozen=True)
class Canonical:
    """The original, and the form that is solved: norms folded, every layer with a bias.

    `typed` has the original's storage types, `twin` is float32. `shown` are outputs that recurrent layers were given.
    `unrotated`: the twin as it was before its residual streams were put into another basis, None where they are not.
    """

    original: Graph
    typed: Graph
    twin: Graph
    folded: tuple[str, ...]
    added: tuple[str, ...]
    shown: tuple[str, ...] = ()
    unrotated: Graph | None = None

    @classmethod
    def of(cls, original: Graph, *, folds: bool = True, states: Sequence[CarriedState] = ()) -> Canonical:
        """The forms of a model; with `folds` false its norms stay as they are. `states` are those that may go."""
        start = open_states(open_attention(_flat(original)), states)
        norms_folded, folded = fold_batch_norms(start) if folds else (start, ())
        if folded:
            store_once(norms_folded, original)
        biased, added = explicit_biases(own_biases(norms_folded))
        typed, shown = show_steps(biased)
        return cls(original, typed, typed.as_float32(), folded, added, shown)

    def laid_out(self, layout: Layout | None) -> Canonical:
        """The same forms, of which it is known where samples lie in their inputs."""
        if layout is None:
            return self
        original, typed, twin = (graph.copy(layout) for graph in (self.original, self.typed, self.twin))
        return replace(self, original=original, typed=typed, twin=twin)

    def rotated(self, typed: Graph, added: tuple[str, ...]) -> Canonical:
        """The same model with these weights, whose layers were given biases at the keys `added`, too."""
        whole = self.twin if self.unrotated is None else self.unrotated
        return replace(self, typed=typed, twin=typed.as_float32(), added=self.added + added, unrotated=whole)

    def edited(self, patch: Patch) -> Canonical:
        """The same forms with these edits."""
        typed = apply(self.typed, patch)
        return replace(self, typed=typed, twin=typed.as_float32())

    @cached_property
    def emitted(self) -> Graph:
        """What would be written at most if nothing were narrowed: weights that have a reader, and all biases."""
        return emit(self, (), keeps_biases=True)


def _flat(original: Graph) -> Graph:
    """Sizes that never change stored, and the branches that these always choose inlined, as long as there are any."""
    graph = store_constant_shapes(original)
    while (inlined := graph.with_branches()) is not graph:
        graph = store_constant_shapes(inlined)
    return graph


def emit(form: Canonical, patch: Patch, *, keeps_biases: bool = False) -> Graph:
    """The model with these edits, in the original's storage types and without what only the solve needed.

    With `keeps_biases` added biases stay that are zero now: the solve may need them.
    """
    small = apply(form.typed, patch)
    if not keeps_biases:
        added = form.added + additions(small, patch)
        drop_zero_biases(small, added)
        merge_biases(small, added)
    close_attention(small, form.original)
    store_once(small, form.original, form.typed)
    hide_steps(small, form.shown)
    state_outputs(small)
    small.prune(form.typed)
    return small
