"""A fully connected network of three layers, with samples for it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, helper

from builders.models import build


def mlp(batch: int | str = "N", widths: Sequence[int] = (6, 12, 8, 3), sigma: str = "Tanh") -> ModelProto:
    """Gemm and an activation in turn, the layers named g0, g1, ..."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], {}, "x"
    for i, (n, k) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        weights[f"w{i}"] = (rng.standard_normal((n, k)) / n**0.5).astype(np.float32)
        weights[f"b{i}"] = (0.1 * rng.standard_normal(k)).astype(np.float32)
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], ["y" if last else f"h{i}"], name=f"g{i}"))
        if not last:
            nodes.append(helper.make_node(sigma, [f"h{i}"], [f"a{i}"], name=f"t{i}"))
        x = f"a{i}"
    return build(nodes, weights, [batch, widths[0]])


def rows(count: int = 300) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)


def saved(folder: Path, model: ModelProto | None = None, count: int = 300) -> tuple[Path, Path]:
    """A model and labelled data as files."""
    onnx.save(model or mlp(), folder / "model.onnx")
    x = rows(count)
    np.savez(folder / "data.npz", x=x, labels=np.argmax(x[:, :3], axis=1))
    return folder / "model.onnx", folder / "data.npz"
