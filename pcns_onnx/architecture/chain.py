"""Chain nets: every layer reads what the one in front of it makes, and nothing else.

The design looks at each layer as one step that expands the data, so it needs one layer behind the other.
Its authors say why a shortcut breaks it (section IV-D, Limitations): dimensions that are taken from one layer are
brought back by the connection from another. A grouped Conv's filters do not read common channels, so they span no
common space; the way round is to train the same net without groups (`fresh.ungroup`) and to look at that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pcns_onnx.architecture.fresh import LAYERS, Feeds, conv_groups, initialise
from pcns_onnx.dependency.dependency_graph import DependencyGraph, build_dependency_graph
from pcns_onnx.dependency.groups import Group
from pcns_onnx.dependency.layers import Layer
from pcns_onnx.errors import UnsupportedError
from pcns_onnx.graph import Graph, Node
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.constant_shapes import store_constant_shapes
from pcns_onnx.rewrite.explicit_bias import drop_zero_biases, explicit_biases
from pcns_onnx.rewrite.layer_weights import stored
from pcns_onnx.rewrite.patch import apply

Item = int | str
_POOLS = {"MaxPool": "M", "GlobalMaxPool": "M", "AveragePool": "A", "GlobalAveragePool": "A"}
_SHORTCUT = (
    "'{}' and '{}' share channels: the method is for chains of layers, since a shortcut brings back dimensions that "
    "one layer loses; `pcns-onnx shrink` narrows such nets"
)


@dataclass(frozen=True)
class Chain:
    """A model whose layers stand one behind the other; the last is the classifier, which keeps its width.

    `graph` has a bias Add behind every MatMul, those in `added` for the time being only.
    """

    graph: Graph
    dependencies: DependencyGraph
    added: tuple[str, ...]
    feeds: Feeds | None

    @classmethod
    def of(cls, model: Graph, feeds: Feeds | None = None) -> Chain:
        """The chain in `model`; raises `UnsupportedError` with the reason where there is none."""
        _refuse_groups(model)
        graph, added = explicit_biases(store_constant_shapes(model))
        dependencies = build_dependency_graph(graph, feeds)
        _refuse_others(graph, dependencies)
        return cls(graph, dependencies, added, feeds)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in order."""
        return self.dependencies.layers

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """All but the last."""
        return self.dependencies.layers[:-1]

    @cached_property
    def groups(self) -> Mapping[str, Group]:
        """The channels that each layer makes, by its name."""
        return {layer.name: self.dependencies.writes(layer) for layer in self.layers}

    def configuration(self, widths: Mapping[str, int]) -> list[Item]:
        """The vector of Table 2: filters of every hidden layer in `widths`, 'M' for a maxpool, 'A' for an average.

        Pools stay, whatever goes in front of them.
        """
        names = {layer.key: layer.name for layer in self.hidden}
        vector: list[Item] = []
        for node in self.graph.nodes:
            if node.key in names and names[node.key] in widths:
                vector.append(widths[names[node.key]])
            elif node.op in _POOLS:
                vector.append(_POOLS[node.op])
        return vector

    def costs(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """(multiply-adds per sample, floats stored) when hidden layers have these widths, all given."""
        macs = parameters = 0
        before = 1.0
        stored_here = 0
        for layer in self.layers:
            kept = widths[layer.name] / layer.width if layer.name in widths else 1.0
            bias = 0 if layer.bias.absent else layer.width
            weights, each = layer.parameters - bias, self._per_channel[layer.name]
            macs += round(layer.macs * kept * before)
            parameters += round(weights * kept * before) + round(each * kept)
            stored_here += weights + each
            before = kept
        return macs, parameters + self._parameters - stored_here

    @cached_property
    def _parameters(self) -> int:
        biases = sum(layer.width for layer in self.layers if layer.bias.key in self.added)
        return self.graph.parameters - biases

    @cached_property
    def _per_channel(self) -> Mapping[str, int]:
        """Floats that come and go with a layer's channels: bias, norms."""
        biases = {layer.bias.key for layer in self.layers}
        counts = {
            layer.name: 0 if layer.bias.absent or layer.bias.key in self.added else layer.width for layer in self.layers
        }
        for key, constant in self.dependencies.per_channel:
            owner = next((n for n, g in self.groups.items() if np.isin(constant.labels, g.labels).any()), None)
            if owner is not None and key not in biases:
                counts[owner] += stored(self.graph, key, constant.position).size
        return counts

    def fresh_net(self, widths: Mapping[str, int], seed: int | None = None) -> Graph:
        """A graph with fresh weights whose hidden layers are those in `widths`, as wide as said there.

        A layer that is left out takes its norm and its activation with it. Pools stay, and where it had
        strides the Conv in front of it gets them (as MobileNet's row of Table 2 has it), so
        what follows sees maps of the same size. `seed` None: all weights zero.
        """
        keep = {g.name: g.labels[: widths[name]] for name, g in self.groups.items() if name in widths}
        graph = apply(self.graph, narrow(self.graph, self.dependencies, keep))
        conv: Layer | None = None
        for layer in self.layers:
            if layer.name not in widths and layer is not self.layers[-1]:
                self._drop(graph, layer, conv)
            elif layer.kind == "Conv":
                conv = layer
        if len(keep) < len(self.hidden):
            self._let_flatten(graph)
        initialise(graph, seed, self.feeds)
        drop_zero_biases(graph, tuple(key for key in self.added if key in graph.producers))
        graph.prune()
        self._refuse_other_outputs(graph)
        return graph

    def _drop(self, graph: Graph, layer: Layer, before: Layer | None) -> None:
        strides = graph.node(layer.key).attrs.get("strides")
        if strides and max(strides) > 1:
            assert before is not None, "depth rules keep the first Conv"
            taken = graph.node(before.key).attrs.get("strides", [1] * len(strides))
            graph.set_attributes(before.key, strides=[a * b for a, b in zip(taken, strides, strict=True)])
        own = {layer.key, layer.bias.key, *filter(self._goes, self.groups[layer.name].path)}
        for node in [node for node in graph.nodes if node.key in own]:
            graph.drop_into_reader(node.key, _data_input(graph, node))

    def _goes(self, key: str) -> bool:
        """Whether a node belongs to the layer in front of it: norms and activations do, pools and reshapes do not."""
        is_norm = self.graph.node(key).op.endswith("Normalization")
        return is_norm or self.dependencies.kinds[key] in ("pointwise", "scaling", "affine")

    def _let_flatten(self, graph: Graph) -> None:
        """Reshapes to one row per sample, of a stored length, take the length that there is, in place."""
        shapes = self.dependencies.shapes
        for node in graph.nodes:
            target = graph.constant(node.inputs[1]) if node.op == "Reshape" and not node.domain else None
            if target is not None and target.size == 2:
                source = shapes.get(self.graph.node(node.key).inputs[0], ())
                if source[:1] == shapes.get(node.key, ())[:1]:
                    graph.set_input(node.key, 1, np.asarray([0, -1], dtype=np.int64))

    def _refuse_other_outputs(self, graph: Graph) -> None:
        before, after = self.graph.shapes(self.feeds), graph.shapes(self.feeds)
        for output in self.graph.outputs:
            if before.get(output.name) != after.get(output.name):
                raise UnsupportedError(
                    f"without the layers that go, output '{output.name}' would be {after.get(output.name)} and not "
                    f"{before.get(output.name)}: design the widths alone, with --no-depth"
                )


def _refuse_groups(graph: Graph) -> None:
    """Raise `UnsupportedError` if a Conv is grouped."""
    grouped = [node.label for node in graph.nodes if conv_groups(node) > 1]
    if grouped:
        raise UnsupportedError(
            f"Conv '{grouped[0]}' is grouped ({len(grouped)} are): its filters read different channels, so they span "
            "no common space; write the net without groups with --ungroup, train that, and design from it"
        )


def _refuse_others(graph: Graph, dependencies: DependencyGraph) -> None:
    """Raise `UnsupportedError` unless every layer reads what the one in front of it makes, and nothing else."""
    if dependencies.unsolved:
        node = dependencies.unsolved[0]
        raise UnsupportedError(f"{node.kind} '{node.name}' is no layer of a chain of Conv and Gemm: {node.reason}")
    for layer in dependencies.layers:
        if layer.kind not in LAYERS:
            raise UnsupportedError(f"{layer.kind} '{layer.name}' is no layer of a chain of Conv and Gemm")
    if len(dependencies.layers) < 2:
        raise UnsupportedError("there is nothing to design: the model has fewer than two layers with stored weights")
    for layer, following in zip(dependencies.layers, dependencies.layers[1:], strict=False):
        group = dependencies.writes(layer)
        others = [name for name in (*group.writers, *group.readers) if name not in (layer.name, following.name)]
        if others or len(group.writers) > 1 or group.coupled:
            raise UnsupportedError(_SHORTCUT.format(layer.name, next(iter(others), following.name)))
        if group.products or group.unit > 1:
            raise UnsupportedError(f"the channels of '{layer.name}' are multiplied with others: it is no chain")
        if group.frozen is not None and group.width > 1:
            raise UnsupportedError(f"the width of '{layer.name}' cannot be chosen: {group.frozen}")
        if following.name not in group.readers or len(dependencies.reads(following)) > 1:
            raise UnsupportedError(_SHORTCUT.format(layer.name, following.name))


def _data_input(graph: Graph, node: Node) -> int:
    """The first input of a node that is computed."""
    return next(at for at, name in enumerate(node.inputs) if name and not graph.is_constant(name))


def sequence(widths: Sequence[int], layers: Sequence[Layer], stays: Sequence[bool]) -> dict[str, int]:
    """Widths by name, of the layers that stay."""
    return {layer.name: width for layer, width, kept in zip(layers, widths, stays, strict=True) if kept}
