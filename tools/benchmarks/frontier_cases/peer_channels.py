"""Two textbook ways to remove hidden channels: the smallest norm, and interpolative decomposition.

Both act on chains (one writer, one reader), which in a residual net are the inner channels of its blocks.
"uniform" keeps the same fraction of every layer; "global" sets one bar for all: norms relative to their layer's
mean, or one accuracy |R_kk| / |R_11| for all decompositions, as its authors do. "norms" estimates the
statistics of (inserted) norms again afterwards.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.frontier_cases.chains import Chain, chains, narrow
from benchmarks.frontier_cases.interpolative import Decomposition, decompose
from benchmarks.frontier_cases.matching import keep, least_pruned
from benchmarks.frontier_cases.peer import Clock, asked
from benchmarks.frontier_cases.plain import plain
from benchmarks.frontier_cases.rebuild import NORMS, Net, batches, re_estimate, to_onnx, to_torch

ROWS = 65_536
"""Rows of activations that a decomposition reads at most."""


def norms_of(net: Net, hidden: list[Chain]) -> list[npt.NDArray[np.float64]]:
    """L2 norm of every channel's weights, its BatchNormalization's scale included, over the layer's mean."""
    found = []
    for chain in hidden:
        size = net.layer(chain.writer).weight.detach().flatten(1).norm(dim=1)
        if chain.norm and chain.norm not in net.inserted.values():
            norm = net.layer(chain.norm)
            size = size * norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
        found.append((size / size.mean()).double().numpy())
    return found


def decompositions(net: Net, hidden: list[Chain], samples: npt.NDArray[np.float32]) -> list[Decomposition]:
    """One decomposition per chain, of what its reader reads; a layer at a time, so that memory stays small."""
    return [decompose(_read(net, chain, samples)) for chain in hidden]


def _read(net: Net, chain: Chain, samples: npt.NDArray[np.float32]) -> Any:
    caught: list[Any] = []
    hook = net.layer(chain.reader).register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    draw = np.random.default_rng(0)
    with torch.no_grad():
        for batch in batches(samples):
            net.module(batch)
            split = caught.pop().reshape(len(batch), chain.width, -1)
            rows = split.transpose(1, 2).reshape(-1, chain.width).numpy()
            share = -(-ROWS * len(batch) // len(samples))
            yield rows if len(rows) <= share else rows[draw.choice(len(rows), share, replace=False)]
    hook.remove()


def main() -> None:
    job = asked()
    samples = job.samples()
    again = "norms" in job.setting
    model = plain(str(job.model), fold_norms=False, conv_shortcuts=False)
    net = to_torch(model, samples if again else None)
    hidden = chains(net)
    found = decompositions(net, hidden, samples) if job.method == "interpolative" else []
    scores = [one.accuracy for one in found] or norms_of(net, hidden)

    def edited(amount: float, mix: bool) -> Any:
        module = copy.deepcopy(net.module)
        for index, kept in enumerate(keep(scores, amount, "global" in job.setting)):
            mixing = torch.from_numpy(found[index].mixing(len(kept))[1]).float() if found and mix else None
            narrow(module, hidden[index], torch.from_numpy(kept), mixing)
        return module

    clock = Clock()
    amount = least_pruned(lambda x: net.macs(edited(x, False)), job.target)
    searched = clock.seconds
    module = edited(amount, True)
    if again:
        re_estimate([m for m in module.modules() if isinstance(m, NORMS)], module, samples)
    job.finish(to_onnx(net, module), searched)


if __name__ == "__main__":
    main()
