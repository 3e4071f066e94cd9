"""The ONNX model as the rest of the house edits it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.files import alone_in, write_atomic, written_through
from pcns_onnx.graph.editing.interface import EditedInterface
from pcns_onnx.graph.external_data import (
    link_beside,
    read_model,
    refuse_external,
    refuse_source,
    replacing,
    save_with_data,
    tidy,
)
from pcns_onnx.graph.importer import inline_branches, inline_functions, repaired, store_inputs
from pcns_onnx.graph.initializers import take_out
from pcns_onnx.graph.layout import Layout
from pcns_onnx.graph.model_source import ModelSource, path_or_message
from pcns_onnx.graph.protobuf import (
    HALF_TYPES,
    Array,
    Node,
    keep_only,
    tensor_of,
    widen_graph,
    widen_nodes,
)
from pcns_onnx.graph.quantized_weights import set_quantized


class Graph(EditedInterface):
    """One ONNX model: read through `GraphView`, edited in place, saved whole."""

    @classmethod
    def load(cls, source: ModelSource, *, flat: bool = True) -> Graph:
        """Read and check a model; raises `InputError` with one line for anything unusable.

        If `flat`, functions and branches that are always taken are inlined (see `importer`).
        """
        source = path_or_message(source)
        where = "the given ModelProto" if isinstance(source, onnx.ModelProto) else f"'{os.fspath(source)}'"
        if isinstance(source, onnx.ModelProto):
            refuse_external(source)
            graph = cls(source)
        else:
            graph = cls(*read_model(Path(source)))
        try:
            graph.check(strict=True)
        except (onnx.checker.ValidationError, shape_inference.InferenceError, ValueError) as error:
            model, notes = repaired(graph._model)
            graph = cls(model, graph._weights, graph.files, notes)
            if not graph.passes_check():
                raise InputError(f"{where} is not a valid ONNX model: {first_line(error)}") from None
        graph.refuse_damaged(where)
        return graph._around(inline_functions(graph._model)).with_branches() if flat else graph

    def copy(self, layout: Layout | None = None) -> Graph:
        """An independent copy, whose samples are known to lie like that if need be; contents are shared."""
        return self._around(self._model, layout)

    def with_constants(self, values: Mapping[str, Array]) -> Graph:
        """A twin with these inputs stored, without the Ifs that they steer; raises `InputError` for what misfits."""
        twin = self.copy(self.layout.without(values))
        store_inputs(twin._model, values)
        return twin.with_branches()

    def with_branches(self) -> Graph:
        """The same model, every If whose condition is a constant replaced by the branch that it takes."""
        model = inline_branches(self._model, self._weights)
        return self if model is self._model else self._around(model)

    def _around(self, model: onnx.ModelProto, layout: Layout | None = None) -> Graph:
        return Graph(model, self._weights, self.files, self.notes, layout or self.stated_layout)

    # -- derived graphs ------------------------------------------------------------------

    def extract(self, inputs: Iterable[str], outputs: Sequence[str]) -> Graph:
        """The part that computes `outputs` from `inputs` (tensor names): a throwaway model.

        Types of cut tensors are float32 unless known.
        """
        sources = set(inputs)
        wanted, needed = set(), list(outputs)
        while needed:
            name = needed.pop()
            node = self.producers.get(name)
            if name in sources or node is None or node.key in wanted:
                continue
            wanted.add(node.key)
            needed += [*node.inputs, *node.captures]
        part = onnx.ModelProto(ir_version=max(self._model.ir_version, 4))
        part.opset_import.extend(self._model.opset_import)
        part.functions.extend(self._model.functions)
        part.graph.name = "part"
        used: dict[str, None] = {}
        for p, node in zip(self._model.graph.node, self.nodes, strict=True):
            if node.key in wanted:
                part.graph.node.append(p)
                used.update(dict.fromkeys((*node.inputs, *node.captures)))
        computed = {out for node in self.nodes if node.key in wanted for out in node.outputs}
        for name in used:
            if name in self._initializers:
                part.graph.initializer.append(self._initializers[name])
            elif name and name not in computed and name not in self.sparse:
                part.graph.input.append(self._value(name))
        part.graph.sparse_initializer.extend(s for s in self._model.graph.sparse_initializer if s.values.name in used)
        part.graph.output.extend(self._value(name, guess=False) for name in outputs)
        return Graph(part, {name: self._weights[name] for name in used if name in self._weights})

    def exposing(self, names: Iterable[str]) -> Graph:
        """A twin that has these tensors among its outputs too."""
        twin = self.copy()
        twin._model.graph.output.extend(self._value(name, guess=False) for name in names)
        return twin

    def as_float32(self) -> Graph:
        """A twin whose half-precision tensors are float32 (onnxruntime's CPU has no bf16 kernels)."""
        if self.storage == "float32" and not any(s.dtype.itemsize == 2 for s in self.inputs):
            return self
        twin = self.copy()
        for tensor in twin._model.graph.initializer:
            if tensor.name in twin._weights and tensor.data_type in HALF_TYPES:
                twin._weights[tensor.name] = twin._weights[tensor.name].astype(np.float32)
                tensor.data_type = TensorProto.FLOAT
        widen_graph(twin._model.graph)
        for function in twin._model.functions:
            widen_nodes(function.node)
        return twin

    # -- edits ---------------------------------------------------------------------------

    def set_input(self, key: str, position: int, value: Array, like: str = "") -> None:
        """Make input `position` of node `key` the constant `value`, in the form of the old one (the dtype of `like`).

        A constant that other nodes read too is left to them; an absent optional input is appended under a new name.
        """
        if position < len(self.node(key).inputs) and set_quantized(self, key, position, value):
            return
        proto, node = self._proto(key), self.node(key)
        old = node.inputs[position] if position < len(node.inputs) else ""
        is_count = value.dtype.kind == "i"
        dtype = self._kind(old or like) or (TensorProto.INT64 if is_count else self._float_type(node))
        is_own = bool(old) and old in self._initializers and len(self.consumers[old]) == 1
        is_own = is_own and list(node.inputs).count(old) == 1 and old not in {o.name for o in self.outputs}
        name = old if is_own else self.fresh_name(old or f"{node.label}.{'sizes' if is_count else 'bias'}")
        new = tensor_of(name, value, dtype)
        if is_own:
            self._weights = {n: v for n, v in self._weights.items() if n != old} | take_out([new])
            self._initializers[old].CopyFrom(new)
            for spec in self._model.graph.input:
                if spec.name == old:
                    spec.CopyFrom(helper.make_tensor_value_info(old, dtype, new.dims))
            for stale in {"inputs", "_types", *(["_derived"] if key in self.derived else [])} & vars(self).keys():
                del self.__dict__[stale]
            return
        self._add_initializer(new)
        proto.input.extend([""] * (position + 1 - len(proto.input)))
        proto.input[position] = name
        self._changed()

    def set_numbers(self, key: str, position: int, numbers: Mapping[int, int]) -> None:
        """Set elements of a 1-d integer input that is concatenated from pieces, some of them stored.

        What other nodes read too is left to them: node `key` gets a concatenation of its own.
        """
        value = self.constant(self.node(key).inputs[position])
        if value is not None:
            new = value.reshape(-1).copy()
            new[list(numbers)] = list(numbers.values())
            self.set_input(key, position, new.reshape(value.shape))
            return
        maker = self.own_maker(key, position)
        if maker.op != "Concat":
            self.set_numbers(maker.key, 0, numbers)
            return
        shapes, start = self.shapes(), 0
        for piece, source in enumerate(maker.inputs):
            count = int(np.prod([size or 1 for size in shapes[source]]))
            in_piece = {element - start: n for element, n in numbers.items() if start <= element < start + count}
            if in_piece:
                self.set_numbers(maker.key, piece, in_piece)
            start += count

    def is_computed(self, key: str, position: int) -> bool:
        """Whether a node has this input and something computes it."""
        inputs = self.node(key).inputs
        return position < len(inputs) and inputs[position] in self.producers and not self.is_constant(inputs[position])

    def own_maker(self, key: str, position: int, stem: str = "shape") -> Node:
        """The node that makes an input, copied if anything else reads what it makes."""
        node, name = self.node(key), self.node(key).inputs[position]
        maker = self.producers[name]
        if len(self.consumers[name]) == 1 and name not in {o.name for o in self.outputs}:
            return maker
        at = self._index(maker.key)
        twin = onnx.NodeProto()
        twin.CopyFrom(self._model.graph.node[at])
        twin.output[0] = self.fresh_name(f"{node.label}.{stem}")
        twin.name = twin.output[0] if twin.name else ""
        self._proto(key).input[position] = twin.output[0]
        self._model.graph.node.insert(at + 1, twin)
        self._changed()
        return self.node(twin.output[0])

    def set_attributes(self, key: str, **attrs: Any) -> None:
        """Set attributes of node `key`; None takes one away."""
        proto = self._proto(key)
        keep_only(proto.attribute, lambda attr: attr.name not in attrs)
        proto.attribute.extend(helper.make_attribute(name, v) for name, v in attrs.items() if v is not None)
        self._changed()

    def name_output(self, key: str, position: int, name: str) -> None:
        """Give output `position` of node `key` this name; an empty one says that nobody reads it."""
        self._proto(key).output[position] = name
        self._changed()

    def read_same(self, key: str, position: int, name: str) -> None:
        """Let input `position` of node `key` be the constant `name`, or none; no empty names are left at the end.

        ONNX allows them there, but OpenCV's importer takes each for an input. So a position behind the end is one that
        names nothing.
        """
        inputs = self._proto(key).input
        inputs.extend([""] * (position + 1 - len(inputs)))
        inputs[position] = name
        while not name and inputs and not inputs[-1]:
            inputs.pop()
        self._changed()

    def append(self, key: str, op: str, value: Array, ends: tuple[str, str], layer: str = "") -> str:
        """Put node `op` with a stored `value` behind node `key` of `layer`: gives its new key; names get `ends`."""
        node, proto = self.node(key), self._proto(key)
        dtype, inner = self._float_type(node), self.fresh_name(f"{key}.linear")
        stored = self.fresh_name(f"{node.label}{ends[1] or '.square'}")
        proto.output[0] = inner
        if (node.name or layer) and ends[0]:
            proto.name = f"{node.name or layer}{ends[0]}"
        behind = helper.make_node(op, [inner, stored], [key], name=f"{node.name}{ends[1]}" if node.name else "")
        self._model.graph.node.insert(self._index(inner) + 1, behind)
        self._add_initializer(tensor_of(stored, value, dtype))
        self._changed()
        return inner

    def make_constant(self, key: str, like: str, value: Array) -> None:
        """Replace node `key` by an initializer of its output's name, in the dtype of the constant `like`, if any."""
        dtype = self._kind(like) or helper.np_dtype_to_tensor_dtype(value.dtype)
        del self._model.graph.node[self._index(key)]
        self._add_initializer(tensor_of(key, value, dtype))
        self._changed()

    def prune(self, was: Graph | None = None) -> None:
        """Drop constants that no node reads, derived ones too, and bring `value_info` up to date; with `was`, an
        earlier state, nodes go too that reached an output there and reach none here."""
        graph, lost = self._model.graph, set[str]() if was is None else was.reaching - self.reaching
        loose = self._constant_nodes.keys() | self.sparse | self.derived | lost
        used, unread = {o.name for o in graph.output}, set[str]()
        for node in reversed(self.nodes):
            if node.key in loose and node.key not in used:
                unread.add(node.key)
            else:
                used.update(node.inputs, node.captures)
        keep_only(graph.node, lambda p: unread.isdisjoint(p.output))
        unused = self._initializers.keys() - used
        keep_only(graph.initializer, lambda t: t.name not in unused)
        keep_only(graph.sparse_initializer, lambda t: t.values.name in used)
        keep_only(graph.input, lambda v: v.name not in unused)
        self._weights = {name: value for name, value in self._weights.items() if name not in unused}
        self._changed()
        self._update_shapes()

    def set_metadata(self, key: str, value: str) -> None:
        """Set one entry of the model's `metadata_props`."""
        entries = self._model.metadata_props
        (next((e for e in entries if e.key == key), None) or entries.add(key=key)).value = value

    # -- files ---------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model atomically: it appears whole or not at all.

        If it came with external data, or is too large for one file, it gets a data file beside it (where `path` is a
        link: beside its target). That of a model which is replaced goes, unless this one was read from it.
        """
        target = written_through(path)
        with alone_in(target.parent):
            refuse_source(target, self.files)
            tidy(target)
            if self._has_data_file:
                link_beside(Path(path), target, save_with_data(target, self._model, self._weights, self.files))
            else:
                with replacing(target, set(), self.files):
                    write_atomic(target, self.serialize())
