"""Narrowing, with whole residual blocks left out: what such a block adds is a constant."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.dependency.dependency_graph import Census, kept_classes
from pcns_onnx.dependency.residual import Block, blocks
from pcns_onnx.graph import Graph
from pcns_onnx.ops import Labels
from pcns_onnx.rewrite.channels import narrow
from pcns_onnx.rewrite.patch import Patch, SetInput


def narrow_or_drop(graph: Graph, census: Census, keep: Mapping[str, Labels]) -> Patch:
    """`narrow`, with zeros in the place of every block of which `keep` has nothing left."""
    kept, edits = kept_classes(census, keep), list[SetInput]()
    for name, block in blocks(graph, census).items():
        if name in keep and not len(keep[name]):
            edits.append(constant_for(block, census, np.zeros(int(kept[block.layer.linear.writes].sum()))))
    return (*narrow(graph, census, keep), *edits)


def constant_for(block: Block, census: Census, values: NDArray[np.float64]) -> SetInput:
    """Add `values` (K,), one per channel, instead of what the block's last layer makes."""
    labels = census.labels[block.layer.output]
    shape = [-1 if size > 1 else 1 for size in labels.shape]
    return SetInput(block.sum, block.position, values.reshape(shape))
