"""The docs say what the rules do: their table of topologies is made by looking at a model of each kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from builders import attention, control_flow, fused_attention, intact, norms, transposed
from builders import topologies as t
from builders.cells import CellModel
from builders.joins import branches, dense, fire, neck, option_a, shuffle, unet
from pcns_onnx import inspect
from pcns_onnx.methods.registry import EXPANSIONS, METHODS

DOCS = Path(__file__).parents[2] / "docs"
STATE = helper.make_tensor_value_info("h0", TensorProto.FLOAT, [1, "N", 12])
OWN = "it feeds the model's output"

TOPOLOGIES: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "residual sum": t.residual,
    "residual sum, projection shortcut": t.projection,
    "residual sum, zero-padded shortcut": option_a,
    "pre-activation residual blocks": t.pre_activation,
    "concatenation of branches (Inception)": lambda: branches(8, 6, 10),
    "dense block (DenseNet)": dense,
    "squeeze and expand (SqueezeNet)": fire,
    "split, partial path, upsample, concat (YOLO, CSP)": neck,
    "skip connections with Resize (U-Net)": unet,
    "ConvTranspose": transposed.decoder,
    "depthwise Conv, inverted residual (MobileNet)": t.inverted_residual,
    "depthwise Conv with a multiplier": lambda: t.depthwise(2),
    "grouped Conv, wide blocks": lambda: t.grouped(2),
    "grouped Conv, narrow blocks (ResNeXt)": lambda: t.grouped(8),
    "channel shuffle (ShuffleNet)": t.shuffle,
    "split and shuffle (ShuffleNetV2)": shuffle,
    "squeeze-and-excite gate": lambda: t.squeeze_excite("conv"),
    "gated FFN (GLU, SwiGLU)": t.swiglu,
    "attention, Q, K and V apart": attention.separate,
    "attention, fused QKV": attention.fused_gather,
    "attention, scale computed from a shape": attention.scaled_by_shape,
    "attention by Einsum": attention.einsum,
    "attention by Einsum, weights of three axes": attention.einsum_to_heads,
    "attention, stored rotary angles": attention.rotary,
    "attention, norm of Q and K": attention.normalised,
    "ai.onnx Attention": fused_attention.standard,
    "ai.onnx Attention, RotaryEmbedding with stored angles": fused_attention.standard_rotary,
    "ai.onnx Attention with a cache, as many heads of K and V as of Q": lambda: fused_attention.cached(
        "Attention", 2, 2, True
    ),
    "com.microsoft.MultiHeadAttention": fused_attention.multi_head,
    "com.microsoft.Attention, weights inside": fused_attention.packed_weights,
    "com.microsoft.GroupQueryAttention": lambda: fused_attention.grouped_query(2),
    "BatchNormalization that cannot be folded": lambda: norms.PASSED["batch norm in the way"].build(),
    "InstanceNormalization": lambda: norms.PASSED["instance norm"].build(),
    "GroupNormalization": lambda: norms.group_norm(4).build(),
    "LayerNormalization": lambda: norms.MIXED["layer norm"][0].build(),
    "LayerNormalization in pieces": lambda: norms.MIXED["layer norm in pieces"][0].build(),
    "RMSNormalization in pieces": lambda: norms.MIXED["rms norm in pieces"][0].build(),
    "LRN": lambda: norms.MIXED["lrn"][0].build(),
    "LSTM, GRU, RNN": lambda: CellModel("LSTM").build(),
    "LSTM in both directions": lambda: CellModel("LSTM", "bidirectional").build(),
    "LSTM whose first state is an input": lambda: CellModel("LSTM", extra={5: "h0"}, graph_inputs=[STATE]).build(),
    "LSTM whose weights are computed": lambda: intact.SHRUNK["lstm"].build(),
    "Loop": lambda: intact.SHRUNK["loop"].build(),
    "weights that are quantised alone": intact.WEIGHT_ONLY.build,
    "weights that are quantised with their input": lambda: intact.SHRUNK["quantised weight"].build(),
    "QDQ activations": lambda: intact.SHRUNK["quantised and back"].build(),
    "Einsum that is no matrix product": lambda: intact.SHRUNK["einsum"].build(),
    "model-local function": control_flow.called_twice,
    "If with a constant condition": control_flow.constant_if,
    "custom domain": lambda: intact.SHRUNK["not known, without weights"].build(),
    "sparse weight": lambda: intact.SHRUNK["sparse weight"].build(),
}


def outcome(model: onnx.ModelProto) -> str:
    """What becomes of the channels: narrowed, or why some stay (names left out)."""
    found = inspect(model)
    reasons = [g.reason for g in found.groups] + [layer.reason for layer in found.layers]
    said = dict.fromkeys(
        re.sub(r" '[^']*'", "", reason) for reason in reasons if reason is not None and not reason.startswith(OWN)
    )
    together = any(len(g.writers) > 1 or g.unit > 1 for g in found.groups if g.reason is None)
    if not said:
        return "narrowed, together" if together else "narrowed"
    return "stay: " + "; ".join(said)


def table() -> str:
    """The table as it stands in docs/operators.md."""
    rows = [f"| {name} | {outcome(build())} |" for name, build in TOPOLOGIES.items()]
    return "\n".join(["| topology | channels that meet it |", "|---|---|", *rows])


def test_docs_have_the_table_of_topologies() -> None:
    made = table()
    assert made in (DOCS / "operators.md").read_text(), (
        f"the table of topologies in docs is out of date; it should be:\n{made}"
    )


def test_docs_have_the_table_of_methods() -> None:
    rows = "\n".join(method.row for method in (*METHODS.values(), *EXPANSIONS.values()))
    assert rows in (DOCS / "methods.md").read_text(), (
        f"the table of methods in docs is out of date; it should be:\n{rows}"
    )
