"""What a model is turned into when it is read: sound where only onnx's checker minds, and flat where it can be.

**Repairs.** onnxruntime runs files that the checker refuses: nodes in any order, initializers that an old version
would list as inputs, fields that are missing or said twice. They are put right, with a note; nothing is computed
otherwise by that. What does not pass then is refused as it came.

**Functions** of the model are put in the place of their calls (onnx's inliner), and an **If** whose condition is a
constant is replaced by the branch that it takes, so that the layers inside are layers like all others.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, inliner, shape_inference

from pcns_onnx.errors import InputError, first_line
from pcns_onnx.graph.initializers import is_left_out, without_placeholders
from pcns_onnx.graph.protobuf import Array, captured, copy_of, keep_only, shape_of, tensor_of
from pcns_onnx.graph.restoration import graphs_of, subgraphs
from pcns_onnx.graph.view import GraphView

Contents = Mapping[str, Array]


# -- repairs -----------------------------------------------------------------------------------


def repaired(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy with all that can be put right, and what that was."""
    twin, notes = copy_of(model), []
    for repair, what in _REPAIRS.items():
        before = twin.SerializeToString(deterministic=True)
        repair(twin)
        if twin.SerializeToString(deterministic=True) != before:
            notes.append(what)
    return twin, tuple(notes)


def _name_graphs(model: onnx.ModelProto) -> None:
    for graph in graphs_of(model.graph):
        graph.name = graph.name or "graph"


def _settle_initializers(model: onnx.ModelProto) -> None:
    """One initializer without a name is nobody's; of equal ones of the same name one is enough.

    Which one counts where they differ depends, in onnxruntime 1.32, on their size: those are refused.
    """
    for graph in graphs_of(model.graph):
        contents = [t.SerializeToString(deterministic=True) for t in graph.initializer if t.name and not is_left_out(t)]
        kept = [t.SerializeToString(deterministic=True) for t in graph.initializer if t.name and is_left_out(t)]
        kept += dict.fromkeys(contents)
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(onnx.TensorProto.FromString(content) for content in kept)
        for tensor in graph.initializer:
            if tensor.raw_data:
                for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                    tensor.ClearField(name)


def _list_inputs(model: onnx.ModelProto) -> None:
    """Before IR version 4 an initializer is an input too; in a branch, which has none, it becomes a Constant."""
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer if model.ir_version < 4 else ():
        if tensor.name not in listed:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for graph in list(graphs_of(model.graph))[1:] if model.ir_version < 4 else ():
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in graph.initializer]
        nodes += list(graph.node)
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)


def _import_domains(model: onnx.ModelProto) -> None:
    """The operator sets that nodes use, in the version in which they last changed."""
    known = {entry.domain or "ai.onnx" for entry in model.opset_import}
    used: dict[str, int] = {}
    for node in _nodes_of(model.graph.node):
        domain = node.domain or "ai.onnx"
        if domain not in known and domain != "ai.onnx":
            has = onnx.defs.has(node.op_type, domain)
            since = onnx.defs.get_schema(node.op_type, domain).since_version if has else 1
            used[domain] = max(used.get(domain, 1), since)
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in used.items())


def _sort_nodes(model: onnx.ModelProto) -> None:
    for graph in graphs_of(model.graph):
        order = _topological(list(graph.node))
        if order is not None and order != sorted(order):
            nodes = [graph.node[at] for at in order]
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copies)


def _topological(nodes: list[onnx.NodeProto]) -> list[int] | None:
    """An order in which every node stands behind what it reads, as close to the given one as can be; None for none."""
    made_by = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    readers: list[list[int]] = [[] for _ in nodes]
    missing = [0] * len(nodes)
    for at, node in enumerate(nodes):
        names = {*node.input, *(name for subgraph in subgraphs(node) for name in captured(subgraph))}
        for maker in {made_by[name] for name in names if name in made_by}:
            readers[maker].append(at)
            missing[at] += 1
    ready, order = [at for at, count in enumerate(missing) if not count], list[int]()
    while ready:
        at = heapq.heappop(ready)
        order.append(at)
        for reader in readers[at]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    return order if len(order) == len(nodes) else None


def _infer_outputs(model: onnx.ModelProto) -> None:
    """Outputs without a type or a shape get the inferred ones."""
    bare = [v for v in model.graph.output if not v.HasField("type") or not _has_shape(v)]
    if not bare:
        return
    probe = without_placeholders(model)
    for value in probe.graph.output:
        value.ClearField("type")
    try:
        inferred = shape_inference.infer_shapes(probe).graph
    except shape_inference.InferenceError:
        return
    types = {value.name: value.type for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    for value in bare:
        if value.name in types:
            value.type.CopyFrom(types[value.name])


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    kind = value.type
    return kind.WhichOneof("value") != "tensor_type" or kind.tensor_type.HasField("shape")


_REPAIRS: dict[Callable[[onnx.ModelProto], None], str] = {
    _name_graphs: "a graph has no name",
    _settle_initializers: "an initializer has no name, or is there twice",
    _list_inputs: "initializers are not listed as inputs, as this version of the format asks for",
    _import_domains: "operators are used whose operator set is not imported",
    _sort_nodes: "nodes stand in front of what they read",
    _infer_outputs: "an output has no type or shape",
}
"""What puts it right -> what is wrong, in the order in which they are tried."""


# -- functions ---------------------------------------------------------------------------------


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions in the place of their calls; those stay that use another version of ONNX."""
    if not model.functions:
        return model
    twin = copy_of(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for function in twin.functions:
        for entry in function.opset_import:
            version = versions.get(entry.domain, entry.version)
            if all(_is_same(node, entry, version) for node in _nodes_of(function.node)):
                entry.version = version
    flat = inliner.inline_local_functions(twin)
    gone = {function.domain for function in model.functions} - {function.domain for function in flat.functions}
    gone -= {node.domain for node in _nodes_of(flat.graph.node)}
    keep_only(flat.opset_import, lambda entry: entry.domain not in gone)
    _number_nodes(flat.graph)
    return flat


def _nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those inside their subgraphs."""
    for node in nodes:
        yield node
        for subgraph in subgraphs(node):
            yield from _nodes_of(subgraph.node)


def _is_same(node: onnx.NodeProto, entry: onnx.OperatorSetIdProto, version: int) -> bool:
    """Whether an operator means the same in another version of its operator set."""
    op, domain = node.op_type, "" if node.domain == "ai.onnx" else node.domain
    if domain != entry.domain or entry.version == version:
        return True
    try:
        schemas = [onnx.defs.get_schema(op, max_inclusive_version=v, domain=domain) for v in (entry.version, version)]
    except onnx.defs.SchemaError:
        return False
    return bool(schemas[0].since_version == schemas[1].since_version)


def _number_nodes(graph: onnx.GraphProto) -> None:
    """Give nodes of one name numbers: a function that is called twice brings them twice, which onnxruntime minds."""
    names = [node.name for part in graphs_of(graph) for node in part.node]
    repeated = {name for name, times in Counter(names).items() if name and times > 1}
    taken, met = set(names), set[str]()
    for node in (node for part in graphs_of(graph) for node in part.node):
        if node.name in repeated and node.name in met:
            node.name = _fresh(node.name, taken)
        met.add(node.name)


def _fresh(name: str, taken: set[str]) -> str:
    at = 1
    while f"{name}_{at}" in taken:
        at += 1
    taken.add(f"{name}_{at}")
    return f"{name}_{at}"


# -- constants and branches --------------------------------------------------------------------


def store_inputs(model: onnx.ModelProto, values: Mapping[str, Array]) -> None:
    """Make inputs constants, in place; raises `InputError` for what is no input, or not of its type or shape."""
    inputs, tensors = {value.name: value for value in model.graph.input}, dict[str, onnx.TensorProto]()
    for name, value in values.items():
        if name not in inputs:
            raise InputError(f"'{name}' is no input of the model: it has {', '.join(inputs)}")
        sizes, array = shape_of(inputs[name]), np.asarray(value)
        if None not in sizes and array.size == math.prod(size or 0 for size in sizes):
            array = array.reshape(tuple(size or 0 for size in sizes))  # one number for a list of one, say
        kind = inputs[name].type.tensor_type.elem_type
        try:
            tensor = tensor_of(name, array, kind)
        except (TypeError, ValueError) as error:
            raise InputError(f"the constant for input '{name}' is not of its type: {first_line(error)}") from None
        tensors[name] = tensor
    keep_only(model.graph.initializer, lambda old: old.name not in tensors)
    model.graph.initializer.extend(tensors.values())
    if model.ir_version >= 4:
        keep_only(model.graph.input, lambda listed: listed.name not in values)


def inline_branches(model: onnx.ModelProto, weights: Contents) -> onnx.ModelProto:
    """The model with every If whose condition is a constant replaced by the branch that it takes.

    What only the other branch needed is gone; `weights` are contents that the model has placeholders for.
    """
    while any(node.op_type == "If" for node in model.graph.node):
        view = GraphView(model, weights)
        known = {
            node.key: bool(value.reshape(-1)[0])
            for node in view.nodes
            if node.op == "If"
            and not node.domain
            and (value := view.constant(node.inputs[0])) is not None
            and value.size
        }
        if not known:
            break
        twin = copy_of(model)
        nodes = list(twin.graph.node)
        del twin.graph.node[:]
        for proto in nodes:
            key = next((name for name in proto.output if name), "")
            twin.graph.node.extend(_branch(twin, nodes, proto, taken=known[key]) if key in known else [proto])
        _number_nodes(twin.graph)
        _drop_unreached(twin, view)
        model = twin
    return model


def _branch(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], proto: onnx.NodeProto, *, taken: bool
) -> list[onnx.NodeProto]:
    """The nodes of the branch that an If takes, under names that nothing else has; its constants go to the model."""
    graph = onnx.GraphProto()
    graph.CopyFrom(next(a.g for a in proto.attribute if a.name == ("then_branch" if taken else "else_branch")))
    outside = _names_in(model.graph) | {name for p in nodes if p is not proto for name in _names_of(p)}
    outside |= set(proto.input) | set(proto.output)
    own = [name for node in graph.node for name in node.output if name]
    own += [tensor.name for tensor in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    produced = {name for node in graph.node for name in node.output if name}
    names, everything = dict[str, str](), outside | set(own)
    copied = list[tuple[str, str]]()
    for value, output in zip(graph.output, proto.output, strict=False):
        if output and value.name in produced and value.name not in names:
            names[value.name] = output
        elif output:
            copied.append((value.name, output))
    for name in own:
        if name not in names and name in outside:
            names[name] = _fresh(name, everything)
    _rename(graph, names)
    graph.node.extend(helper.make_node("Identity", [names.get(name, name)], [output]) for name, output in copied)
    model.graph.initializer.extend(graph.initializer)
    model.graph.sparse_initializer.extend(graph.sparse_initializer)
    outputs = set(proto.output)
    model.graph.value_info.extend(value for value in graph.value_info if value.name not in outputs)
    _list_inputs(model)
    return list(graph.node)


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """All names of a graph, those inside subgraphs included."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names |= {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return names.union(*(_names_of(node) for node in graph.node))


def _names_of(node: onnx.NodeProto) -> set[str]:
    return {*node.input, *node.output}.union(*(_names_in(subgraph) for subgraph in subgraphs(node)))


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, in subgraphs too, in place."""
    for part in graphs_of(graph):
        for node in part.node:
            for side in (node.input, node.output):
                for at, name in enumerate(side):
                    side[at] = names.get(name, name)
        for tensor in (*part.initializer, *(sparse.values for sparse in part.sparse_initializer)):
            tensor.name = names.get(tensor.name, tensor.name)
        for value in (*part.value_info, *part.output):
            value.name = names.get(value.name, value.name)


def _drop_unreached(model: onnx.ModelProto, before: GraphView) -> None:
    """Take out, in place, what reached an output `before` and reaches none any more."""
    now = GraphView(model)
    lost = before.reaching - now.reaching
    keep_only(model.graph.node, lambda p: lost.isdisjoint(p.output))
    now, outputs = GraphView(model), {output.name for output in model.graph.output}
    unread = {t.name for t in model.graph.initializer if t.name in before.consumers} - now.consumers.keys() - outputs
    keep_only(model.graph.initializer, lambda tensor: tensor.name not in unread)
    keep_only(model.graph.input, lambda value: value.name not in unread)
