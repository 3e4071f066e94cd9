"""Attention as one operator, and rotary embeddings, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from builders.models import Array
from builders.single_node import Single, assert_same, assert_slopes, at_opsets

pytest.importorskip("torch")


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


N, H, S, T, D, V = 2, 4, 5, 6, 8, 6
"""Batch, heads, queries, keys, width of a head, width of a value."""
TRIANGLE = np.tril(np.ones((S, T), dtype=bool), 1)
SEEN = np.random.default_rng(0).integers(0, 2, (N, S, T)).astype(np.int32)
SEEN[:, :, 0] = 1  # of a query that may look at nothing only rounding is left


def onnx_attention(
    *values: Array | None, feed: tuple[int, ...] = (0, 1, 2), outputs: int = 1, **attributes: Any
) -> Single:
    return Single("Attention", values, attributes, feed=feed, outputs=outputs, low=23, high=24)


def of_ort(op: str, *values: Array | None, outputs: int = 1, feed: tuple[int, ...] = (0,), **attributes: Any) -> Single:
    return Single(op, values, attributes, feed=feed, outputs=outputs, domain="com.microsoft")


Q, K, VALUES = noise(N, H, S, D), noise(N, H, T, D, seed=1), noise(N, H, T, V, seed=2)
FLAT = (noise(N, S, H * D), noise(N, T, H * D, seed=1), noise(N, T, H * V, seed=2))
SAME = (noise(N, S, H * D), noise(N, S, H * D, seed=1), noise(N, S, H * D, seed=2))
FEW = (noise(N, H, S, D), noise(N, 2, T, D, seed=1), noise(N, 2, T, D, seed=2))
PAST = (noise(N, H, 3, D, seed=3), noise(N, H, 3, D, seed=4))
ANGLES = noise(16, D // 2)
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)
PLACES = np.array([[1, 2, 3, 4, 5], [0, 3, 6, 9, 12]])
X, W, B = noise(N, S, 16), noise(16, 3 * H * D, seed=1) / np.float32(4), noise(3 * H * D, seed=2)

CASES: Mapping[str, Single] = {
    "Attention": onnx_attention(Q, K, VALUES),
    "Attention flat": onnx_attention(*FLAT, q_num_heads=H, kv_num_heads=H),
    "Attention scaled": onnx_attention(Q, K, VALUES, scale=0.3),
    "Attention masked": onnx_attention(Q, K, VALUES, TRIANGLE),
    "Attention biased": onnx_attention(Q, K, VALUES, noise(N, 1, S, T, seed=5)),
    "Attention causal": onnx_attention(noise(N, H, S, D), noise(N, H, S, D, seed=1), noise(N, H, S, D, seed=2),
                                       is_causal=1),
    "Attention grouped": onnx_attention(*FEW),
    "Attention capped": onnx_attention(Q, K, VALUES, softcap=1.5),
    "Attention past": onnx_attention(
        *(noise(N, H, S, D, seed=i) for i in range(3)), noise(S, S + 3, seed=7), *PAST, feed=(0, 1, 2, 4, 5), outputs=3,
    ),
    "Attention past causal": onnx_attention(
        *(noise(N, H, S, D, seed=i) for i in range(3)), None, *PAST, feed=(0, 1, 2, 4, 5), outputs=3, is_causal=1
    ),
    "MultiHeadAttention": of_ort("MultiHeadAttention", *SAME, feed=(0, 1, 2), num_heads=H),
    "MultiHeadAttention bias": of_ort("MultiHeadAttention", *SAME, B, feed=(0, 1, 2), num_heads=H),
    "MultiHeadAttention other width": of_ort("MultiHeadAttention", *FLAT, feed=(0, 1, 2), num_heads=H, scale=0.2),
    "MultiHeadAttention lengths": of_ort(
        "MultiHeadAttention", *FLAT, None, np.array([4, 6], dtype=np.int32), feed=(0, 1, 2), num_heads=H
    ),
    "MultiHeadAttention padding": of_ort(
        "MultiHeadAttention", *FLAT, None, np.array([[1, 1, 0, 1, 0, 0], [1] * 6], dtype=np.int32), feed=(0, 1, 2),
        num_heads=H,
    ),
    "MultiHeadAttention masks": of_ort(
        "MultiHeadAttention", *FLAT, None, SEEN,
        noise(1, H, S, T, seed=8), feed=(0, 1, 2), num_heads=H,
    ),
    "MultiHeadAttention causal": of_ort("MultiHeadAttention", *SAME, feed=(0, 1, 2), num_heads=H, unidirectional=1),
    "MultiHeadAttention past": of_ort(
        "MultiHeadAttention", *SAME, None, None, None, *PAST, feed=(0, 1, 2, 6, 7), outputs=3, num_heads=H
    ),
    "MultiHeadAttention cross": of_ort("MultiHeadAttention", FLAT[0], noise(N, H, T, D), noise(N, H, T, D, seed=1),
                                       feed=(0, 1, 2), num_heads=H),
    "Attention of onnxruntime": of_ort("Attention", X, W, B, num_heads=H),
    "Attention of onnxruntime, causal": of_ort("Attention", X, W, B, num_heads=H, unidirectional=1),
    "Attention of onnxruntime, lengths": of_ort("Attention", X, W, B, np.array([4, 5], dtype=np.int32), num_heads=H),
    "Attention of onnxruntime, padding": of_ort(
        "Attention", X, W, B, np.array([[1, 1, 0, 1, 0], [1] * 5], dtype=np.int32), num_heads=H
    ),
    "Attention of onnxruntime, per query": of_ort(
        "Attention", X, W, B, SEEN[:, :, :S].copy(), num_heads=H
    ),
    "Attention of onnxruntime, bias": of_ort(
        "Attention", X, W, B, None, None, noise(1, H, S, S, seed=8), num_heads=H, scale=0.1
    ),
    "Attention of onnxruntime, other width": of_ort(
        "Attention", X, W[:, :88].copy(), B[:88].copy(), num_heads=H, qkv_hidden_sizes=[32, 32, 24]
    ),
    "Attention of onnxruntime, past": of_ort(
        "Attention", X, W, B, None, noise(2, N, H, 3, D, seed=9), feed=(0, 4), outputs=2, num_heads=H
    ),
    **{
        f"RotaryEmbedding {name}": Single("RotaryEmbedding", values, attributes, low=23)
        for name, values, attributes in (
            ("heads", [Q, COS, SIN, PLACES], {}),
            ("flat", [FLAT[0], COS, SIN, PLACES], {"num_heads": H}),
            ("interleaved", [Q, COS, SIN, PLACES], {"interleaved": 1}),
            ("placed", [Q, COS[PLACES], SIN[PLACES]], {}),
            ("part", [Q, COS[:, :2].copy(), SIN[:, :2].copy(), PLACES], {"rotary_embedding_dim": 4}),
        )
    },
    "RotaryEmbedding of onnxruntime": of_ort("RotaryEmbedding", Q, PLACES, COS, SIN),
    "RotaryEmbedding of onnxruntime, flat": of_ort("RotaryEmbedding", FLAT[0], np.array([2]), COS, SIN, interleaved=1),
    "RotaryEmbedding of onnxruntime, part": of_ort(
        "RotaryEmbedding", FLAT[0], PLACES, COS[:, :2].copy(), SIN[:, :2].copy(), num_heads=H, rotary_embedding_dim=4
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "opset"), [pytest.param(c, o, id=name) for name, c, o in at_opsets(CASES)])
def test_computes_what_onnxruntime_does(case: Single, opset: int) -> None:
    assert_same(case, opset)


@pytest.mark.parametrize("name", ["Attention of onnxruntime, padding", "MultiHeadAttention bias"])
def test_slopes_are_those_of_onnxruntime(name: str) -> None:
    assert_slopes(CASES[name].model(17), CASES[name].fed())
