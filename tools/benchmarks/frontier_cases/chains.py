"""Hidden channels that one layer writes and one layer reads, in a rebuilt network."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.frontier_cases.rebuild import LAYERS, NORMS, Net

_CARRIES = (torch.relu, torch.tanh, F.leaky_relu, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten)
"""What leaves every channel by itself."""


class Chain(NamedTuple):
    """`writer` (a layer) -> `norm` (if any) -> ... -> `reader` (a layer); each channel is read as `spread` columns."""

    writer: str
    norm: str | None
    reader: str
    width: int
    spread: int


def chains(net: Net) -> list[Chain]:
    """All chains, from input to output; what forks, or is added to something, is none."""
    found = []
    for node in net.module.graph.nodes:
        if node.op == "call_module" and isinstance(net.layer(node.target), LAYERS):
            chain = _follow(net, node)
            if chain is not None:
                found.append(chain)
    return found


def _follow(net: Net, start: Any) -> Chain | None:
    node, norm = start, None
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module":
            module = net.layer(node.target)
            if isinstance(module, NORMS):
                norm = node.target
                continue
            width = net.layer(start.target).weight.shape[0]
            return Chain(start.target, norm, node.target, width, module.weight.shape[1] // width)
        if node.op != "call_function" or node.target is operator.add or node.target not in _CARRIES:
            return None
    return None


def columns(chain: Chain, kept: Any) -> Any:
    """Columns of the reader that belong to the kept channels."""
    return (kept[:, None] * chain.spread + torch.arange(chain.spread)).flatten()


def narrow(module: Any, chain: Chain, kept: Any, mixing: Any = None) -> None:
    """Keep some channels of a chain, in place.

    `kept` is int64 of shape (m,). `mixing` (m x width): what each original channel is in terms of the
    kept ones; without it the reader simply loses the columns of the removed ones.
    """
    writer, reader = module.get_submodule(chain.writer), module.get_submodule(chain.reader)
    writer.weight.data = writer.weight.data[kept]
    if writer.bias is not None:
        writer.bias.data = writer.bias.data[kept]
    if chain.norm:
        norm = module.get_submodule(chain.norm)
        norm.weight.data, norm.bias.data = norm.weight.data[kept], norm.bias.data[kept]
        norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]
        norm.num_features = len(kept)
    weight = reader.weight.data
    if mixing is None:
        reader.weight.data = weight[:, columns(chain, kept)]
    else:
        split = weight.reshape(weight.shape[0], chain.width, chain.spread, -1)
        mixed = torch.einsum("kcst,mc->kmst", split, mixing)
        reader.weight.data = mixed.reshape(weight.shape[0], -1, *weight.shape[2:])
    if isinstance(writer, nn.Conv2d):
        writer.out_channels = len(kept)
    if isinstance(reader, nn.Conv2d):
        reader.in_channels = reader.weight.shape[1]
