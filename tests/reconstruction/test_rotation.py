"""Attention: heads lose inner dimensions by PCA or whole, the function at full width stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from builders.attention import RANK, SPELLED, Attention, D, E, H, S, normalised, rotary, scaled_by_shape, separate
from builders.models import Array, relative, run
from pcns_onnx import NothingToShrinkError, inspect, shrink
from pcns_onnx.calibration.calibration import Calibration
from pcns_onnx.calibration.group_inputs import read_groups
from pcns_onnx.data.dataset import open_data
from pcns_onnx.dependency.dependency_graph import build_dependency_graph
from pcns_onnx.dependency.origins import Origins
from pcns_onnx.graph import Graph
from pcns_onnx.progress import Progress
from pcns_onnx.reconstruction.rotation import rotations
from pcns_onnx.rewrite.change_basis import BasisChange, change_basis
from pcns_onnx.rewrite.constant_shapes import fix_sizes
from pcns_onnx.rewrite.explicit_bias import explicit_biases
from pcns_onnx.runtime.engine import Engine
from pcns_onnx.runtime.samples import Samples
from robustness.planted import Planted
from robustness.planted_attention import EINSUM, REPEATS, attend

SPELLINGS = pytest.mark.parametrize("name", SPELLED)


def samples(count: int = 120, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, S, E)).astype(np.float32)


def sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in model.graph.initializer}


def shrunk(model: onnx.ModelProto, **choices: Any) -> onnx.ModelProto:
    """The shrunk model, which loads and checks."""
    result = shrink(model, samples(), multiple=1, **choices, refine=0).model
    onnx.checker.check_model(result, full_check=True)
    return result


@SPELLINGS
def test_dimensions_that_no_head_uses_go_without_a_trace(name: str) -> None:
    model = SPELLED[name]()
    small = shrunk(model, width=RANK / D)
    x = samples(seed=1)
    assert relative(run(model, x), run(small, x)) < 2e-3
    assert sizes(small)["o.w"] == (H * RANK, 5)
    made = [shape for key, shape in sizes(small).items() if key in ("q.w", "k.w", "v.w", "qkv.w")]
    assert sum(shape[1] for shape in made) == 3 * H * RANK


@SPELLINGS
def test_a_change_of_basis_changes_nothing_else(name: str) -> None:
    graph = explicit_biases(fix_sizes(Graph.load(SPELLED[name](planted=False))))[0]
    dependencies = build_dependency_graph(graph, {"x": (1, S, E)})
    data = Samples(open_data(samples(), graph.inputs), 16)
    calibration = Calibration(Engine(), data, 0, Progress())
    origins = Origins(graph, dependencies)
    basis_changes: list[BasisChange] = []
    for read in read_groups(calibration, graph, dependencies, dependencies.shrinkable):
        found, following = rotations(graph, dependencies, read, origins)
        assert found
        assert [r.output_variance() for r in following.all] == pytest.approx(
            [r.output_variance() for r in read.all], rel=1e-3
        )
        basis_changes += found
    other, patch = change_basis(graph, dependencies, basis_changes)
    x = samples(seed=2)
    assert patch
    assert relative(run(graph.proto, x), run(other.proto, x)) < 1e-4


def weight(model: onnx.ModelProto, name: str) -> Array:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def test_rotating_beats_choosing() -> None:
    """With nothing planted, directions carry more than dimensions."""
    model, x = separate(planted=False), samples(seed=3)
    by_direction = relative(run(model, x), run(shrunk(model, width=0.5), x))
    kept: NDArray[np.bool_] = np.tile([True, False], H * D // 2)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for tensor in plain.graph.initializer:
        if tensor.name in ("q.w", "k.w", "v.w"):
            tensor.CopyFrom(numpy_helper.from_array(weight(model, tensor.name) * kept, tensor.name))
    assert by_direction < relative(run(model, x), run(plain, x))


def test_the_scale_stays_what_it_was() -> None:
    """1 / sqrt(d) is computed from the width of q: the number must not follow it."""
    model, x = scaled_by_shape(planted=False), samples(seed=3)
    small = shrunk(model, width=0.5)
    assert sizes(small)["q.w"] == (E, H * D // 2)
    same = relative(run(separate(planted=False), x), run(shrunk(separate(planted=False), width=0.5), x))
    assert relative(run(model, x), run(small, x)) == pytest.approx(same, rel=1e-3)


@pytest.mark.parametrize("dead", range(H))
def test_whole_heads_go_where_they_are_asked_for(dead: int) -> None:
    model = separate(planted=False)
    for tensor in model.graph.initializer:
        if tensor.name == "o.w":
            value = numpy_helper.to_array(tensor).copy()
            value[dead * D : (dead + 1) * D] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, "o.w"))
    small = shrunk(model, width=(H - 1) / H, heads="whole")
    x = samples(seed=4)
    assert relative(run(model, x), run(small, x)) < 1e-4
    assert sizes(small)["q.w"] == (E, (H - 1) * D)
    stays = np.delete(weight(model, "q.w").reshape(E, H, D), dead, axis=1).reshape(E, -1)
    assert np.array_equal(weight(small, "q.w"), stays)


def fewer_heads(form: str, kv: int, seed: int) -> tuple[onnx.ModelProto, Array, Array]:
    """Attention with `kv` heads of K and V, each for two of Q, half of whose dimensions are superfluous; samples."""
    net = Planted(np.random.default_rng(seed), "attention", (5, 12))
    model = net.model(attend(net, form, kv, 2, 6))
    data, fresh = (net.rng.standard_normal((count, *net.shape)).astype(np.float32) for count in (60, 8))
    return model, data, fresh


@pytest.mark.parametrize("kv", [1, 2])
@pytest.mark.parametrize("form", [*REPEATS, EINSUM])
def test_heads_of_k_and_v_that_several_of_q_share_have_one_basis(form: str, kv: int) -> None:
    model, data, fresh = fewer_heads(form, kv, seed=kv)
    small = shrink(model, data, multiple=1, width=0.5, refine=0).model
    assert relative(run(model, fresh), run(small, fresh)) < 1e-4
    widths = [sorted(tuple(t.dims) for t in m.graph.initializer if len(t.dims) == 2) for m in (model, small)]
    assert sum(np.prod(shape) for shape in widths[1]) < 0.7 * sum(np.prod(shape) for shape in widths[0])


def test_shared_heads_count_for_all_that_share_them() -> None:
    """The basis of K is that of all its heads of Q: what one of them alone uses is not lost."""
    s = Attention(planted=False)
    q, k, v = s.project("x", "q", 2), s.project("x", "k", 1), s.project("x", "v", 1)
    s.weights["q.w"][:, :D] *= [1, 0, 1, 0]  # the first head uses half of K's dimensions
    s.weights["q.w"][:, D:] *= [1, 0, 0, 1]  # the second one of these, and another
    q = s.split(q, "qh", [0, 2, 1, 3], (0, 0, 2, D))
    k, v = s.split(k, "kh", [0, 2, 3, 1], (0, 0, 1, D)), s.split(v, "vh", [0, 2, 1, 3], (0, 0, 1, D))
    model = s.done(s.attend(q, k, v), 2 * D)
    result = shrink(model, samples(), multiple=1, width=3 / 4, exclude="v", refine=0)
    x = samples(8, seed=1)
    assert relative(run(model, x), run(result.model, x)) < 1e-4
    assert result.plan.groups["q"].width == 3
    narrower = shrink(model, samples(), multiple=1, width=2 / 4, exclude="v", refine=0)
    assert relative(run(model, x), run(narrower.model, x)) > 1e-2


def test_a_weak_direction_is_not_taken_for_one_that_is_not_there() -> None:
    model, data, fresh = fewer_heads("gather", 2, seed=5)
    for tensor in model.graph.initializer:
        if tensor.dims == [12, 24]:  # Q: a fourth of a head's dimensions is a thousand times smaller
            value = numpy_helper.to_array(tensor).copy()
            value[:, ::3] *= 1e-3
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    small = shrink(model, data, multiple=1, width=0.5, refine=0).model
    assert relative(run(model, fresh), run(small, fresh)) < 1e-4


def test_a_norm_of_q_and_k_keeps_their_dimensions() -> None:
    groups = {g.name: g.reason for g in inspect(normalised()).groups}
    assert groups["v"] is None
    assert "normalises over several channels" in str(groups["q"])


@pytest.mark.parametrize("kv", [H, 1])
def test_a_rotary_embedding_with_stored_angles_loses_pairs(kv: int) -> None:
    """A pair is turned by an angle of its own: pairs can go, whole, and no basis can be changed."""
    model = rotary(kv)
    dependencies = build_dependency_graph(explicit_biases(fix_sizes(Graph.load(model)))[0])
    q = dependencies.writes(dependencies.layer("q"))
    assert (q.mixable, q.frozen, q.width, q.unit) == (False, None, D // 2, 2 * H)
    for tensor in model.graph.initializer:
        if tensor.name in ("q.w", "k.w"):  # the second pair of every head is dead
            alive = np.tile([True, False], tensor.dims[1] // 2)
            tensor.CopyFrom(numpy_helper.from_array(weight(model, tensor.name) * alive, tensor.name))
    small = shrunk(model, width=0.5, exclude="v")
    x = samples(seed=5)
    assert relative(run(model, x), run(small, x)) < 1e-4


def test_rotary_angles_that_are_computed_keep_the_dimensions() -> None:
    model = rotary()
    for table in ("cos", "sin"):
        tensor = next(t for t in model.graph.initializer if t.name == table)
        tensor.name = f"{table}.stored"
        model.graph.node.insert(0, onnx.helper.make_node("RandomNormalLike", [tensor.name], [table]))
    reasons = {g.name: g.reason for g in inspect(model).groups}
    assert "joins its channels with a tensor's that must stay" in str(reasons["q"])
    assert reasons["v"] is None


def test_softmax_over_the_channels_keeps_them() -> None:
    s = Attention()
    s.project("x", "q", 1)
    s.keep("back", np.asarray(np.random.default_rng(2).standard_normal((D, 5)), np.float32))
    s.op("Softmax", "q", "p", axis=-1)
    s.op("MatMul", "p back", "y")
    with pytest.raises(NothingToShrinkError) as caught:
        shrink(s.model(), samples(), width=0.5, refine=0)
    assert "normalises over several channels" in str(caught.value.reasons)
