"""Where NaN or Inf come from: from a tensor that holds them back to the operator that made them, and the sample.

The search goes from the operator that made the tensor to one of its operands that holds NaN or Inf at the
same sample, and so on; it ends where all operands are finite. Infinities that are meant (masks in
front of a Softmax) are not met, as nothing behind them holds any.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.batch import Batch
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Graph
from pcns_onnx.numerics.arrays import Array, namespace_of, to_numpy
from pcns_onnx.runtime.engine import Engine


def is_finite(array: Array) -> bool:
    """Whether an array holds neither NaN nor Inf; other types than floats never do."""
    if array.dtype.kind != "f":
        return True
    xp = namespace_of(array)
    # A sum takes no memory, and is finite if all terms are, unless it overflows.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(float(xp.sum(array)))) or bool(xp.all(xp.isfinite(array)))


def source_of(engine: Engine, graph: Graph, batch: Batch, name: str) -> InputError:
    """The error that says which operator of `graph` made the first NaN or Inf of tensor `name` in a batch, and where.

    `batch` is one whose `name` is not finite.
    """
    values = _values(engine, graph, batch, [name])
    sample = _first(values[name], batch.size)
    layer, tensor, value = name, name, values[name]
    while True:
        node = graph.producers.get(tensor)
        if node is None:
            break
        operands = [i for i in dict.fromkeys((*node.inputs, *node.captures)) if i and not graph.is_constant(i)]
        computed = _values(engine, graph, batch, [i for i in operands if i in graph.producers])
        not_finite = [i for i, array in computed.items() if not is_finite(_at(array, sample, batch.size))]
        if not not_finite:
            break
        tensor, value = not_finite[0], computed[not_finite[0]]
    kind = "NaN" if np.isnan(_at(value, sample, batch.size)).any() else "Inf"
    maker = graph.producers.get(tensor)
    who = f"{maker.op} '{maker.label}'" if maker is not None else f"input '{tensor}'"
    where = "of every sample" if sample is None else f"at sample {_number(batch, sample)} of the data"
    end = graph.producers.get(layer)
    way = f", on the way to {end.op} '{end.label}'" if end is not None and maker is not None and end != maker else ""
    own = [name for name in (maker.inputs if maker is not None else ()) if _is_poisoned(graph, name)]
    if own:
        return InputError(f"{who} has NaN or Inf in '{own[0]}', and gives {kind}{way}: export the model again")
    return InputError(f"{who} gives {kind} {where}{way}: repair the model, or leave that sample out")


def _is_poisoned(graph: Graph, name: str) -> bool:
    value = graph.constant(name) if name else None
    return value is not None and not is_finite(value)


def _values(engine: Engine, graph: Graph, batch: Batch, names: list[str]) -> dict[str, NDArray[np.floating]]:
    """Tensors of floats among `names`, on the host."""
    if not names:
        return {}
    part = graph.extract([spec.name for spec in graph.inputs], names)
    tensors = engine.session(part.program()).run(batch.feeds)
    return {
        name: to_numpy(array) for name, array in tensors.items() if getattr(array, "dtype", np.dtype("O")).kind == "f"
    }


def _first(array: NDArray[np.floating], size: int) -> int | None:
    """The first sample that is not finite; None where samples are not told apart."""
    if not array.ndim or array.shape[0] != size:
        return None
    return int(np.flatnonzero(~np.isfinite(array.reshape(size, -1)).all(axis=1))[0])


def _at(array: NDArray[np.floating], sample: int | None, size: int) -> NDArray[np.floating]:
    return array if sample is None or not array.ndim or array.shape[0] != size else array[sample]


def _number(batch: Batch, sample: int) -> int:
    return sample if batch.index is None else int(batch.index[sample])
