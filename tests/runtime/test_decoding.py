"""A decoder goes on by its own tokens: what each step is fed with is what a loop around the model would feed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders import states
from builders.models import Array
from pcns_onnx import InputError, shrink
from pcns_onnx.data.dataset import Feeding, open_data
from pcns_onnx.graph import Graph
from pcns_onnx.runtime.decoding import empty_caches, with_decoding
from pcns_onnx.runtime.engine import Engine
from robustness.transformers import row

CARRIES = {"past": "present", "count": "counted"}
WIDTH, TOKENS = 4, 8


def decoder(cache: bool = True) -> onnx.ModelProto:
    """Logits from a token, its position and all that the mask shows of a cache; a state that counts besides."""
    rng, node = np.random.default_rng(0), helper.make_node
    weights: dict[str, Any] = {
        "table": rng.standard_normal((TOKENS, WIDTH)),
        "places": rng.standard_normal((16, WIDTH)),
        "V": rng.standard_normal((WIDTH, TOKENS)),
    }
    stored = {name: value.astype(np.float32) for name, value in weights.items()}
    stored |= {"one": np.array([1]), "last": np.array([1, 3]), "two": np.array([2])}
    nodes = [
        node("Gather", ["table", "input_ids"], ["token"]),
        node("Gather", ["places", "position_ids"], ["place"]),
        node("Add", ["token", "place"], ["x"]),
        node("Unsqueeze", ["x", "one"], ["k"]),
        node("Concat", ["past", "k"], ["present"], axis=2),
        node("Cast", ["attention_mask"], ["shown"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["shown", "last"], ["weights"]),
        node("Mul", ["present", "weights"], ["visible"]),
        node("ReduceSum", ["visible", "two"], ["sums"], keepdims=0),
        node("Add", ["x", "sums"], ["y"]),
        node("MatMul", ["y", "V"], ["logits"], name="head"),
        node("ReduceSum", ["sums", "one"], ["new"], keepdims=0),
        node("Add", ["count", "new"], ["counted"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [
        value("input_ids", TensorProto.INT64, ["N", "S"]),
        value("attention_mask", TensorProto.INT64, ["N", "T"]),
        value("position_ids", TensorProto.INT64, ["N", "S"]),
        value("past", TensorProto.FLOAT, ["N", 1, "P", WIDTH]),
        value("count", TensorProto.FLOAT, ["N", WIDTH]),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, ["N", "S", TOKENS]),
        value("present", TensorProto.FLOAT, ["N", 1, "T", WIDTH]),
        value("counted", TensorProto.FLOAT, ["N", WIDTH]),
    ]
    graph = helper.make_graph(
        nodes, "decoder", inputs, outputs, [numpy_helper.from_array(array, name) for name, array in stored.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def prompts() -> dict[str, Array]:
    """Three of three tokens; the last has padding behind it."""
    ids = np.random.default_rng(3).integers(0, TOKENS, (3, 3))
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": np.tile(np.arange(3), (3, 1))}


def looped(model: onnx.ModelProto, prompt: dict[str, Array], tokens: int) -> list[dict[str, Array]]:
    run, steps = states.session(model), list[dict[str, Array]]()
    feeds = {**prompt, "past": np.zeros((1, 1, 0, WIDTH), np.float32), "count": np.zeros((1, WIDTH), np.float32)}
    at = int(prompt["attention_mask"].sum()) - 1
    position = at
    for _ in range(tokens + 1):
        steps.append(feeds)
        logits, present, counted = run.run(None, feeds)
        position += 1
        mask = np.concatenate([feeds["attention_mask"], [[1]]], axis=1)
        feeds = {
            "input_ids": logits[:, at].argmax(axis=-1)[:, None],
            "attention_mask": mask,
            "position_ids": np.array([[position]]),
            "past": present,
            "count": counted,
        }
        at = 0
    return steps


@pytest.mark.parametrize("batch", [1, 4])
def test_every_step_is_fed_with_what_a_loop_feeds(batch: int) -> None:
    model = decoder()
    graph = Graph.load(model)
    feeding = Feeding(graph.layout, empty_caches(graph, CARRIES))
    dataset = open_data(prompts(), graph.inputs, feeding=feeding)
    decoded = with_decoding(dataset, Engine(), graph, CARRIES, 4)
    assert decoded.count == 15
    for _ in range(2):  # the same in every pass
        steps = [piece.rows(slice(at, at + 1)).feeds for piece in decoded.batches(batch) for at in range(piece.size)]
        expected = [
            step for at in range(3) for step in looped(model, {k: v[at : at + 1] for k, v in prompts().items()}, 4)
        ]
        assert len(steps) == len(expected)
        for step, other in zip(steps, expected, strict=True):
            assert step.keys() == other.keys()
            assert all(np.array_equal(step[name], other[name]) for name in step)


@pytest.mark.parametrize("carry", ["present.*=past.*", ()])
def test_moments_see_what_decoding_sees(carry: Any) -> None:
    model, _ = row("GPT-2 with a cache", "plain", layers=1, unit="dims")
    prompts = {"input_ids": np.random.default_rng(2).integers(0, 40, (30, 4))}
    result = shrink(model, prompts, width=0.5, threads=1, refine=0, decode=5, carry=carry, caches="narrow")
    assert result.report.agreement.samples == 18  # a tenth of 30 prompts with five tokens each
    tokens = np.random.default_rng(0).integers(0, 40, (2, 10))
    a, b = (states.decoded(m, tokens, 4) for m in (model, result.model))
    assert np.abs(a - b).max() / a.std() < 1e-4


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({}, "--decode finds no cache that an output gives back: name it with --carry OUTPUT=INPUT"),
        ({"carry": "hN=h"}, "--decode goes on by the model's own tokens, and it has no one input of tokens"),
        ({"decode": 0}, "--decode 0 is too small"),
    ],
)
def test_what_is_no_decoder_is_refused(choices: dict[str, Any], line: str) -> None:
    model = states.streaming("GRU")
    with pytest.raises(InputError, match=line):
        shrink(model, [{"x": np.ones((4, 1, 5), np.float32)}] * 20, width=0.5, threads=1, **{"decode": 3, **choices})
