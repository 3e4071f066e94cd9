"""Attention in which half of the dimensions of every head are superfluous, for `duplicates.py`.

Fewer K and V heads than Q heads (grouped and multi-query attention) are repeated in all ways that exporters write.
"""

from __future__ import annotations

import numpy as np

from robustness.planted import Array, Planted

REPEATS = (
    "expand", "reshape expand", "expand heads", "gather", "tile", "tile heads", "concat", "interleave", "broadcast",
)  # fmt: skip
"""How K and V heads are repeated for several Q heads."""
EINSUM = "einsum"


def attention(net: Planted) -> str:
    """softmax(q k') v of some heads, O, and sometimes a residual sum around it."""
    times, kv, width = net.any(1, 2, 3), net.any(1, 2), 2 * int(net.rng.integers(2, 5))
    net.shape = int(net.rng.integers(4, 8)), 4 * int(net.rng.integers(2, 5))
    return attend(net, net.any(*REPEATS, EINSUM) if times > 1 else "", kv, times, width)


def attend(net: Planted, form: str, kv: int, times: int, width: int) -> str:
    """Attention with `kv` heads of K and V, of so many dimensions, each for `times` heads of Q."""
    stream = net.shape[-1]
    if form in ("expand heads", "tile heads", "concat"):
        kv = 1
    q, k, v = (_project(net, count, width, stream) for count in (kv * times, kv, kv))
    if form == EINSUM:
        joined = _einsum(net, q, k, v, kv, times, width)
    elif form == "broadcast":
        joined = _grouped(net, q, k, v, kv, times, width)
    else:
        joined = _repeated(net, q, k, v, kv, times, width, form)
    o = net.matmul(joined, net.reader(5, kv * times * width))
    return net.op("Add", o, net.matmul("x", net.reader(5, stream))) if net.any(0, 1) else o


def _project(net: Planted, heads: int, width: int, stream: int) -> str:
    """A layer to all heads, half of whose dimensions follow from the others."""
    parts, biases, half = [], [], width // 2
    has_bias, low_rank = net.any(0, 1), net.any(0, 1)
    for _ in range(heads):
        weak = np.where(net.rng.random(half) < 0.15, 0.02, 2.0)[:, None]
        weight, bias = net.reader(half, stream) * weak, net.rng.standard_normal(half)
        extra = np.eye(half) if not low_rank else net.rng.standard_normal((half, half)) / half**0.5
        both = np.concatenate([np.eye(half), extra])
        parts.append(both @ weight)
        biases.append(both @ bias)
    return net.matmul("x", np.concatenate(parts), np.concatenate(biases) if has_bias else None)


def _heads(net: Planted, x: str, heads: list[int], perm: list[int]) -> str:
    return net.op("Transpose", net.op("Reshape", x, net.keep([0, 0, *heads])), perm=perm)


def _repeat(net: Planted, x: str, kv: int, times: int, width: int, form: str) -> str:
    """(N, kv, T, d) -> (N, kv * times, T, d)."""
    joined = net.keep([0, kv * times, -1, width])
    match form:
        case "expand":
            x = net.op("Expand", net.op("Unsqueeze", x, net.keep([2])), net.keep([1, 1, times, 1, 1]))
            return net.op("Reshape", x, joined)
        case "reshape expand":
            x = net.op("Reshape", x, net.keep([0, kv, 1, -1, width]))
            return net.op("Reshape", net.op("Expand", x, net.keep([1, kv, times, 1, width])), joined)
        case "expand heads":
            return net.op("Expand", x, net.keep([1, times, 1, 1]))
        case "gather":
            return net.op("Gather", x, net.keep([head // times for head in range(kv * times)]), axis=1)
        case "tile":
            x = net.op("Tile", net.op("Unsqueeze", x, net.keep([2])), net.keep([1, 1, times, 1, 1]))
            return net.op("Reshape", x, joined)
        case "tile heads":
            return net.op("Tile", x, net.keep([1, times, 1, 1]))
        case "concat":
            return net.op("Concat", *[x] * times, axis=1)
        case "interleave":
            x = net.op("Concat", *[net.op("Unsqueeze", x, net.keep([2]))] * times, axis=2)
            return net.op("Reshape", x, joined)
    return x


def _repeated(net: Planted, q: str, k: str, v: str, kv: int, times: int, width: int, form: str) -> str:
    q = _heads(net, q, [kv * times, width], [0, 2, 1, 3])
    k, v = (_repeat(net, _heads(net, t, [kv, width], [0, 2, 1, 3]), kv, times, width, form) for t in (k, v))
    k = net.op("Transpose", k, perm=[0, 1, 3, 2])
    context = net.op("MatMul", _weights(net, net.op("MatMul", q, k), width), v)
    return net.op("Reshape", net.op("Transpose", context, perm=[0, 2, 1, 3]), net.keep([0, 0, kv * times * width]))


def _grouped(net: Planted, q: str, k: str, v: str, kv: int, times: int, width: int) -> str:
    """Five axes, (N, kv, times, T, d): K and V are repeated by the products themselves."""
    q = _heads(net, q, [kv, times, width], [0, 2, 3, 1, 4])
    k, v = (_heads(net, t, [kv, 1, width], [0, 2, 3, *last]) for t, last in ((k, (4, 1)), (v, (1, 4))))
    context = net.op("MatMul", _weights(net, net.op("MatMul", q, k), width), v)
    return net.op("Reshape", net.op("Transpose", context, perm=[0, 3, 1, 2, 4]), net.keep([0, 0, kv * times * width]))


def _einsum(net: Planted, q: str, k: str, v: str, kv: int, times: int, width: int) -> str:
    q = net.op("Reshape", q, net.keep([0, 0, kv, times, width]))
    k, v = (net.op("Reshape", t, net.keep([0, 0, kv, width])) for t in (k, v))
    scores = net.op("Einsum", q, k, equation="bigrd,bjgd->bgrij")
    context = net.op("Einsum", _weights(net, scores, width), v, equation="bgrij,bjgd->bigrd")
    return net.op("Reshape", context, net.keep([0, 0, kv * times * width]))


def _weights(net: Planted, scores: str, width: int) -> str:
    scale: Array = np.array(width**-0.5)
    return net.op("Softmax", net.op("Mul", scores, net.keep(scale, "scale")), axis=-1)
