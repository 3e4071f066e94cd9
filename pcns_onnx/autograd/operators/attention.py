"""Attention as one operator: ONNX's own and onnxruntime's, and the rotary embedding of positions.

softmax(Q K' scale + mask) V,  per head
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.operator import Operator


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, steps, heads * width) -> (batch, heads, steps, width)."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(batch, heads, steps, width) -> (batch, steps, heads * width)."""
    return x.transpose(1, 2).flatten(2)


def _after_past(past: Tensor | None, x: Tensor) -> Tensor:
    return x if past is None else torch.cat([past, x], dim=2)


def _causal(scores: Tensor, offset: int) -> Tensor:
    """0 where a query may look, -inf at what comes later; the first query stands at `offset`."""
    queries, keys = scores.shape[-2:]
    later = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).triu(offset + 1)
    return torch.zeros(queries, keys, dtype=scores.dtype, device=scores.device).masked_fill(later, float("-inf"))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor], *, scale: float | None, offset: int | None,
    softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """Per head (batch, heads, steps, width); masks are added, and with an `offset` no query looks ahead."""
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    for mask in masks:
        scores = scores + mask
    if offset is not None:
        scores = scores + _causal(scores, offset)
    return torch.softmax(scores, dim=-1) @ v


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, *, is_causal: int = 0, q_num_heads: int | None = None,
    kv_num_heads: int | None = None, scale: float | None = None, softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    is_flat = q.ndim == 3
    if is_flat:
        q, k, v = _heads(q, q_num_heads or 1), _heads(k, kv_num_heads or 1), _heads(v, kv_num_heads or 1)
    k, v = _after_past(past_k, k), _after_past(past_v, v)
    masks = []
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
        missing = k.shape[2] - mask.shape[-1]  # what a mask does not speak of is masked (opset 24)
        masks = [F.pad(mask, [0, missing], value=float("-inf")) if missing > 0 else mask]
    offset = 0 if past_k is None else past_k.shape[2]
    y = _attend(q, k, v, masks, scale=scale, offset=offset if is_causal else None, softcap=softcap)
    return (_joined(y) if is_flat else y), k, v


def _padding_mask(mask: Tensor, keys: int, value: float, like: Tensor) -> Tensor:
    """onnxruntime's forms: how many keys count (batch), which do (batch, keys), which for whom (batch, ..., keys)."""
    if mask.ndim == 1:
        mask = torch.arange(keys, device=mask.device) < mask.unsqueeze(1)
    counts = mask > 0
    counts = counts[:, None, None] if counts.ndim == 2 else counts.unsqueeze(1) if counts.ndim == 3 else counts
    return torch.zeros_like(counts, dtype=like.dtype).masked_fill(~counts, value)


def _multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None,
    padding: Tensor | None = None, attention_bias: Tensor | None = None, past_k: Tensor | None = None,
    past_v: Tensor | None = None, *, num_heads: int, mask_filter_value: float = -10000.0,
    scale: float | None = None, unidirectional: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    q = _heads(query, num_heads)
    k, v = (x if x.ndim == 4 else _heads(x, num_heads) for x in (key, value))
    if bias is not None:
        widths = [x.shape[-1] * num_heads for x in (q, k, v)]
        bq, bk, bv = (part.reshape(1, num_heads, 1, -1) for part in bias.split(widths))
        is_cross = key.ndim == 4  # keys of an encoder have theirs already
        q, k, v = q + bq, (k if is_cross else k + bk), (v if is_cross else v + bv)
    k, v = _after_past(past_k, k), _after_past(past_v, v)
    masks = [] if padding is None else [_padding_mask(padding, k.shape[2], mask_filter_value, q)]
    masks += [] if attention_bias is None else [attention_bias]
    y = _attend(q, k, v, masks, scale=scale, offset=k.shape[2] - q.shape[2] if unidirectional else None)
    return _joined(y), k, v


def _packed_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, past: Tensor | None = None,
    attention_bias: Tensor | None = None, *, num_heads: int, qkv_hidden_sizes: Sequence[int] | None = None,
    mask_filter_value: float = -10000.0, scale: float | None = None, unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """com.microsoft.Attention: one matrix makes queries, keys and values."""
    projected = x @ weight if bias is None else x @ weight + bias
    widths = list(qkv_hidden_sizes or [weight.shape[1] // 3] * 3)
    q, k, v = (_heads(part, num_heads) for part in projected.split(widths, dim=-1))
    if past is not None:
        k, v = _after_past(past[0], k), _after_past(past[1], v)
    masks = [] if mask is None else [_padding_mask(mask, k.shape[2], mask_filter_value, q)]
    masks += [] if attention_bias is None else [attention_bias]
    y = _attend(q, k, v, masks, scale=scale, offset=k.shape[2] - q.shape[2] if unidirectional else None)
    return _joined(y), torch.stack([k, v]) if k.shape == v.shape else k


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, width: int, is_interleaved: int) -> Tensor:
    """The first `width` numbers of (batch, heads, steps, size), turned in pairs by angles (batch, 1, steps, pairs)."""
    part, rest = x[..., :width], x[..., width:]
    first, second = (part[..., ::2], part[..., 1::2]) if is_interleaved else part.chunk(2, dim=-1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if is_interleaved:
        pairs = torch.stack([real, imaginary], dim=-1).flatten(-2)
    else:
        pairs = torch.cat([real, imaginary], dim=-1)
    return torch.cat([pairs, rest], dim=-1)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int, width: int, is_interleaved: int) -> Tensor:
    """Of (batch, heads, steps, size), or of (batch, steps, heads * size); angles are (batch, steps, width / 2)."""
    is_flat = x.ndim == 3
    if is_flat:
        x = _heads(x, heads or x.shape[2] // (width or 2 * cos.shape[-1]))
    y = _rotated(x, cos.unsqueeze(1), sin.unsqueeze(1), width or x.shape[-1], is_interleaved)
    return _joined(y) if is_flat else y


def _rotary_embedding(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None, *,
    interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0,
) -> Tensor:  # fmt: skip
    cos, sin = (cos, sin) if positions is None else (cos[positions], sin[positions])
    return _rotary(x, cos, sin, num_heads, rotary_embedding_dim, interleaved)


def _rotary_embedding_of_ort(
    x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, *,
    interleaved: int = 0, num_heads: int = 0, rotary_embedding_dim: int = 0, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    if positions.ndim == 1:  # where the first step stands
        steps = torch.arange(x.shape[-2], device=x.device)
        positions = (steps + positions).expand(x.shape[0], -1)
    return _rotary(x, cos[positions], sin[positions], num_heads, rotary_embedding_dim, interleaved)


ATTENTION: dict[str, Operator] = {
    "Attention": Operator(
        _attention, frozen=(3, 4, 5), outputs=3, only={"left_window_size": -1, "right_window_size": -1}
    ),
    "RotaryEmbedding": Operator(_rotary_embedding, frozen=(1, 2, 3)),
    "com.microsoft.Attention": Operator(
        _packed_attention, frozen=(3, 4), layer=True, outputs=2, only={"do_rotary": 0, "past_present_share_buffer": 0}
    ),
    "com.microsoft.MultiHeadAttention": Operator(_multi_head_attention, frozen=(4, 6, 7), layer=True, outputs=3),
    "com.microsoft.RotaryEmbedding": Operator(
        _rotary_embedding_of_ort, frozen=(1, 2, 3), only={"is_packed_batching": 0}
    ),
}
