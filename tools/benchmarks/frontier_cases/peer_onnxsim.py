"""onnxsim 0.8's structured pruning: L2, Wanda, and Wanda with its ridge fine-tune.

It finds producer-consumer chains and residual groups of Conv; every layer loses the same fraction ("uniform"), or
all eligible chains are ranked together ("global", which leaves residual groups alone). BatchNormalization has to be
folded first, which its own `simplify` does. It cannot follow ResNet's padded shortcuts; "stream"
gives them to it as Conv, so that it may narrow the residual stream too. The fine-tune reaches Gemm and MatMul only,
and of those only layers that lost either inputs or outputs, not both; "light" is a hundredth of its usual ridge.
"""

from __future__ import annotations

import onnx
from onnxsim import apply_pruning_finetune, apply_structured_pruning, apply_structured_wanda_pruning

from benchmarks.frontier_cases.counting import cost
from benchmarks.frontier_cases.matching import least_pruned
from benchmarks.frontier_cases.peer import BATCH, Clock, asked
from benchmarks.frontier_cases.plain import plain

MOST = 0.98
USUAL, LIGHT = 1e-2, 1e-4


def main() -> None:
    job = asked()
    whole = plain(str(job.model), fold_norms=True, conv_shortcuts="stream" in job.setting)
    everywhere = "global" in job.setting
    samples = job.samples()
    batches = [{whole.graph.input[0].name: samples[i : i + BATCH]} for i in range(0, len(samples), BATCH)]

    def pruned(sparsity: float, fed: int) -> onnx.ModelProto:
        small: onnx.ModelProto
        if job.method == "l2":
            small = apply_structured_pruning(whole, sparsity, global_sparsity=everywhere)
        else:
            small = apply_structured_wanda_pruning(whole, batches[:fed], sparsity=sparsity, global_sparsity=everywhere)
        return small

    # One batch tells how many channels go; which ones is for all samples to say, and then a little more may have to go.
    clock = Clock()
    sparsity = least_pruned(lambda amount: cost(pruned(amount, 1)).macs, job.target, MOST)
    searched = clock.seconds
    clock = Clock()
    while cost(small := pruned(sparsity, len(batches))).macs > job.target:
        searched += clock.seconds
        clock = Clock()
        sparsity += 1 / 256
    if job.method == "wanda-ridge":
        small = apply_pruning_finetune(whole, small, batches, reg_param=LIGHT if "light" in job.setting else USUAL)
    job.finish(small, searched)


if __name__ == "__main__":
    main()
