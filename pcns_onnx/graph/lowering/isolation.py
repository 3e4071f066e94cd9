"""What a tool that rewrites a graph by its tensors' names trips over, taken out of its way and put back.

*Names.* Such a tool names what it makes after a tensor, with an ending of its own; where that name is taken, the
result is no valid model. So the tensors are numbered while it works.
*Fused outputs.* It takes what only a Relu reads to be rectified, an output of the model, too. So such an output is
made apart.
*Captures.* It sees what nodes read, not what the subgraphs of an If, Loop or Scan read of the graph around them; when
it renames or fuses away such a tensor, the subgraph reads something else. So a subgraph gets a copy of what it reads.
*Plain outputs.* An output that is an input or a stored constant is made by no node, so it cannot be rerouted.
It is taken off the list, and comes back as it was.
*Types.* It asks onnx what a tensor holds, and leaves alone what onnx does not know, which is all that stands behind an
operator of another domain. So those types are stated, as onnxruntime finds them.
*Branches.* A tool that watches values sees the branch of an If that the samples take. So it is shown the other, too.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, shape_inference

from pcns_onnx.errors import InputError
from pcns_onnx.graph.model import Graph
from pcns_onnx.graph.protobuf import is_container, keep_only, node_of

Outputs = list[tuple[int, ValueInfoProto, TensorProto | None]]
"""Plain outputs: their place, what is declared, and the constant that they are, if they are one."""


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph, those of its subgraphs included."""
    for node in graph.node:
        yield node
        for sub in _subgraphs(node):
            yield from all_nodes(sub)


def has_subgraph(node: NodeProto) -> bool:
    """Whether a node is an If, a Loop, a Scan or their like."""
    return next(_subgraphs(node), None) is not None


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH:
            yield attr.g
        yield from attr.graphs


# -- names -------------------------------------------------------------------------------------


def numbered(graph: Graph, endings: Iterable[str]) -> tuple[Graph, dict[str, str]]:
    """The model with numbers for names, and what each was, if a name is that of another tensor with one of `endings`.

    Where there is none, the model is left as it is.
    """
    proto = graph.proto
    own, names = tensor_names(proto.graph, nested=False), tensor_names(proto.graph)
    cuts = ((name, name.find(ending, 1)) for name in names for ending in endings)
    if not any(at > 0 and name[:at] in names for name, at in cuts):
        return graph, {}
    stem = next(stem for stem in ("t", *(f"t{i}_" for i in range(len(names) + 1))) if not _starts(names, stem))
    numbers = {name: f"{stem}{i}" for i, name in enumerate(sorted(own))}
    rename(proto.graph, numbers)
    return Graph(proto), {number: name for name, number in numbers.items()}


def _starts(names: Iterable[str], stem: str) -> bool:
    return any(name.startswith(stem) for name in names)


def named_again(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give numbered tensors their names back, in place; whatever else took one of those gets another."""
    taken = tensor_names(proto.graph)
    others = (taken & set(names.values())) - names.keys()
    fresh = {name: _unused(name, taken | set(names.values())) for name in others}
    rename(proto.graph, {**names, **fresh})


def _unused(stem: str, names: Collection[str]) -> str:
    """A name that nothing in a graph has, its subgraphs included."""
    return next(name for name in (stem, *(f"{stem}_{i}" for i in range(len(names) + 1))) if name not in names)


def tensor_names(graph: GraphProto, *, nested: bool = True) -> set[str]:
    """All tensors that a graph (and its subgraphs) has or reads."""
    names = {value.name for value in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output)
        for sub in _subgraphs(node) if nested else ():
            names |= tensor_names(sub)
    return names - {""}


def rename(graph: GraphProto, names: Mapping[str, str], hidden: Collection[str] = ()) -> None:
    """Rename tensors of a graph in place, also where its subgraphs read them; not those that are `hidden`."""

    def new(name: str) -> str:
        return name if name in hidden else names.get(name, name)

    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = new(annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = new(entry.value)
    for node in graph.node:
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        for sub in _subgraphs(node):
            rename(sub, names, {*hidden, *_made_in(sub)})


def _made_in(graph: GraphProto) -> set[str]:
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    return names.union(*(node.output for node in graph.node))


# -- captures ----------------------------------------------------------------------------------


def with_own_captures(graph: Graph) -> Graph:
    """The model, its subgraphs reading copies of what else is read: Identities of tensors, and constants twice."""
    captured = dict.fromkeys(name for node in graph.nodes for name in node.captures)
    read = {name for node in graph.nodes for name in node.inputs} | {spec.name for spec in graph.outputs}
    proto = graph.proto
    stored = {tensor.name for tensor in proto.graph.initializer}
    names = tensor_names(proto.graph)
    copies = {name: _unused(f"{name}.captured", names) for name in captured if name in read or name not in stored}
    if not copies:
        return graph
    twins = [tensor for tensor in proto.graph.initializer if tensor.name in copies]
    for tensor in twins:
        proto.graph.initializer.add().CopyFrom(tensor)
        proto.graph.initializer[-1].name = copies[tensor.name]
    for node in proto.graph.node:
        for sub in _subgraphs(node):
            rename(sub, copies, _made_in(sub))
    nodes = [_copy(spec.name, copies) for spec in graph.inputs if spec.name in copies]
    for node in list(proto.graph.node):
        nodes += [node, *(_copy(name, copies) for name in node.output if name in copies)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return Graph(proto)


def _copy(name: str, copies: Mapping[str, str]) -> NodeProto:
    return helper.make_node("Identity", [name], [copies[name]], name=copies[name])


# -- branches ----------------------------------------------------------------------------------


def with_flip(graph: Graph) -> tuple[Graph, str]:
    """The model with one more input, a bool: where it is true, every If takes its other branch; and its name.

    Where there is no If, the model is left as it is and the name is empty.
    """
    proto = graph.proto
    places = [place for place, node in enumerate(proto.graph.node) if node.op_type == "If" and not node.domain]
    if not places:
        return graph, ""
    flip = _unused("flip", {name.split(".")[0] for name in tensor_names(proto.graph)})
    for number, place in reversed(list(enumerate(places))):
        node = proto.graph.node[place]
        condition = f"{flip}.{number}"
        proto.graph.node.insert(place, helper.make_node("Xor", [node.input[0], flip], [condition], name=condition))
        proto.graph.node[place + 1].input[0] = condition
    proto.graph.input.append(helper.make_tensor_value_info(flip, TensorProto.BOOL, []))
    return Graph(proto), flip


def without_flip(proto: onnx.ModelProto, flip: str) -> None:
    """Take that input out again, in place."""
    conditions = {node.output[0]: node.input[0] for node in proto.graph.node if flip and flip in node.input}
    keep_only(proto.graph.node, lambda node: not conditions.keys() & set(node.output))
    keep_only(proto.graph.input, lambda value: value.name != flip)
    keep_only(proto.graph.value_info, lambda value: value.name not in conditions)
    rename(proto.graph, conditions)


# -- order -------------------------------------------------------------------------------------


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes of a graph in an order in which all that they and their subgraphs read is made before, in place.

    Nodes that stand in such an order stay as they are.
    """
    nodes = list(graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    waiting, readers = list[int](), dict[int, list[int]]()
    for place, node in enumerate(nodes):
        plain = node_of(node)
        sources = {makers[name] for name in (*plain.inputs, *plain.captures) if name in makers}
        waiting.append(len(sources))
        for source in sources:
            readers.setdefault(source, []).append(place)
    ready, order = [place for place, count in enumerate(waiting) if not count], list[int]()
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise InputError("the lowered model's nodes read each other in a circle")
    del graph.node[:]
    graph.node.extend(nodes[place] for place in order)


def with_own_outputs(graph: Graph, readers: Collection[str]) -> Graph:
    """The model, its outputs that an operator of `readers` reads made by Identities of what that one reads."""
    outputs = {spec.name for spec in graph.outputs} & graph.producers.keys()
    fused = {name for name in outputs if any(node.op in readers for node in graph.consumers.get(name, ()))}
    if not fused:
        return graph
    proto = graph.proto
    inner = {name: _unused(f"{name}.inner", tensor_names(proto.graph)) for name in sorted(fused)}
    rename(proto.graph, inner)
    names = {inner_name: name for name, inner_name in inner.items()}
    for value in proto.graph.output:
        value.name = names.get(value.name, value.name)
    proto.graph.node.extend(_copy(name, names) for name in names)
    return Graph(proto)


def with_node_names(graph: Graph) -> Graph:
    """The model, its nodes with names of their own: those of their first outputs, where they do not have such."""
    count = Counter(node.name for node in graph.nodes)
    proto = graph.proto
    for node, p in zip(graph.nodes, proto.graph.node, strict=True):
        if not node.name or count[node.name] > 1 or not node.key:
            p.name = f"{node.op}.{node.key}"
    return Graph(proto)


# -- types -------------------------------------------------------------------------------------


def of_unknown_type(graph: Graph) -> frozenset[str]:
    """Tensors of which onnx cannot infer what they hold."""
    inferred = shape_inference.infer_shapes(graph.proto).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    known = {value.name for value in values if value.type.tensor_type.elem_type or is_container(value.type)}
    return frozenset(name for node in graph.nodes for name in node.outputs if name) - known


def with_types(graph: Graph, kinds: Mapping[str, str]) -> Graph:
    """The model with the types of these tensors stated, which are written as onnxruntime does: 'tensor(float)'."""
    proto = graph.proto
    keep_only(proto.graph.value_info, lambda value: value.name not in kinds)
    for name, kind in kinds.items():
        word = kind.removeprefix("tensor(").removesuffix(")").upper()
        if word in TensorProto.DataType.keys():  # noqa: SIM118  # no mapping
            element = TensorProto.DataType.Value(word)
            proto.graph.value_info.append(helper.make_tensor_value_info(name, element, None))
    return Graph(proto)


# -- plain outputs -----------------------------------------------------------------------------


def without_plain_outputs(graph: Graph) -> tuple[Graph, Outputs]:
    """The model without outputs that are inputs or stored constants, and those."""
    proto = graph.proto
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    plain = stored.keys() | {value.name for value in proto.graph.input}
    outputs: Outputs = [
        (place, value, stored.get(value.name)) for place, value in enumerate(graph.proto.graph.output)
        if value.name in plain
    ]  # fmt: skip
    if len(outputs) in (0, len(proto.graph.output)):  # a model has to have one
        return graph, []
    keep_only(proto.graph.output, lambda value: value.name not in plain)
    unread = {value.name for _, value, _ in outputs} - graph.consumers.keys()
    keep_only(proto.graph.initializer, lambda tensor: tensor.name not in unread)
    return Graph(proto), outputs


def put_back_outputs(proto: onnx.ModelProto, outputs: Outputs) -> None:
    """List plain outputs again, in place, and store the constants among them where they are no longer."""
    listed = list(proto.graph.output)
    for place, value, constant in outputs:
        listed.insert(place, value)
        if constant is not None and constant not in list(proto.graph.initializer):
            names = tensor_names(proto.graph)
            if value.name in names:  # what became of it where nodes read it, too
                rename(proto.graph, {value.name: _unused(value.name, names)})
            proto.graph.initializer.append(constant)
    del proto.graph.output[:]
    proto.graph.output.extend(listed)
