"""An ONNX network as a PyTorch module and back: chains and residual nets of Conv, Gemm and what lies between.

The module is a torch.fx graph, one fx node per ONNX node, so that surgery can ask who reads what. With
`norms` every hidden Conv or Gemm that has no BatchNormalization gets one, set to what the layer itself
puts out on the calibration samples,

    y = gamma (s - mean) / sqrt(var + eps) + beta   with gamma = sqrt(var + eps), beta = mean,

which is the identity until channels are removed before it; then its statistics can be estimated again.
Going back, inserted norms are folded into their layer, so the ONNX graph keeps its nodes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx, nn
from torch.nn import functional as F

from benchmarks.frontier_cases.counting import shapes_of

BATCH = 256
LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class UnsupportedOpError(Exception):
    """The rebuild does not know an operator or a form of it."""


@dataclass
class Net:
    """A rebuilt network.

    `module` is the torch.fx module; `origin` maps its layers' names to indices of nodes of `model`;
    `inserted` maps layers' names to those of the norms that were added; `positions` is the number
    of output positions of each layer.
    """

    module: Any
    model: onnx.ModelProto
    origin: dict[str, int]
    inserted: dict[str, str]
    positions: dict[str, int]

    def layer(self, name: str) -> Any:
        return self.module.get_submodule(name)

    def macs(self, module: Any = None) -> int:
        """MACs of one sample, of this or of an edited copy of the module."""
        layers = self.module if module is None else module
        return sum(layers.get_submodule(name).weight.numel() * count for name, count in self.positions.items())


def to_torch(model: onnx.ModelProto, samples: npt.NDArray[np.float32] | None = None) -> Net:
    """Rebuild a model; with `samples`, hidden layers get norms that are the identity on them."""
    return _Builder(model, samples is not None).build(samples)


class _Builder:
    def __init__(self, model: onnx.ModelProto, norms: bool) -> None:
        self.model = model
        self.norms = norms
        self.constants = {t.name: numpy_helper.to_array(t).copy() for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t).copy()
        self.modules: dict[str, Any] = {}
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}
        self.inserted: dict[str, str] = {}

    def build(self, samples: npt.NDArray[np.float32] | None) -> Net:
        outputs = {value.name for value in self.model.graph.output}
        normed = {n.input[0] for n in self.model.graph.node if n.op_type == "BatchNormalization"}
        for value in self.model.graph.input:
            if value.name not in self.constants:
                self.values[value.name] = self.graph.placeholder("input")
        origin = {}
        for index, node in enumerate(self.model.graph.node):
            if node.op_type == "Constant":
                continue
            name = f"{node.op_type}_{index}"
            made = self._node(node, name)
            if name in self.modules:
                origin[name] = index
                if self.norms and not {node.output[0]} & (outputs | normed) and node.op_type in ("Conv", "Gemm"):
                    made = self._norm(name, made)
            self.values[node.output[0]] = made
        self.graph.output(self.values[self.model.graph.output[0].name])
        module = fx.GraphModule(self.modules, self.graph).eval()
        shapes = shapes_of(self.model)
        positions = {
            name: int(np.prod(shapes[self.model.graph.node[index].output[0]][2:]))
            for name, index in origin.items()
            if isinstance(self.modules[name], LAYERS)
        }
        if samples is not None:
            _become_identity([module.get_submodule(name) for name in self.inserted.values()], module, samples)
        return Net(module, self.model, origin, self.inserted, positions)

    def _norm(self, name: str, value: Any) -> Any:
        layer = self.modules[name]
        norm = (nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d)(layer.weight.shape[0])
        self.inserted[name] = f"{name}_norm"
        self.modules[f"{name}_norm"] = norm
        return self.graph.call_module(f"{name}_norm", (value,))

    def _node(self, node: onnx.NodeProto, name: str) -> Any:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        op = node.op_type
        if op in _MODULES:
            weights = [self.constants[i] for i in node.input[1:]]
            self.modules[name] = _MODULES[op](attrs, weights)
            return self.graph.call_module(name, (self.values[node.input[0]],))
        x = self.values[node.input[0]]
        call = self.graph.call_function
        if op in ("Relu", "Tanh"):
            return call({"Relu": torch.relu, "Tanh": torch.tanh}[op], (x,))
        if op == "LeakyRelu":
            return call(F.leaky_relu, (x, attrs.get("alpha", 0.01)))
        if op == "Add":
            return call(operator.add, (x, self.values[node.input[1]]))
        if op == "Flatten" and attrs.get("axis", 1) == 1:
            return call(torch.flatten, (x, 1))
        if op == "GlobalAveragePool":
            return call(F.adaptive_avg_pool2d, (x, 1))
        if op in ("MaxPool", "AveragePool") and not attrs.get("ceil_mode"):
            pool = F.max_pool2d if op == "MaxPool" else F.avg_pool2d
            stride = list(attrs.get("strides", [1, 1]))
            return call(pool, (x, list(attrs["kernel_shape"]), stride, _padding(attrs)))
        if op == "Slice":
            return call(operator.getitem, (x, self._slices(node)))
        if op == "Pad":
            pads = self.constants[node.input[1]].tolist()
            half = len(pads) // 2
            return call(F.pad, (x, [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]))
        raise UnsupportedOpError(f"{op} is not rebuilt in PyTorch")

    def _slices(self, node: onnx.NodeProto) -> tuple[slice, ...]:
        starts, ends, axes, steps = (self.constants[name].tolist() for name in node.input[1:5])
        found = [slice(None)] * 4
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            found[axis] = slice(start, None if end > 2**30 else end, step)
        return tuple(found)


def _padding(attrs: dict[str, Any]) -> list[int]:
    pads = list(attrs.get("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:] or attrs.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnsupportedOpError("only symmetric padding is rebuilt in PyTorch")
    return pads[:2]


def _conv(attrs: dict[str, Any], weights: list[npt.NDArray[Any]]) -> Any:
    weight = weights[0]
    if attrs.get("group", 1) != 1 or set(attrs.get("dilations", [1])) != {1} or weight.ndim != 4:
        raise UnsupportedOpError("only plain two-dimensional Conv is rebuilt in PyTorch")
    stride, padding = attrs.get("strides", (1, 1)), _padding(attrs)
    layer = nn.Conv2d(
        weight.shape[1], weight.shape[0], (weight.shape[2], weight.shape[3]), (stride[0], stride[1]),
        (padding[0], padding[1]), bias=len(weights) > 1,
    )  # fmt: skip
    return _filled(layer, weights)


def _linear(attrs: dict[str, Any], weights: list[npt.NDArray[Any]]) -> Any:
    if attrs.get("alpha", 1.0) != 1 or attrs.get("beta", 1.0) != 1 or attrs.get("transA", 0):
        raise UnsupportedOpError("only plain Gemm is rebuilt in PyTorch")
    weight = weights[0] if attrs.get("transB", 0) else weights[0].T
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=len(weights) > 1)
    return _filled(layer, [weight, *weights[1:]])


def _batch_norm(attrs: dict[str, Any], weights: list[npt.NDArray[Any]]) -> Any:
    scale, bias, mean, var = weights
    norm = nn.BatchNorm2d(len(scale), eps=attrs.get("epsilon", 1e-5))
    _filled(norm, [scale, bias])
    norm.running_mean, norm.running_var = torch.from_numpy(mean), torch.from_numpy(var)
    return norm


_MODULES = {"Conv": _conv, "Gemm": _linear, "BatchNormalization": _batch_norm}


def _filled(layer: Any, weights: list[npt.NDArray[Any]]) -> Any:
    for parameter, weight in zip((layer.weight, layer.bias), weights, strict=False):
        parameter.data = torch.from_numpy(np.ascontiguousarray(weight))
    return layer


def batches(samples: npt.NDArray[np.float32]) -> Iterable[Any]:
    """The samples as tensors; batches of equal weight are what cumulative statistics take."""
    return (torch.from_numpy(samples[start : start + BATCH]) for start in range(0, len(samples), BATCH))


def re_estimate(norms: Iterable[Any], module: Any, samples: npt.NDArray[np.float32]) -> None:
    """Estimate the norms' means and variances again: one pass in training mode, cumulative averages, no gradients."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches(samples):
            module(batch)
    module.eval()


def _become_identity(norms: list[Any], module: Any, samples: npt.NDArray[np.float32]) -> None:
    # In training mode a norm would change what the next one sees: the sums are taken at their inputs instead.
    sums: dict[Any, list[Any]] = {norm: [0, 0.0, 0.0] for norm in norms}

    def see(norm: Any, inputs: Any) -> None:
        rows = inputs[0].double().transpose(0, 1).flatten(1)
        total = sums[norm]
        sums[norm] = [total[0] + rows.shape[1], total[1] + rows.sum(1), total[2] + rows.square().sum(1)]

    for norm in norms:
        norm.running_var.fill_(1 - norm.eps)
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    with torch.no_grad():
        for batch in batches(samples):
            module(batch)
        for hook in hooks:
            hook.remove()
        for norm, (count, first, second) in sums.items():
            mean = first / count
            var = (second / count - mean.square()).clamp(min=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.weight.copy_((norm.running_var + norm.eps).sqrt())
            norm.bias.copy_(mean)


def to_onnx(net: Net, module: Any) -> onnx.ModelProto:
    """The model with the weights of `module`, an edited copy of the network's; inserted norms are folded."""
    model = onnx.ModelProto()
    model.CopyFrom(net.model)
    for name, index in net.origin.items():
        node, layer = model.graph.node[index], module.get_submodule(name)
        weights = [layer.weight, layer.bias]
        if isinstance(layer, NORMS):
            weights += [layer.running_mean, layer.running_var]
        elif name in net.inserted:
            weights = _folded(layer, module.get_submodule(net.inserted[name]))
        arrays = [w.detach().numpy() for w in weights if w is not None]
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0) == 0
        if node.op_type == "Gemm" and transposed:
            arrays[0] = np.ascontiguousarray(arrays[0].T)
        del node.input[1:]
        for part, array in zip(("weight", "bias", "mean", "var"), arrays, strict=False):
            node.input.append(f"{name}.{part}")
            model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), f"{name}.{part}"))
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:], model.graph.value_info[:]
    model.graph.initializer.extend(kept)
    return model


def _folded(layer: Any, norm: Any) -> list[Any]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = 0 if layer.bias is None else layer.bias
    return [
        layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1)),
        (bias - norm.running_mean) * scale + norm.bias,
    ]
