"""Edits of what a caller feeds and gets back: states whose channels go at both ends.

A state keeps its shape for as long as samples are fed that have all of its channels. Behind its input stands a node
that passes it on; what is taken of it is taken there,

    state (2, N, 128) -> Identity -> Gather, one for each axis -> 'state.kept' (2, N, 64) -> ...

and when all is done these nodes go, the input has the shape of what they made, and so has the output.
Where every row of another axis keeps places of its own (the directions of a cell), each row is taken by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pcns_onnx.graph.editing.nodes import EditedNodes
from pcns_onnx.graph.protobuf import Array, Node, Shape, tensor_of

Places = NDArray[np.int64]
_BOUNDARY = ("Identity", "Gather", "Concat")


class EditedInterface(EditedNodes):
    """An `EditedNodes` whose states get narrower."""

    def part_input(self, name: str) -> str:
        """Put a node behind input `name`, which passes it on to all of its readers: gives its key."""
        key = self.fresh_name(f"{name}.kept")
        self._redirect(name, key)
        self._model.graph.node.insert(0, helper.make_node("Identity", [name], [key]))
        self._changed()
        return key

    def take_behind(self, key: str, kept: NDArray[np.bool_], *, is_output: bool = False) -> None:
        """Let `key` be what is `kept` of that tensor: for all of its readers, or, `is_output`, for the caller alone.

        `kept` has the tensor's rank, and size one along axes of which all stays; by rows, equally many of each.
        """
        maker, inner = self._proto(key), self.fresh_name(f"{key}.whole")
        maker.output[list(maker.output).index(key)] = inner
        if is_output:
            self._redirect(key, inner)
        at = self._index(inner) + 1
        self._changed()
        axes = [axis for axis, size in enumerate(kept.shape) if size > 1]
        rows = {axis: np.moveaxis(kept, axis, 0).reshape(kept.shape[axis], -1) for axis in axes}
        by_axis = {axis: np.asarray(of_place.any(axis=1)) for axis, of_place in rows.items()}
        is_product = int(kept.sum()) == int(np.prod([places.sum() for places in by_axis.values()]))
        nodes = self._by_axis(key, inner, by_axis) if is_product else self._by_row(key, inner, kept, axes)
        for node in reversed(nodes):
            proto = helper.make_node(node.op, node.inputs, node.outputs, **node.attrs)
            self._model.graph.node.insert(at, proto)
        self._changed()

    def multiply_behind(self, key: str, by: Array) -> None:
        """Let the readers of tensor `key` see its product with a stored matrix, or a stack of them."""
        maker, inner = self._proto(key), self.fresh_name(f"{key}.plain")
        maker.output[list(maker.output).index(key)] = inner
        stored = self.fresh_name(f"{key}.by")
        self._add_initializer(tensor_of(stored, by, TensorProto.FLOAT))
        self._model.graph.node.insert(self._index(inner) + 1, helper.make_node("MatMul", [inner, stored], [key]))
        self._changed()

    def _by_axis(self, key: str, source: str, by_axis: dict[int, NDArray[np.bool_]]) -> list[Node]:
        nodes = list[Node]()
        taken = {axis: np.flatnonzero(places) for axis, places in by_axis.items() if not places.all()}
        for number, (axis, places) in enumerate(taken.items(), start=1):
            target = key if number == len(taken) else self.fresh_name(f"{key}.axis{axis}")
            nodes.append(self._gather(source, target, axis, places))
            source = target
        return nodes or [Node(key, "Identity", "", key, (source,), (key,), {})]

    def _by_row(self, key: str, source: str, kept: NDArray[np.bool_], axes: Sequence[int]) -> list[Node]:
        lead, axis = axes
        nodes, rows = list[Node](), list[str]()
        for number, row in enumerate(np.moveaxis(kept, (lead, axis), (0, 1)).reshape(kept.shape[lead], -1)):
            own, part = (self.fresh_name(f"{key}.{stem}{number}") for stem in ("row", "taken"))
            nodes.append(self._gather(source, own, lead, np.array([number])))
            nodes.append(self._gather(own, part, axis, np.flatnonzero(row)))
            rows.append(part)
        return [*nodes, Node(key, "Concat", "", key, tuple(rows), (key,), {"axis": lead})]

    def _gather(self, source: str, target: str, axis: int, places: Places) -> Node:
        stored = self.store(f"{target}.places", places.astype(np.int64), "")
        return Node(target, "Gather", "", target, (source, stored), (target,), {"axis": axis})

    def places_of(self, name: str, key: str, shape: Sequence[int]) -> Places:
        """Which entries of an input of this `shape` (size one where all stays) are left in `key`, as flat indices."""
        if key == name:
            return np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        node = self.node(key)
        if node.op == "Concat":
            return np.concatenate([self.places_of(name, part, shape) for part in node.inputs], axis=node.attrs["axis"])
        whole = self.places_of(name, node.inputs[0], shape)
        if node.op != "Gather":
            return whole
        places = self.constant(node.inputs[1])
        assert places is not None, "they are stored"
        return np.take(whole, places, axis=node.attrs["axis"])

    def join_input(self, name: str, key: str, shape: Shape) -> None:
        """Take out what stands between input `name` and tensor `key`; the input gets the `shape`, None as it was."""
        going, pending, source = set[str](), [key], name
        while pending:
            maker = self.producers.get(pending.pop())
            if maker is None or maker.op not in _BOUNDARY:
                source = name if maker is None else maker.key
                continue
            going.add(maker.key)
            pending += [item for item in maker.inputs if item and not self.is_constant(item)]
        self._redirect(key, source)
        kept = [proto for proto in self._model.graph.node if going.isdisjoint(proto.output)]
        nodes = [onnx.NodeProto.FromString(proto.SerializeToString()) for proto in kept]
        del self._model.graph.node[:]
        self._model.graph.node.extend(nodes)
        self.state_shape(name, shape)

    def _redirect(self, name: str, other: str) -> None:
        """Let all that reads a tensor read another."""
        for proto in self._model.graph.node:
            for position, item in enumerate(proto.input):
                if item == name:
                    proto.input[position] = other

    def state_shape(self, name: str, shape: Shape) -> None:
        """Write down sizes of an input or an output; those that are None stay as they are."""
        for value in (*self._model.graph.input, *self._model.graph.output):
            if value.name == name:
                for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
                    if size is not None:
                        dim.dim_value = size
        self._changed()


def entries(places: Places, old: Sequence[int], shape: Sequence[int]) -> tuple[Array, ...]:
    """Of a tensor of this `shape`, the index of the entries at flat `places` of `old`, which is one where all stays."""
    index = list[Array]()
    for axis, coordinates in enumerate(np.unravel_index(places, old)):
        if old[axis] == 1:
            coordinates = np.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))])
        index.append(coordinates)
    return tuple(index)
