"""What another library's model has no place for, put back: a merge of three models.

`original` is what was read, `base` what the library writes of it when nothing is edited, `edited` what it writes after
somebody's edits. Then

    the same in `base` and `edited`        nobody touched it: as in the original
    in the original, not in `base`         the library lost it: back it comes, if what it belongs to is still there
    in `base`, not in `edited`             somebody removed it
    all else                               somebody's edit: as in `edited`

for every message, item and field alone, items going by their names. No list of what a library loses is needed, and
where a later version of it loses less, edits to that count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from pcns_onnx.graph.initializers import without_placeholders
from pcns_onnx.graph.protobuf import Array, copy_of, keep_only, tensor_of

_NAMED: Mapping[str, Callable[[Any], object]] = {
    "NodeProto": lambda node: (node.op_type, node.domain, next((name for name in node.output if name), "")),
    "AttributeProto": lambda attribute: attribute.name,
    "TensorProto": lambda tensor: tensor.name,
    "SparseTensorProto": lambda tensor: tensor.values.name,
    "ValueInfoProto": lambda value: value.name,
    "TensorAnnotation": lambda annotation: annotation.tensor_name,
    "StringStringEntryProto": lambda entry: entry.key,
    "OperatorSetIdProto": lambda opset: opset.domain,
    "FunctionProto": lambda function: (function.domain, function.name),
}
"""What an item of a repeated field goes by; others by their place."""

_WHOLE = {"TypeProto"}
"""Messages that are taken as they are: half an old and half a new type would be neither."""


def restore(edited: onnx.ModelProto, base: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Put back into `edited`, in place, what it lost; `base` and `original` may have placeholders for contents."""
    _merge(edited, base, original)
    for name in ("producer_name", "producer_version"):  # a copy of a graph loses them: that is no edit
        _keep_lost(edited, name, original)
    _tidy(edited.graph, original.graph)


def _merge(edited: Any, base: Any, original: Any) -> None:
    if edited == base:
        edited.CopyFrom(original)
    elif isinstance(edited, TensorProto):  # contents are whoever wrote them last's
        for name in ("doc_string", "metadata_props"):
            _keep_lost(edited, name, original)
    elif edited.DESCRIPTOR.name not in _WHOLE:
        for field in edited.DESCRIPTOR.fields:
            _merge_field(field, edited, base, original)


def _keep_lost(edited: Any, name: str, original: Any) -> None:
    if not getattr(edited, name) and getattr(original, name):
        edited.MergeFrom(type(edited)(**{name: getattr(original, name)}))


def _merge_field(field: FieldDescriptor, edited: Any, base: Any, original: Any) -> None:
    name = field.name
    ours, was, source = (getattr(message, name) for message in (edited, base, original))
    if isinstance(ours, Message):
        has = [message.HasField(name) for message in (edited, base, original)]
        if all(has):
            _merge(ours, was, source)
        elif has == [False, False, True]:
            ours.CopyFrom(source)
    elif field.message_type is not None:
        _merge_items(ours, was, source)
    elif ours == was:
        edited.ClearField(name)
        if not hasattr(ours, "append"):
            if original.HasField(name):
                setattr(edited, name, source)
        else:
            getattr(edited, name).extend(source)


def _merge_items(edited: Any, base: Any, original: Any) -> None:
    was, source = _by_name(base), _by_name(original)
    ours = _with_old_names(_by_name(edited), source)
    lost = [name for name in source if name not in was and name not in ours]
    # Nobody added, removed or moved any: then the order is no edit either.
    order = list(source) if list(ours) == list(was) else _in_place(list(ours), lost, list(source))
    order += [name for name in ours if name not in order]
    removed = list[int]()
    for position, (name, item) in enumerate(ours.items()):
        if name in was and name in source:
            _merge(item, was[name], source[name])
        elif name in was and item == was[name]:
            removed.append(position)  # the library's own addition
    for position in reversed(removed):
        del edited[position]
    edited.extend(source[name] for name in lost)
    left = [name for position, name in enumerate(ours) if position not in removed] + lost
    positions = iter([order.index(name) for name in left])
    edited.sort(key=lambda _: next(positions))  # moves no contents, which may be large


def _by_name(items: Iterable[Any]) -> dict[tuple[object, int], Any]:
    """Items by what they go by, and how many of that name came before."""
    counts: Counter[object] = Counter()
    by_name = {}
    for position, item in enumerate(items):
        name = _NAMED.get(item.DESCRIPTOR.name, lambda _, position=position: position)(item)
        by_name[name, counts[name]] = item
        counts[name] += 1
    return by_name


def _with_old_names(ours: dict[tuple[object, int], Any], source: Mapping[tuple[object, int], Any]) -> dict[Any, Any]:
    """Nodes whose outputs were renamed go by their old ones: they are known by names of their own."""
    old: dict[tuple[str, str, str], list[Any]] = {}
    for name, node in source.items():
        if isinstance(node, NodeProto) and node.name and name not in ours:
            old.setdefault((node.op_type, node.domain, node.name), []).append(name)
    renamed = {}
    for name, node in ours.items():
        if isinstance(node, NodeProto) and name not in source:
            candidates = old.pop((node.op_type, node.domain, node.name), [])
            renamed[name] = candidates[0] if len(candidates) == 1 else name
    return {renamed.get(name, name): item for name, item in ours.items()}


def _in_place(ours: list[Any], lost: Iterable[Any], source: list[Any]) -> list[Any]:
    """`ours`, each that was lost behind its neighbour in the original."""
    for name in lost:
        before = source[: source.index(name)]
        at = max((ours.index(other) + 1 for other in before if other in ours), default=0)
        ours.insert(at, name)
    return ours


def _copy(item: Any) -> Any:
    twin = type(item)()
    twin.CopyFrom(item)
    return twin


def _tidy(graph: GraphProto, original: GraphProto) -> None:
    """Drop what came back though all that it belonged to is gone."""
    read, was_read = set(_names_read(graph)), set(_names_read(original))
    outputs = {output.name for output in graph.output}
    keep_only(graph.initializer, lambda t: t.name in read | outputs or t.name not in was_read)
    stored = {t.name for t in graph.initializer}
    old_inputs = {value.name for value in original.input} & {t.name for t in original.initializer}
    keep_only(graph.input, lambda value: value.name in stored | read or value.name not in old_inputs)
    known = read | outputs | stored | {value.name for value in graph.input}
    known |= {name for node in graph.node for name in node.output}
    keep_only(graph.value_info, lambda value: value.name in known)
    keep_only(graph.quantization_annotation, lambda annotation: annotation.tensor_name in known)


def _names_read(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for subgraph in subgraphs(node):
            yield from _names_read(subgraph)
            yield from (output.name for output in subgraph.output)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all subgraphs inside it."""
    yield graph
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from graphs_of(subgraph)


# -- what the format asks for ----------------------------------------------------------------


def complete(model: onnx.ModelProto) -> None:
    """Give outputs their inferred types where they have none, and list old models' initializers as inputs; in place."""
    if any(not output.HasField("type") for output in model.graph.output):
        inferred = onnx.shape_inference.infer_shapes(without_placeholders(model))
        types = {value.name: value.type for value in (*inferred.graph.value_info, *inferred.graph.output)}
        for output in model.graph.output:
            if not output.HasField("type") and output.name in types:
                output.type.CopyFrom(types[output.name])
    if model.ir_version < 4:
        listed = {value.name for value in model.graph.input}
        for tensor in model.graph.initializer:
            if tensor.name not in listed:
                model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


# -- tensors ---------------------------------------------------------------------------------


def packed(name: str, value: Array) -> TensorProto:
    """An array as a tensor of the same type, several elements to a byte where ONNX stores them so."""
    return tensor_of(name, value, helper.np_dtype_to_tensor_dtype(value.dtype))


def sparse_tensors(graph: GraphProto) -> Iterator[SparseTensorProto]:
    """The sparse initializers of a graph and its subgraphs."""
    yield from graph.sparse_initializer
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from sparse_tensors(subgraph)


def dense(sparse: SparseTensorProto) -> Array:
    """All elements of a sparse tensor, in its own type."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    full = np.zeros(tuple(sparse.dims), dtype=values.dtype)
    if indices.ndim == 1:
        full.reshape(-1)[indices] = values
    else:
        full[tuple(indices.T)] = values
    return full


def sparse_like(old: SparseTensorProto, name: str, value: Array) -> SparseTensorProto:
    """`value` stored sparsely, in the type of `old`; where both are equal, as `old` stores it."""
    was, twin = dense(old), _copy(old)
    new = value.astype(was.dtype)
    if not np.array_equal(new, was):
        indices = np.flatnonzero(new)
        twin.values.CopyFrom(numpy_helper.from_array(new.reshape(-1)[indices]))
        twin.indices.CopyFrom(numpy_helper.from_array(indices.astype(np.int64)))
    twin.values.name = name
    renamed: SparseTensorProto = twin
    return renamed


# -- what a library cannot even read ---------------------------------------------------------


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without attributes that are empty lists or text in no encoding, and without types of no tensors."""
    twin = copy_of(model)
    _make_readable(twin.graph)
    for function in twin.functions:
        _drop_unreadable(function.node)
    return twin


def _make_readable(graph: GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.WhichOneof("value") not in ("tensor_type", "sequence_type", "sparse_tensor_type"):
            value.ClearField("type")
    _drop_unreadable(graph.node)


def _drop_unreadable(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        keep_only(node.attribute, _is_readable)
        for subgraph in subgraphs(node):
            _make_readable(subgraph)


def _is_readable(attribute: AttributeProto) -> bool:
    if attribute.ref_attr_name:
        return True
    value = helper.get_attribute_value(attribute)
    try:
        for text in [value] if isinstance(value, bytes) else value if attribute.type == AttributeProto.STRINGS else ():
            text.decode()
    except UnicodeDecodeError:
        return False
    return not (attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS) and not value)
