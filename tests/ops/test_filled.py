"""One number as often as a tensor has channels gets fewer with them: what `zeros_like` and its like export as."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from builders.chains import C, Chain, K, ints, node, random
from builders.models import relative, run
from pcns_onnx import shrink


def twins(*shape: int) -> np.ndarray:
    """Weights of which the second half of the outputs is a copy of the first."""
    half = random(C // 2, *shape)
    return np.concatenate([half, half])


def net(fill: float, *middle: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """A Conv with twins, a filled tensor in the `middle`, and a Conv."""
    value = numpy_helper.from_array(np.full(1, fill, np.float32))
    made = [node("ConstantOfShape", "size", "z", value=value)]
    at = next(i for i, item in enumerate(middle) if "z" in [name.partition(".")[0] for name in item.input])
    weights = {"W0": twins(3, 3, 3), "b0": twins(), "W1": random(K, C, 3, 3), **constants}
    return Chain([*middle[:at], *made, *middle[at:]], weights).build()


CASES = {
    "zeros like it, added": net(0.0, node("Shape", "h", "size"), node("Add", "h z", "m")),
    "ones like it, in front": net(1.0, node("Shape", "h", "size"), node("Sub", "z h", "m")),
    "as many as its channels": net(
        3.0, node("Shape", "h", "all"), node("Gather", "all one", "size"), node("Reshape", "z back", "u"),
        node("Mul", "h u", "m"), one=ints(1), back=ints(1, -1, 1, 1)),
    "its channels beside one": net(
        0.5, node("Shape", "h", "all"), node("Gather", "all one", "c"), node("Concat", "n c n n", "size", axis=0),
        node("Max", "h z", "m"), one=ints(1), n=ints(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_filled_narrows_with_the_channels_it_has(name: str) -> None:
    model = CASES[name]
    x = np.random.default_rng(0).standard_normal((120, 3, 6, 6)).astype(np.float32)
    result = shrink(model, x, width=0.5, multiple=1, refine=0)
    (group,) = result.report.groups
    assert (group.width, group.kept) == (C, C // 2)
    for count in (5, 1):
        assert relative(run(model, x[:count]), run(result.model, x[:count])) < 1e-4
    onnx.checker.check_model(result.model, full_check=True)
