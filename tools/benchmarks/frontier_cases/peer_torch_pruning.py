"""Torch-Pruning 1.6, one shot: group-norm importance, with and without estimating BatchNormalization again.

"uniform" removes the same fraction of every group, "global" ranks all groups together. "inner" leaves residual
streams alone; "stream" narrows them too, for which padded shortcuts become Conv (see `plain`). "by8" keeps widths at
multiples of 8, which onnxruntime's kernels like, as pcns-onnx does.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning

from benchmarks.frontier_cases.chains import chains
from benchmarks.frontier_cases.matching import least_pruned
from benchmarks.frontier_cases.peer import Clock, asked
from benchmarks.frontier_cases.plain import plain
from benchmarks.frontier_cases.rebuild import LAYERS, NORMS, re_estimate, to_onnx, to_torch


def main() -> None:
    job = asked()
    samples = job.samples()
    model = plain(str(job.model), fold_norms=False, conv_shortcuts="stream" in job.setting)
    net = to_torch(model, samples)
    writers = {chain.writer for chain in chains(net)}
    last = list(net.positions)[-1]
    example = torch.from_numpy(samples[:1])

    def pruned(ratio: float) -> Any:
        module = copy.deepcopy(net.module)
        spared = [
            layer
            for name, layer in module.named_modules()
            if isinstance(layer, LAYERS) and (name == last or ("inner" in job.setting and name not in writers))
        ]
        pruner = torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning="global" in job.setting,
            pruning_ratio=ratio,
            ignored_layers=spared,
            round_to=8 if "by8" in job.setting else None,
        )
        pruner.step()
        return module

    # It leaves a layer whole when it would have to remove all of its channels.
    most = 1 - 1 / min(net.layer(name).weight.shape[0] for name in list(net.positions)[:-1])
    clock = Clock()
    ratio = least_pruned(lambda amount: net.macs(pruned(amount)), job.target, most)
    searched = clock.seconds
    module = pruned(ratio)
    if job.method == "norms":
        re_estimate([m for m in module.modules() if isinstance(m, NORMS)], module, samples)
    job.finish(to_onnx(net, module), searched)


if __name__ == "__main__":
    main()
