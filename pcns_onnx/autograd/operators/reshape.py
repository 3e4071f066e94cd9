"""Operators that move numbers and make none: shapes, axes, joins, repeats; and what makes shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcns_onnx.autograd.operators.operator import Operator, as_number, as_numbers


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = math.prod(x.shape[: axis % x.ndim if axis < 0 else axis])
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, math.prod(x.shape) // max(rows, 1))


def _reshape(x: Tensor, sizes: Any = None, *, shape: Any = None, allowzero: int = 0) -> Tensor:
    targets = list(shape) if sizes is None else as_numbers(sizes)
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(targets)])


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(perm or range(x.ndim - 1, -1, -1)))


def _squeeze(x: Tensor, at: Any = None, *, axes: Any = None) -> Tensor:
    dims = as_numbers(at) if at is not None else list(axes or ())
    return x.squeeze(tuple(dims)) if dims else x.squeeze()


def _unsqueeze(x: Tensor, at: Any = None, *, axes: Any = None) -> Tensor:
    dims = as_numbers(at) if at is not None else list(axes)
    rank = x.ndim + len(dims)
    for dim in sorted(d % rank for d in dims):
        x = x.unsqueeze(dim)
    return x


def _concat(*inputs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(inputs, dim=axis)


def _split(
    x: Tensor, sizes: Any = None, *, axis: int = 0, split: Any = None, num_outputs: int | None = None, outputs: int = 1
) -> Any:
    lengths = as_numbers(sizes) if sizes is not None else split
    return torch.split(x, list(lengths) if lengths else -(-x.shape[axis] // (num_outputs or outputs)), dim=axis)


def _split_to_sequence(x: Tensor, sizes: Any = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if sizes is None:
        return list(x.split(1, dim=axis) if keepdims else x.unbind(dim=axis))
    lengths = as_numbers(sizes)
    is_one = (sizes.ndim if isinstance(sizes, Tensor) else int(isinstance(sizes, list))) == 0
    return list(x.split(lengths[0] if is_one else lengths, dim=axis))


def _sequence_of(*inputs: Tensor) -> list[Tensor]:
    return list(inputs)


def _sequence_at(sequence: list[Tensor], position: Any) -> Tensor:
    return sequence[as_number(position)]


def _concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(sequence, dim=axis) if new_axis else torch.cat(sequence, dim=axis)


def _expand(x: Tensor, shape: Any) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(as_numbers(shape))))


def _tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(*as_numbers(repeats))


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, depth, h * b, w * b)


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _triangle(x: Tensor, diagonal: Any = None, *, upper: int = 1) -> Tensor:
    k = 0 if diagonal is None else as_number(diagonal)
    return torch.triu(x, k) if upper else torch.tril(x, k)


def _shape_of(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64, device=x.device)


def _size_of(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


def _constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    filler = torch.zeros(1) if value is None else value
    return filler.to(shape.device).reshape(()).expand(shape.tolist()).clone()


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


RESHAPE: dict[str, Operator] = {
    "Flatten": Operator(_flatten),
    "Reshape": Operator(_reshape, settings=(1,)),
    "Transpose": Operator(_transpose),
    "Squeeze": Operator(_squeeze, settings=(1,)),
    "Unsqueeze": Operator(_unsqueeze, settings=(1,)),
    "Concat": Operator(_concat),
    "Split": Operator(_split, settings=(1,), outputs=0),
    "SplitToSequence": Operator(_split_to_sequence, settings=(1,)),
    "SequenceConstruct": Operator(_sequence_of),
    "SequenceAt": Operator(_sequence_at, settings=(1,)),
    "ConcatFromSequence": Operator(_concat_from_sequence),
    "Expand": Operator(_expand, settings=(1,)),
    "Tile": Operator(_tile, settings=(1,)),
    "DepthToSpace": Operator(_depth_to_space),
    "SpaceToDepth": Operator(_space_to_depth),
    "Trilu": Operator(_triangle, settings=(1,)),
    "Shape": Operator(_shape_of, has_gradient=False),
    "Size": Operator(_size_of, has_gradient=False),
    "ConstantOfShape": Operator(_constant_of_shape, has_gradient=False),
    "Range": Operator(_range, has_gradient=False),
}
