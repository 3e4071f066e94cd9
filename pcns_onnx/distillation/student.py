"""The small model as a PyTorch module that trains, and its weights back in the same nodes of the same file.

Only what computes the tensors that are learnt is translated: a Softmax, a suppression of boxes behind them need not be
known to PyTorch. Weights, their gradients and Adam's moments are float32 whatever the file stores; where the processor
multiplies bfloat16 (AVX512-BF16, AMX, CUDA), convolutional models run in that, channels last; on a CPU not those with
depthwise convolutions, which it slows down (28 ms for 22 a sample of a face detector, where others take half the time).
On CUDA the products of models with attention do so, too; on a CPU these gain a fifth, and oneDNN keeps so much for
every length of a text that MiniLM takes 4 GB.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pcns_onnx.autograd.translation import to_torch
from pcns_onnx.autograd.weights import attribute_names, write_weights
from pcns_onnx.data.batch import Batch
from pcns_onnx.errors import InputError
from pcns_onnx.graph import Array, Graph
from pcns_onnx.graph.queries import has_attention

if TYPE_CHECKING:
    from onnx import ModelProto

Parameters = dict[str, Tensor]
"""By the names of the initializers."""


@contextmanager
def deterministic(threads: int, seed: int) -> Iterator[None]:
    """Inside, PyTorch is deterministic and keeps to so many threads (0: its own choice); outside, as it was."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warned, state = torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_rng_state()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(seed)
        if threads:
            torch.set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=warned)
        torch.set_rng_state(state)


def torch_version() -> dict[str, str]:
    """Version of PyTorch, for reports."""
    return {"torch": str(torch.__version__)}


def raised_by_pytorch(error: BaseException) -> bool:
    """Whether an error is PyTorch's, and no fault of ours: raised in one of its modules, or by its compiled part.

    That leaves no frame of its own: its errors are RuntimeErrors, and where an operator of the interop calls it, what
    it says of arguments, too.
    """
    place, innermost = error.__traceback__, ""
    while place is not None:
        innermost, place = str(place.tb_frame.f_globals.get("__name__", "")), place.tb_next
    if innermost.partition(".")[0] == "torch":
        return True
    if isinstance(error, TypeError | ValueError | IndexError):
        return innermost.startswith("pcns_onnx.autograd.operators.")
    return isinstance(error, RuntimeError) and not isinstance(error, RecursionError)


def multiplies_bfloat16(device: str) -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(ask()) for ask in asked if ask is not None)


class Student:
    """A module that computes `tensors` of `small`, by name with how many axes each has, from feeds; `frozen` are the
    initializers that do not train."""

    def __init__(self, small: Graph, tensors: Mapping[str, int], freeze: Sequence[str], *, device: str) -> None:
        self._small, self._tensors, self.device = small, list(tensors), device
        part = Graph.load(_part(small, tensors))
        self._inputs = [spec.name for spec in part.inputs]
        self._module = to_torch(part.proto, widen=True)
        names = {attribute: name for name, attribute in attribute_names(part.as_float32()).items()}
        own = {names[attribute]: parameter for attribute, parameter in self._module.named_parameters()}
        self.frozen = frozen_by(freeze, small, own)
        for name in self.frozen:
            own[name].requires_grad_(False)
        self.parameters: Parameters = {name: value for name, value in own.items() if name not in self.frozen}
        if not self.parameters:
            raise InputError("there is no weight to train: --freeze leaves none, or the model has none")
        self.is_image = any(value.ndim == 4 for value in own.values()) and (device == "cuda" or not _depthwise(small))
        self.attends = has_attention(small)
        self.halves = (self.is_image or (self.attends and device == "cuda")) and multiplies_bfloat16(device)
        self._module.to(device)
        if self.is_image:
            self._module.to(memory_format=torch.channels_last)

    def __call__(self, batch: Batch, *, exact: bool = False) -> dict[str, Tensor]:
        """The tensors for a batch; `exact`: in float32."""
        feeds = [self._fed(batch.feeds[name]) for name in self._inputs]
        with self._precision(exact):
            outputs = self._module(*feeds)
        return dict(zip(self._tensors, (outputs,) if isinstance(outputs, Tensor) else outputs, strict=True))

    def _fed(self, values: Array) -> Tensor:
        values = values.astype(np.float32) if values.dtype.name in ("float16", "bfloat16") else values
        tensor = torch.from_numpy(np.require(values, requirements=["C", "W"])).to(self.device)
        is_image = self.is_image and tensor.ndim == 4 and tensor.is_floating_point()
        return tensor.contiguous(memory_format=torch.channels_last) if is_image else tensor

    def _precision(self, exact: bool) -> AbstractContextManager[object]:
        halves = self.halves and not exact
        return torch.autocast(self.device, dtype=torch.bfloat16) if halves else nullcontext()

    def state(self) -> dict[str, Array]:
        """The weights that train, as they are now."""
        return {name: value.detach().cpu().contiguous().numpy().copy() for name, value in self.parameters.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Take weights up."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(torch.from_numpy(np.array(state[name])))

    def graph(self) -> Graph:
        """The small model with these weights in its own nodes, names and types; all else is what it was."""
        proto = write_weights(self._small, dict(self.parameters))
        return Graph(proto, None, self._small.files, self._small.notes, self._small.stated_layout)


def _part(small: Graph, tensors: Mapping[str, int]) -> ModelProto:
    """What computes the tensors; the outputs of a model say how many axes they have, inner tensors need not."""
    proto = small.extract([spec.name for spec in small.inputs], list(tensors)).proto
    for value in proto.graph.output:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            kind.shape.SetInParent()
            for _ in range(tensors[value.name]):
                kind.shape.dim.add()
    return proto


def _depthwise(graph: Graph) -> bool:
    """Whether there are convolutions of one channel each: bfloat16 and channels last slow these down on a CPU."""
    return any(node.op == "Conv" and int(node.attrs.get("group", 1)) > 1 for node in graph.nodes)


def frozen_by(globs: Sequence[str], small: Graph, weights: Mapping[str, object]) -> list[str]:
    """The weights that globs name, by their own names or by those of nodes that read them; raises `InputError`."""
    texts = (globs,) if isinstance(globs, str) else globs
    readers: dict[str, set[str]] = {name: {name} for name in weights}
    for node in small.nodes:
        for name in node.inputs:
            if name in readers:
                readers[name].add(node.label)
    frozen = dict[str, None]()
    for glob in texts:
        hits = [name for name, labels in readers.items() if any(fnmatchcase(label, glob) for label in labels)]
        if not hits:
            raise InputError(f"--freeze '{glob}' matches no layer and no initializer that trains")
        frozen.update(dict.fromkeys(hits))
    return list(frozen)
