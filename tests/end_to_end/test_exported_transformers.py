"""Architectures of transformers as PyTorch exports them, and as onnxruntime's optimizer fuses those."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from builders.models import Array, relative
from pcns_onnx import shrink
from pcns_onnx.graph import Graph, Program
from pcns_onnx.runtime.engine import Engine

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WORDS = 100
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
                                vocab_size=WORDS, attn_implementation="eager")),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=WORDS, attn_implementation="eager")),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                 intermediate_size=128, vocab_size=WORDS)),
}  # fmt: skip
"""Tiny, with random weights."""


def module(name: str) -> Any:
    """The first output of a model, from tokens and their mask."""
    torch.manual_seed(0)
    inner = CONFIGS[name]().eval()
    choices = {} if name == "bert" else {"use_cache": False}

    class First(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: Any, mask: Any) -> Any:
            return self.inner(input_ids=tokens, attention_mask=mask, **choices)[0]

    return First().eval()


def exported(name: str, path: Path, dynamo: bool) -> Path:
    tokens, mask = torch.randint(0, WORDS, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    choices: dict[str, Any] = {"input_names": ["input_ids", "attention_mask"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
            torch.onnx.export(module(name), (tokens, mask), path, dynamo=True, dynamic_shapes=(sizes, sizes),
                              verbose=False, external_data=False, **choices)  # fmt: skip
        else:
            axes = {key: {0: "batch", 1: "seq"} for key in ("input_ids", "attention_mask", "y")}
            torch.onnx.export(module(name), (tokens, mask), path, dynamo=False, opset_version=14, dynamic_axes=axes,
                              **choices)  # fmt: skip
    return path


def feeds(model: onnx.ModelProto, count: int, length: int, seed: int = 0) -> dict[str, Array]:
    """Tokens, and masks that hide the end of some."""
    rng, made = np.random.default_rng(seed), dict[str, Array]()
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        made[value.name] = rng.integers(0, WORDS, (count, length)).astype(kind)
        if "mask" in value.name:
            made[value.name] = (np.arange(length) < rng.integers(length // 2, length + 1, (count, 1))).astype(kind)
    return made


def first(model: onnx.ModelProto, fed: dict[str, Array]) -> Array:
    return np.asarray(next(iter(Engine().session(Program(model.SerializeToString())).run(fed).values())))


def check(path: Path, macs: float) -> onnx.ModelProto:
    """Half as wide, sound, and it runs at other sizes; the budget is kept."""
    model = onnx.load(path)
    data = feeds(model, 200, 9)
    result = shrink(path, data, width=0.5, refine=0)
    Graph.load(result.model).check(full=True)
    assert result.report.after.macs <= macs * result.report.before.macs
    for count, length in ((1, 9), (3, 5), (2, 14)):
        fed = feeds(model, count, length, 1)
        before, after = first(model, fed), first(result.model, fed)
        assert before.shape == after.shape and relative(before, after) < 0.3
    assert shrink(path, data, budget="macs=0.6", refine=0).report.after.macs <= 0.6 * result.report.before.macs
    return result.model


@pytest.mark.parametrize(("name", "dynamo"), [("bert", False), ("bert", True), ("gpt2", True), ("llama", True)])
def test_an_exported_transformer(tmp_path: Path, name: str, dynamo: bool) -> None:
    check(exported(name, tmp_path / "model.onnx", dynamo), 0.62)


@pytest.mark.parametrize("multi_head", [False, True])
def test_bert_as_onnxruntime_fuses_it(tmp_path: Path, multi_head: bool) -> None:
    """The same operators afterwards, none beside them."""
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    fusion = pytest.importorskip("onnxruntime.transformers.fusion_options")
    options = fusion.FusionOptions("bert")
    options.use_multi_head_attention = multi_head
    source = exported("bert", tmp_path / "exported.onnx", dynamo=False)
    optimized = optimizer.optimize_model(str(source), "bert", num_heads=4, hidden_size=64, opt_level=0,
                                         optimization_options=options)  # fmt: skip
    optimized.save_model_to_file(str(tmp_path / "fused.onnx"))
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert operators["MultiHeadAttention" if multi_head else "Attention"] == 2
    small = check(tmp_path / "fused.onnx", 0.51)
    after = Counter(node.op_type for node in small.graph.node)
    kinds = ("Attention", "MultiHeadAttention", "SkipLayerNormalization", "BiasGelu", "MatMul", "Add", "Split")
    assert {op: after[op] for op in kinds} == {op: operators[op] for op in kinds}
