"""Products with matrices: Gemm, MatMul, Einsum, and onnxruntime's fused forms of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pcns_onnx.autograd.operators.operator import Operator


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


def _einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *inputs)


def _fused_matmul(
    a: Tensor, b: Tensor, *,
    alpha: float = 1.0, transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0,
) -> Tensor:  # fmt: skip
    product = _oriented(a, transA, transBatchA) @ _oriented(b, transB, transBatchB)
    return product if alpha == 1 else alpha * product


def _oriented(x: Tensor, is_transposed: int, is_batch_last: int) -> Tensor:
    """As FusedMatMul reads an operand: its first axis is one of the matrix if its batches stand behind it."""
    x = x.movedim(0, -2) if is_batch_last and x.ndim > 2 else x
    return x.mT if is_transposed and x.ndim > 1 else x


def activated(x: Tensor, name: str, values: Sequence[float] = ()) -> Tensor:
    """The activation of a fused operator, `values` being its parameters in onnxruntime's order."""
    if name == "Clip":
        return torch.clamp(x, *values)
    if name == "HardSigmoid":
        alpha, beta = values or (0.2, 0.5)
        return torch.clamp(alpha * x + beta, 0.0, 1.0)
    if name == "LeakyRelu":
        return F.leaky_relu(x, *(values or (0.01,)))
    plain = {"": torch.clone, "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid}
    return plain[name](x)


def unknown_activation(attributes: Mapping[str, Any]) -> str | None:
    """Why a fused operator cannot run here."""
    name = attributes.get("activation", "")
    known = ("", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
    return None if name in known else f"with activation {name}"


def _fused_gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, activation: str = "", activation_alpha: float | None = None,
    activation_beta: float | None = None, activation_gamma: float | None = None,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    product = _gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(product, activation, [v for v in (activation_alpha, activation_beta) if v is not None])


LINEAR: dict[str, Operator] = {
    "Gemm": Operator(_gemm, layer=True),
    "MatMul": Operator(torch.matmul, layer=True),
    "Einsum": Operator(_einsum, layer=True),
    "com.microsoft.FusedMatMul": Operator(_fused_matmul, layer=True),
    "com.microsoft.TransposeMatMul": Operator(_fused_matmul, layer=True),
    "com.microsoft.FusedGemm": Operator(_fused_gemm, layer=True, refuse=unknown_activation),
}
