"""Models as onnx-graphsurgeon holds them, in and out without what it loses.

`import_model` reads a model as `graphsurgeon.import_onnx` does, and remembers it; `export_model` writes a graph as
`graphsurgeon.export_onnx` does, and puts back what got lost between the two:

- metadata and doc strings (of model, nodes, tensors, functions), model version and domain, overloads, training info,
  denotations, quantization annotations;
- attributes that graphsurgeon skips (sparse values, types, lists of tensors or graphs) or fails on (empty lists);
- initializers that nothing reads, that only a subgraph reads (it copies them into each), that are listed as inputs;
- sparse initializers (dense float64 once `.values` was looked at), int4 and other packed types (it fails on them
  then), float8_e4m3fnuz (written as float8_e4m3fn).

What is remembered goes with the graph and its copies. All that takes a model here takes a graph, those of
`graphsurgeon.import_onnx` too: of these nobody knows the original, unless `export_model` is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pcns_onnx.errors import InputError, UnsupportedError, first_line
from pcns_onnx.graph import Array, Graph, ModelSource
from pcns_onnx.graph.restoration import complete, dense, packed, readable, restore, sparse_like, sparse_tensors

try:
    import onnx_graphsurgeon as gs
except ImportError:
    raise UnsupportedError("graphsurgeon is not installed: `pip install 'pcns-onnx[surgeon]'`") from None
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

if TYPE_CHECKING:
    from onnx import ModelProto, OperatorSetIdProto, SparseTensorProto

_FAILURES = (gs.OnnxGraphSurgeonException, AssertionError, AttributeError, KeyError, TypeError, ValueError)
"""What graphsurgeon raises where it cannot go on."""


class _Opsets(list["OperatorSetIdProto"]):
    """The opsets that a graph imports, and the model that it was read from.

    A graph has a place for these opsets and hands it on to its copies; it has none for anything else, and cannot be
    a key, since it compares by content. What it adds here on export is not added to the message that was read.
    """

    def __init__(self, original: ModelProto) -> None:
        super().__init__(original.opset_import)
        self.original = original


class _Sparse(SparseValues):  # type: ignore[misc]
    """Contents of a sparse initializer; graphsurgeon itself reads float64, and zeros where they are raw data."""

    def load(self) -> Array:
        return dense(self.tensor)


def import_model(model: ModelSource) -> gs.Graph:
    """The model as a `graphsurgeon.Graph` that remembers it; raises `InputError` for a model that cannot be read."""
    loaded = Graph.load(model, flat=False)
    graph = _read(readable(loaded.proto))
    graph.import_domains = _Opsets(loaded.outline)
    for constant in _constants(graph):
        if isinstance(constant._values, SparseValues):
            constant.values = _Sparse(constant._values.tensor)
    return graph


def export_model(graph: gs.Graph, like: ModelSource | Sequence[ModelSource] = ()) -> ModelProto:
    """The graph as a message, with what graphsurgeon lost of the model that it was read from.

    `like`: further models that its parts come from; for a graph of `graphsurgeon.import_onnx`, which remembers none,
    the one that was imported. The first that knows of a thing has its way. Raises `InputError` for a graph that
    cannot be written.
    """
    if not isinstance(graph, gs.Graph) or isinstance(graph, gs.Function):
        raise InputError(f"a model cannot be graphsurgeon's {type(graph).__name__}: give its Graph")
    sources = cast("Sequence[ModelSource]", like if isinstance(like, list | tuple) else [like])
    originals = [graph.import_domains.original] if isinstance(graph.import_domains, _Opsets) else []
    originals += [Graph.load(source, flat=False).outline for source in sources]
    sparse = {tensor.values.name: tensor for model in originals for tensor in sparse_tensors(model.graph)}
    with _writable(graph, sparse):
        model = _write(graph)
    with gs.logger.G_LOGGER.suppress():  # what there is to say of the model was said when it was imported
        for original in originals:
            restore(model, _write(_read(readable(original))), original)
    complete(model)
    return model


def _read(model: ModelProto) -> gs.Graph:
    try:
        return gs.import_onnx(model)
    except _FAILURES as error:
        raise InputError(f"graphsurgeon cannot read this model: {first_line(error)}") from error


def _write(graph: gs.Graph) -> ModelProto:
    try:
        model: ModelProto = gs.export_onnx(graph, do_type_check=False)
    except _FAILURES as error:
        raise InputError(f"graphsurgeon cannot write this graph: {first_line(error)}") from error
    return model


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """All stored tensors: of the graph, its subgraphs, its functions, and of attributes."""
    parts = [graph, *graph.subgraphs(recursive=True)]
    for function in graph.functions:
        parts += [function, *function.subgraphs(recursive=True)]
    for part in parts:
        tensors = [*part.tensors().values(), *(value for node in part.nodes for value in node.attrs.values())]
        yield from (tensor for tensor in tensors if isinstance(tensor, gs.Constant))


@contextmanager
def _writable(graph: gs.Graph, sparse: dict[str, SparseTensorProto]) -> Iterator[None]:
    """Inside, contents that graphsurgeon would write wrongly stand there as messages, which it writes as they are."""
    replaced = list[tuple[gs.Constant, Any]]()
    try:
        for constant in _constants(graph):
            values = constant._values  # `.values` would load them
            message = _message(constant, values, sparse.get(constant.name))
            if message is not None:
                constant.values = message
                replaced.append((constant, values))
        yield
    finally:
        for constant, values in replaced:
            constant.values = values


def _message(constant: gs.Constant, values: Any, sparse: SparseTensorProto | None) -> LazyValues | None:
    """What is to be written for a constant; None where graphsurgeon does it well."""
    if isinstance(values, SparseValues):
        is_renamed = values.tensor.values.name != constant.name  # its readers know the new name
        return _Sparse(sparse_like(values.tensor, constant.name, dense(values.tensor))) if is_renamed else None
    if not isinstance(values, np.ndarray) or constant._export_dtype is not None:
        return None
    if sparse is not None and tuple(sparse.dims) == values.shape:
        return _Sparse(sparse_like(sparse, constant.name, values))
    is_numpys = values.dtype.isbuiltin == 1
    return None if is_numpys else LazyValues(packed(constant.name, values))
