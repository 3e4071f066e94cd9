"""What can be read off an ONNX model: nodes, constants, neighbours, shapes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.graph.constants import Derived
from pcns_onnx.graph.initializers import Program, put_back, raw, take_out, without, without_placeholders
from pcns_onnx.graph.layout import Layout, layout_of
from pcns_onnx.graph.protobuf import (
    Array,
    Node,
    TensorSpec,
    constant_tensor,
    copy_of,
    encode,
    is_float,
    moved_out,
    node_of,
    spec_of,
    with_open_sizes,
)
from pcns_onnx.graph.quantized_weights import parameters_of
from pcns_onnx.graph.restoration import graphs_of
from pcns_onnx.graph.shapes.pooling_sizes import state_pool_sizes

MOST = (1 << 31) - 1
"""Bytes that one protobuf file can have."""

ONNXRUNTIMES = {"LayerNormalization", "SimplifiedLayerNormalization"}
"""What onnxruntime has among the default operators, whatever their version, and onnx does not."""


class GraphView:
    """An index over the main graph of one model, built when it is first asked for.

    `weights` are contents that `proto` has placeholders for, `files` those that they are mapped
    from. The message is copied, the contents are shared and never written to.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        weights: Mapping[str, Array] | None = None,
        files: frozenset[Path] = frozenset(),
        notes: tuple[str, ...] = (),
        stated_layout: Layout | None = None,
    ) -> None:
        self._model = copy_of(proto)
        taken = take_out(self._model.graph.initializer)
        if taken:
            self._model = copy_of(self._model)  # what was taken out of a message stays allocated in it
        self._weights: dict[str, Array] = {**(weights or {}), **taken}
        self.files, self.notes = files, notes
        self.stated_layout = stated_layout

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes of the main graph in topological order."""
        return tuple(node_of(p) for p in self._model.graph.node)

    @property
    def reaching(self) -> set[str]:
        """Keys of the nodes that an output of the model depends on."""
        keys, pending = set[str](), [output.name for output in self.outputs]
        while pending:
            node = self.producers.get(pending.pop())
            if node is not None and node.key not in keys:
                keys.add(node.key)
                pending += [*node.inputs, *node.captures]
        return keys

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Tensor name -> the node that makes it."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def consumers(self) -> dict[str, tuple[Node, ...]]:
        """Tensor name -> the nodes that read it, those that capture it in a subgraph included."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys((*node.inputs, *node.captures)):
                if name:
                    readers.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    def made_from(self, key: str) -> frozenset[str]:
        """All that is made by node `key` and by those that stand behind it."""
        at = self.nodes.index(self.producers[key])
        return frozenset(name for node in self.nodes[at:] for name in node.outputs if name)

    @cached_property
    def _initializers(self) -> dict[str, TensorProto]:
        return {t.name: t for t in self._model.graph.initializer}

    @cached_property
    def _constant_nodes(self) -> dict[str, TensorProto]:
        tensors: dict[str, TensorProto] = {}
        for p in self._model.graph.node:
            if p.op_type == "Constant" and not p.domain and p.output[0] not in self.sparse:
                tensors[p.output[0]] = constant_tensor(p)
        return tensors

    @cached_property
    def _stored(self) -> dict[str, TensorProto]:
        return {**self._initializers, **self._constant_nodes}

    @cached_property
    def sparse(self) -> frozenset[str]:
        """Constants that are stored sparsely: they count as computed, since nothing here solves for them."""
        graph = self._model.graph
        constants = (p for p in graph.node if p.op_type == "Constant" and not p.domain)
        names = {p.output[0] for p in constants if any(a.name == "sparse_value" for a in p.attribute)}
        return frozenset(names | {t.values.name for t in graph.sparse_initializer})

    @cached_property
    def functions(self) -> frozenset[tuple[str, str]]:
        """(domain, name) of the functions that the model brings along."""
        return frozenset((f.domain, f.name) for f in self._model.functions)

    @cached_property
    def _derived(self) -> Derived:
        return Derived(self._model, self.nodes, self._stored, self._read)

    @property
    def derived(self) -> frozenset[str]:
        """Keys of the nodes that make constants of constants alone: `constant` sees through them."""
        return self._derived.names

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initializer, the output of a Constant node, or derived from such alone."""
        return name in self._stored or name in self._derived.names

    def is_computed(self, key: str, position: int) -> bool:
        """Whether a node has this input and something computes it."""
        inputs = self.node(key).inputs
        return position < len(inputs) and inputs[position] in self.producers and not self.is_constant(inputs[position])

    def constant(self, name: str) -> Array | None:
        """Value of a constant, not to be written to; None for anything computed."""
        if name in self._stored:
            return self._read(name)
        return self._derived.value(name) if name in self._derived.names else None

    def _read(self, name: str) -> Array:
        if name in self._weights:
            return self._weights[name]
        try:
            return numpy_helper.to_array(self._stored[name])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the model's tensor '{name}' is damaged ({type(error).__name__}: {error})") from None

    def _kind(self, name: str) -> int | None:
        """The element type of a constant."""
        if name in self._stored:
            return int(self._stored[name].data_type)
        return self._derived.kind(name) if name in self._derived.names else None

    def _float_type(self, node: Node) -> int:
        """The tensor type of a node's weights: what a constant added beside them must have."""
        kinds = (self._kind(name) for name in node.inputs)
        return next((kind for kind in kinds if kind is not None and is_float(kind)), int(TensorProto.FLOAT))

    def node(self, key: str) -> Node:
        """The node whose first output is `key`."""
        return self.producers[key]

    @cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a caller must feed: graph inputs that are not initializers."""
        stored = self._initializers.keys() | self.sparse
        return tuple(spec_of(v) for v in self._model.graph.input if v.name not in stored)

    @cached_property
    def layout(self) -> Layout:
        """Along which axes of the inputs the samples lie."""
        return self.stated_layout or layout_of(self.inputs)

    @cached_property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph outputs."""
        return tuple(spec_of(v) for v in self._model.graph.output)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((o.version for o in self._model.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def parameters(self) -> int:
        """Number of weights that are stored, in initializers and Constant nodes, of subgraphs too.

        Floats, and what stands for floats; scales and zero points of the latter are no weights.
        """
        sizes = {name: math.prod(tensor.dims) for name, tensor in self._stored.items()}
        quantized, beside = parameters_of(self, sizes)
        floats = {name for name, tensor in self._stored.items() if is_float(tensor.data_type)} - beside
        inside = list(graphs_of(self._model.graph))[1:]
        tensors = [tensor for graph in inside for tensor in graph.initializer]
        constants = (p for graph in inside for p in graph.node if p.op_type == "Constant" and not p.domain)
        tensors += [attribute.t for p in constants for attribute in p.attribute if attribute.name == "value"]
        in_subgraphs = sum(math.prod(tensor.dims) for tensor in tensors if is_float(tensor.data_type))
        return sum(quantized.values()) + sum(sizes[name] for name in floats - quantized.keys()) + in_subgraphs

    @property
    def storage(self) -> str:
        """'bfloat16', 'float16' or 'float32': the narrowest float among the constants."""
        types = {self._kind(name) for name in (*self._stored, *self._derived.names)}
        if TensorProto.BFLOAT16 in types:
            return "bfloat16"
        return "float16" if TensorProto.FLOAT16 in types else "float32"

    def metadata(self, key: str) -> str | None:
        """One entry of the model's `metadata_props`, or None."""
        return next((e.value for e in self._model.metadata_props if e.key == key), None)

    def check(self, *, full: bool = False, strict: bool = False) -> None:
        """Run the ONNX checker; `full` adds strict shape inference. Raises onnx's own errors.

        Only if `strict` it minds inputs and outputs without a shape, which onnxruntime does not.
        """
        model = without_placeholders(self._model)
        if full:
            state_pool_sizes(model.graph.node)
        for graph in graphs_of(model.graph):
            for value in (*graph.input, *graph.output) if not strict else ():
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.shape.SetInParent()
        strange = {p.op_type for p in model.graph.node if not p.domain} & ONNXRUNTIMES
        strange = {op for op in strange if not onnx.defs.has(op, self.opset)}
        onnx.checker.check_model(moved_out(model, strange) if strange else model, full_check=full)

    def passes_check(self, *, full: bool = False) -> bool:
        """Whether the checker agrees; with `full` strict shape inference too, which some exports that run well do not
        pass."""
        try:
            self.check(full=full)
        except (onnx.checker.ValidationError, shape_inference.InferenceError, ValueError):
            return False
        return True

    def refuse_damaged(self, where: str) -> None:
        """Raise `InputError` if a constant cannot be read, or a Resize lacks what its operator asks for."""
        for node in self.nodes:
            if node.op == "Resize" and not node.domain and self.opset > 10 and not any(node.inputs[2:4]):
                raise InputError(
                    f"{where}: Resize '{node.label}' says neither scales nor sizes: export the model again"
                )
        for name, tensor in self._stored.items():
            if is_float(tensor.data_type):
                try:
                    self._read(name)
                except (ValueError, TypeError) as error:
                    raise InputError(f"{where}: constant '{name}' is damaged: {first_line(error)}") from None

    def fresh_name(self, stem: str) -> str:
        """A tensor name derived from `stem` that nothing in the graph uses yet."""
        listed = (v.name for v in self._model.graph.input)
        taken = {*self.producers, *self.consumers, *self._initializers, *self.sparse, *listed}
        names = (stem if not i else f"{stem}_{i}" for i in range(len(taken) + 1))
        return next(name for name in names if name not in taken)

    # -- bytes ---------------------------------------------------------------------------

    @property
    def proto(self) -> onnx.ModelProto:
        """The whole model as one message, all contents inside: a copy, which may be larger than protobuf writes."""
        whole = copy_of(self._model)
        for tensor in whole.graph.initializer:
            if tensor.name in self._weights:
                put_back(tensor, bytes(raw(self._weights[tensor.name])))
        return whole

    @property
    def outline(self) -> onnx.ModelProto:
        """A copy in which large initializers that only nodes of the main graph read are placeholders."""
        twin = copy_of(self._model)
        read = {name for node in self.nodes for name in node.inputs} - {n for node in self.nodes for n in node.captures}
        for tensor in twin.graph.initializer:
            if tensor.name in self._weights and tensor.name not in read:
                put_back(tensor, bytes(raw(self._weights[tensor.name])))
        return twin

    def program(self, *, named: bool = False) -> Program:
        """The model for onnxruntime; no content is copied that lies aligned in memory.

        onnxruntime takes no content for initializers that no node reads, so they are left out.
        `named` nodes have their keys as names, so that a profile can be read.
        """
        used = {output.name for output in self.outputs}
        for node in self.nodes:
            used.update((*node.inputs, *node.captures))
        weights = {name: value for name, value in self._weights.items() if name in used}
        weights = {name: np.require(value, requirements=["C", "A"]) for name, value in weights.items()}
        model = with_open_sizes(without(self._model, self._weights.keys() - used))
        if named:
            model = copy_of(model)
            for proto, node in zip(model.graph.node, self.nodes, strict=True):
                proto.name = node.key
        return Program(encode(model), weights)

    def digest(self) -> str:
        """SHA-256 of the model and all contents; wherever these are stored, equal models have the same."""
        sha256 = hashlib.sha256(encode(self._model))
        for name in self._initializers:
            if name in self._weights:
                sha256.update(raw(self._weights[name]))
        return sha256.hexdigest()

    @property
    def nbytes(self) -> int:
        """Size of what `save` writes."""
        return self._size if self._has_data_file else int(self.proto.ByteSize())

    def serialize(self) -> bytes:
        """The model as bytes, deterministic for equal content; raises `InputError` above 2 GB."""
        return encode(self.proto)

    @property
    def _size(self) -> int:
        return int(self._model.ByteSize()) + sum(int(value.nbytes) for value in self._weights.values())

    @property
    def _has_data_file(self) -> bool:
        return bool(self._weights) and (bool(self.files) or self._size > MOST)
