"""Models of one node, at every opset that has changed its operator; run in onnxruntime and in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from builders.models import Array
from pcns_onnx.graph import Program
from pcns_onnx.runtime.engine import Engine

NEWEST = 23
"""The newest opset of these models."""


@dataclass(frozen=True)
class Single:
    """One node: `values` are its inputs (None: absent), those at `feed` are the model's inputs, the others stored."""

    op: str
    values: Sequence[Array | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    feed: Sequence[int] = (0,)
    outputs: int = 1
    absent: Sequence[int] = ()  # outputs that nobody asks for
    low: int = 7
    high: int = NEWEST
    domain: str = ""
    tolerance: float = 1e-5

    def opsets(self) -> list[int]:
        """The lowest, and each in which the operator was changed."""
        if self.domain:
            return [min(self.high, 17)]
        schemas = (s for s in defs.get_all_schemas_with_history() if s.name == self.op and not s.domain)
        return sorted({self.low, *(s.since_version for s in schemas if self.low <= s.since_version <= self.high)})

    def model(self, opset: int) -> onnx.ModelProto:
        """Inputs are called i0, i1, ... and outputs o0, o1, ..."""
        names = ["" if value is None else f"i{place}" for place, value in enumerate(self.values)]
        outputs = ["" if place in self.absent else f"o{place}" for place in range(self.outputs)]
        node = helper.make_node(self.op, names, outputs, domain=self.domain, **self.attributes)
        inputs, stored = [], []
        for place, value in enumerate(self.values):
            if value is None:
                continue
            if place in self.feed:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                inputs.append(helper.make_tensor_value_info(names[place], kind, value.shape))
            else:
                stored.append(numpy_helper.from_array(value, names[place]))
        results = [onnx.ValueInfoProto(name=name) for name in outputs if name]
        graph = helper.make_graph([node], "single", inputs, results, stored)
        opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(self.domain, 1)] if self.domain else [])]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        results = list(onnx.shape_inference.infer_shapes(model).graph.output)
        if not all(value.type.tensor_type.HasField("shape") for value in results):  # onnx's checker asks for some
            values = in_onnxruntime(model, self.fed())
            results = [
                helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for v, a in zip(results, values, strict=True)
            ]
        del model.graph.output[:]
        model.graph.output.extend(results)
        return model

    def fed(self) -> dict[str, Array]:
        """What the model is run on."""
        return {f"i{place}": np.asarray(value) for place in self.feed if (value := self.values[place]) is not None}


def at_opsets(cases: Mapping[str, Single]) -> Iterator[tuple[str, Single, int]]:
    """(name, case, opset) of all of them, as parameters of a test."""
    for name, case in cases.items():
        for opset in case.opsets():
            yield f"{name}-{opset}", case, opset


def in_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs."""
    return [np.asarray(v) for v in Engine().session(Program(model.SerializeToString())).run(dict(feeds)).values()]


def in_torch(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs of the translated module."""
    import torch

    from pcns_onnx.autograd.translation import to_torch

    with torch.no_grad():
        outputs = to_torch(model)(*(torch.from_numpy(value.copy()) for value in feeds.values()))
    return [value.numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]


def assert_same(case: Single, opset: int) -> None:
    """PyTorch gives what onnxruntime gives, in the same types and shapes."""
    model = case.model(opset)
    for expected, got in zip(in_onnxruntime(model, case.fed()), in_torch(model, case.fed()), strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=case.tolerance, atol=case.tolerance)


def assert_slopes(model: onnx.ModelProto, feeds: Mapping[str, Array], step: float = 1e-2) -> None:
    """Every weight has a gradient, and along it the outputs move in onnxruntime as it says.

    f is a random mix of all float outputs; for each weight w and its gradient g:
    (f(w + h d) - f(w - h d)) / 2h = g . d,  d = g / |g|.
    """
    import torch

    from pcns_onnx.autograd.translation import to_onnx, to_torch

    rng, module = np.random.default_rng(5), to_torch(model)
    results = module(*(torch.from_numpy(value.copy()) for value in feeds.values()))
    results = results if isinstance(results, tuple) else (results,)
    mixes = [rng.standard_normal(r.shape) for r in results]
    sum(
        (r.double() * torch.from_numpy(m)).sum() for r, m in zip(results, mixes, strict=True) if r.requires_grad
    ).backward()
    parameters = dict(module.named_parameters())
    assert parameters
    for name, weight in parameters.items():
        slope = float(weight.grad.double().norm())
        assert np.isfinite(slope) and slope > 0, name
        moved = []
        for sign in (1, -1):
            with torch.no_grad():
                kept = weight.clone()
                weight += sign * step / slope * weight.grad
            outputs = in_onnxruntime(to_onnx(module, model), feeds)
            moved.append(sum(float((o * m).sum()) for o, m in zip(outputs, mixes, strict=True)))
            with torch.no_grad():
                weight.copy_(kept)
        assert (moved[0] - moved[1]) / (2 * step) == approx(slope), name


def approx(value: float) -> Any:
    """Within what differences of float32 can tell."""
    import pytest

    return pytest.approx(value, rel=2e-2, abs=2e-3)
