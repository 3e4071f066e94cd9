"""Edits that put nodes into a graph, take them out of it or change their order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from pcns_onnx.graph.initializers import take_out
from pcns_onnx.graph.protobuf import Array, Node, copy_of, tensor_of
from pcns_onnx.graph.shapes.inference import InferredView


class EditedNodes(InferredView):
    """An `InferredView` whose nodes come, go and change places."""

    def reorder(self, keys: Sequence[str]) -> None:
        """Put the nodes, all of them, in this order, which is topological too."""
        by_key = {node.key: proto for node, proto in zip(self.nodes, copy_of(self._model).graph.node, strict=True)}
        del self._model.graph.node[:]
        self._model.graph.node.extend(by_key[key] for key in keys)
        self._changed()

    def bypass(self, key: str) -> None:
        """Remove single-input node `key`; its producer takes over the removed output's name."""
        inner = self.node(key).inputs[0]
        source = self._proto(self.producers[inner].key)
        position = list(source.output).index(inner)
        del self._model.graph.node[self._index(key)]
        source.output[position] = key
        self._changed()

    def drop_into_reader(self, key: str, position: int = 0) -> None:
        """Remove node `key`; its readers read its input `position` instead."""
        source = self.node(key).inputs[position]
        del self._model.graph.node[self._index(key)]
        for proto in self._model.graph.node:
            for position, name in enumerate(proto.input):
                if name == key:
                    proto.input[position] = source
        self._changed()

    def replace(self, key: str, nodes: Sequence[Node]) -> None:
        """Put these nodes, in topological order, in the place of node `key`."""
        at = self._index(key)
        del self._model.graph.node[at]
        for node in reversed(nodes):
            proto = helper.make_node(node.op, node.inputs, node.outputs, node.name, domain=node.domain, **node.attrs)
            self._model.graph.node.insert(at, proto)
        self._changed()

    def store(self, stem: str, value: Array, like: str) -> str:
        """Store a constant in the type of the constant `like` (int64 if it counts): gives its name."""
        name = self.fresh_name(stem)
        kind = TensorProto.INT64 if value.dtype.kind == "i" else self._kind(like) or TensorProto.FLOAT
        self._add_initializer(tensor_of(name, value, kind))
        self._changed()
        return name

    def _changed(self) -> None:
        """Forget all that was read off the model before it was edited."""
        for name in vars(self).keys() - {"_model", "_weights", "files", "notes", "stated_layout"}:
            del self.__dict__[name]

    def _add_initializer(self, tensor: TensorProto) -> None:
        """Before IR version 4 an initializer must be listed as an input too."""
        graph = self._model.graph
        self._weights |= take_out([tensor])
        graph.initializer.append(tensor)
        if self._model.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    def _index(self, key: str) -> int:
        return next(i for i, p in enumerate(self._model.graph.node) if key in p.output)

    def _proto(self, key: str) -> onnx.NodeProto:
        proto: onnx.NodeProto = self._model.graph.node[self._index(key)]
        return proto
