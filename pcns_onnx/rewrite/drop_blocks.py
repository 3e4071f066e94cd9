"""Narrowing, with whole residual blocks left out: what such a block adds is a constant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import DependencyGraph, kept_classes
from pcns_onnx.dependency.residual import ResidualBlock, residual_blocks
from pcns_onnx.graph import Graph
from pcns_onnx.ops import Labels
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.patch import Patch, SetInput


def narrow_or_drop(graph: Graph, dependencies: DependencyGraph, keep: Mapping[str, Labels]) -> Patch:
    """`narrow`, with zeros in the place of every block of which `keep` has nothing left."""
    kept, edits = kept_classes(dependencies, keep), list[SetInput]()
    for name, block in residual_blocks(graph, dependencies).items():
        if name in keep and not len(keep[name]):
            edits.append(constant_for(block, dependencies, np.zeros(int(kept[block.layer.linear.writes].sum()))))
    return (*narrow(graph, dependencies, keep), *edits)


def constant_for(block: ResidualBlock, dependencies: DependencyGraph, values: NDArray[np.float64]) -> SetInput:
    """Add `values` (K,), one per channel, instead of what the block's last layer makes."""
    labels = dependencies.labels[block.layer.output]
    shape = [-1 if size > 1 else 1 for size in labels.shape]
    return SetInput(block.sum, block.position, values.reshape(shape))
