"""Random weights for a model that came without its own, so that shrinking it has something to solve.

    python tools/fresh_weights.py ZOO [--only resnet50] [--seed 0]

`fresh_weights` works on any model; the command line writes every `light_*.onnx` of the installed onnx package
(the model zoo's classics with all weights the same constant) to the folder ZOO.

Weights are stored as initializers, whether the model had them so or made them with ConstantOfShape. Layers are
drawn as He et al. (2015) do, then scaled on samples, layer by layer, so that the signal neither dies nor explodes;
normalisations get the mean and the variance that their channels have there. What is no weight (shapes, scalars)
stays.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from pcns_onnx.graph import Program
from pcns_onnx.runtime.engine import Engine

Feeds = Mapping[str, NDArray[Any]]

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NORM = "BatchNormalization"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CARRIERS = ("Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity")
SPREAD = 0.1
"""Standard deviation of biases, and of scales around 1."""
RMS = "/rms"
INITIALIZERS_ARE_INPUTS_BEFORE = 4
"""The IR version since which an initializer need not be an input as well."""


def light_models(only: str = "") -> dict[str, Path]:
    """The zoo's classics in the installed onnx package, by name."""
    found = {path.stem.removeprefix("light_"): path for path in sorted(LIGHT.glob("light_*.onnx"))}
    return {name: path for name, path in found.items() if only in name}


def free_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that no initializer fills."""
    filled = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in filled]


def random_feeds(model: ModelProto, count: int, seed: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """One sample at a time: images of noise at several scales, mean 0 and variance 1; a free dimension is 1."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            value.name: _noise(rng, tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim))
            for value in free_inputs(model)
        }


def fresh_weights(model: ModelProto, samples: Sequence[Feeds], seed: int = 0) -> ModelProto:
    """A copy of `model` with new random weights; `samples` (feeds of one batch each) set their scale."""
    fresh = ModelProto()
    fresh.CopyFrom(model)
    _store_constants(fresh)
    rng = np.random.default_rng(seed)
    uses = _uses(fresh)
    for tensor in fresh.graph.initializer:
        shape = tuple(tensor.dims)
        if tensor.data_type == TensorProto.FLOAT and math.prod(shape) > 1 and tensor.name in uses:
            values = _drawn(rng, shape, *uses[tensor.name])
            if values is not None:
                _store(tensor, values)
    _settle(fresh, samples)
    return fresh


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    image = rng.standard_normal(shape)
    if len(shape) == 4:
        for step in (4, 16, 64):
            height, width = (-(-size // step) for size in shape[2:])
            coarse = rng.standard_normal((*shape[:2], height, width))
            image += coarse.repeat(step, axis=2).repeat(step, axis=3)[:, :, : shape[2], : shape[3]]
        image /= 2.0
    return image.astype(np.float32)


def _store_constants(model: ModelProto) -> None:
    """Turn every float ConstantOfShape of a known shape into an initializer."""
    graph = model.graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    kept, replaced = list[NodeProto](), set[str]()
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in known:
            kept.append(node)
            continue
        fill = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, dtype=np.float32)
        if fill.dtype != np.float32:
            kept.append(node)
            continue
        values = np.full(known[node.input[0]], fill.reshape(-1)[0], dtype=np.float32)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        if model.ir_version < INITIALIZERS_ARE_INPUTS_BEFORE:
            kind = TensorProto.FLOAT
            graph.input.append(helper.make_tensor_value_info(node.output[0], kind, list(values.shape)))
        replaced.add(node.input[0])
    _replace(graph.node, kept)
    dead = replaced - {name for node in kept for name in node.input}
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name not in dead])
    _replace(graph.input, [value for value in graph.input if value.name not in dead])


def _replace(field: Any, items: Sequence[Any]) -> None:
    copies = list(items)
    del field[:]
    field.extend(copies)


def _uses(model: ModelProto) -> dict[str, tuple[NodeProto, int]]:
    """The first node that computes with a value, and at which input; reshapes on the way are looked through."""
    uses: dict[str, tuple[NodeProto, int]] = {}
    for node in reversed(model.graph.node):
        for position, name in enumerate(node.input):
            if node.op_type not in CARRIERS:
                uses[name] = (node, position)
            elif position == 0 and node.output[0] in uses:
                uses[name] = uses[node.output[0]]
    return uses


def _drawn(
    rng: np.random.Generator, shape: tuple[int, ...], node: NodeProto, position: int
) -> NDArray[np.float64] | None:
    """Values for input `position` of `node`, or None where the values must mean something."""
    if node.op_type in LAYERS and len(shape) > 1:
        return rng.standard_normal(shape) * math.sqrt(2.0 / _fan_in(node, shape))
    if (node.op_type in LAYERS and position == 2) or node.op_type in ("Add", "Sum", "Sub"):
        return rng.standard_normal(shape) * SPREAD
    if node.op_type == NORM:
        constant = {3: 0.0, 4: 1.0}.get(position)
        if constant is not None:
            return np.full(shape, constant)
        return float(position == 1) + rng.standard_normal(shape) * SPREAD
    if node.op_type in ("Mul", "Div"):
        return 1.0 + rng.standard_normal(shape) * SPREAD
    return None


def _fan_in(node: NodeProto, shape: tuple[int, ...]) -> int:
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return shape[0] * math.prod(shape[2:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return shape[-1 if transposed else -2]


def _settle(model: ModelProto, samples: Sequence[Feeds]) -> None:
    """Give every layer outputs of mean square 1, and every BatchNormalization the moments of its channels.

    All at once, in a model that measures as it goes: layers are divided by their own root mean square, and
    normalisations are InstanceNormalizations.
    """
    readers = {name: node.output[0] for name, (node, _) in _uses(model).items()}
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    norms = [node for node in model.graph.node if node.op_type == NORM]
    measuring = ModelProto()
    measuring.CopyFrom(model)
    _replace(measuring.graph.node, [part for node in measuring.graph.node for part in _measuring(node)])
    wanted = list(dict.fromkeys([node.output[0] + RMS for node in layers] + [node.input[0] for node in norms]))
    _replace(measuring.graph.output, [helper.make_empty_tensor_value_info(name) for name in wanted])
    session = Engine().session(Program(measuring.SerializeToString()))
    sums: dict[str, NDArray[np.float64]] = {}
    for feeds in samples:
        for name, tensor in session.run(feeds).items():
            axes = (0, *range(2, tensor.ndim)) if tensor.ndim else ()
            found = np.stack([(tensor.astype(np.float64) ** power).mean(axis=axes) for power in (1, 2)])
            sums[name] = sums.get(name, 0.0) + found / len(samples)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in layers:
        for name in (name for name in weights if readers.get(name) == node.output[0]):
            _store(weights[name], numpy_helper.to_array(weights[name]) / sums[node.output[0] + RMS][0])
    for node in norms:
        mean, square = sums[node.input[0]]
        _store(weights[node.input[3]], mean)
        _store(weights[node.input[4]], np.maximum(square - mean**2, 1e-3))


def _measuring(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes that compute what `node` will, once it is settled."""
    made = NodeProto()
    made.CopyFrom(node)
    if node.op_type == NORM:
        made.op_type = "InstanceNormalization"
        del made.input[3:], made.output[1:]
        _replace(made.attribute, [a for a in made.attribute if a.name == "epsilon"])
    if node.op_type not in LAYERS:
        yield made
        return
    result = node.output[0]
    raw, squares, mean = (result + suffix for suffix in ("/raw", "/squares", "/mean"))
    made.output[0] = raw
    yield made
    yield helper.make_node("Mul", [raw, raw], [squares])
    yield helper.make_node("ReduceMean", [squares], [mean], keepdims=0)
    yield helper.make_node("Sqrt", [mean], [result + RMS])
    yield helper.make_node("Div", [raw, result + RMS], [result])


def _store(tensor: TensorProto, values: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def write_light(name: str, path: Path, folder: Path, seed: int = 0) -> Path:
    """One of the zoo's classics with fresh weights, as a file in `folder`."""
    model = onnx.load(path)
    target = folder / f"{name}.onnx"
    onnx.save(fresh_weights(model, list(random_feeds(model, 4, seed)), seed), target)
    return target


def main() -> None:
    """Write the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.zoo.mkdir(parents=True, exist_ok=True)
    for name, path in light_models(args.only).items():
        print(write_light(name, path, args.zoo, args.seed), flush=True)


if __name__ == "__main__":
    main()
