"""A student that was disturbed comes back to its original; what does not is not taken; and a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builders import outputs, shared
from builders import topologies as t
from builders.mlp import mlp, rows, saved
from builders.models import build
from builders.students import disturbed, ending, weights_of
from pcns_onnx import InputError, UnsupportedError, compare, heal, shrink
from pcns_onnx.cli.main import main
from pcns_onnx.planning.plan import write_plan
from pcns_onnx.progress import Progress

torch = pytest.importorskip("torch")

from pcns_onnx.distillation import schedule  # noqa: E402

T = TypeVar("T")
FAST: Mapping[str, Any] = {"threads": 1, "updates": 6000, "heal_accept": "agreement"}


def images(count: int = 80, *shape: int) -> Any:
    return np.random.default_rng(5).standard_normal((count, *shape)).astype(np.float32)


def halves() -> onnx.ModelProto:
    model = mlp()
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def embedding() -> onnx.ModelProto:
    """Rows of unit length, normalised in pieces."""
    model = ending("Mul")
    model.graph.node[-1].input.append("scores")
    model.graph.node[-1].output[0] = "squares"
    model.graph.node.extend([
        helper.make_node("ReduceSum", ["squares", "axes"], ["power"], keepdims=1),
        helper.make_node("Sqrt", ["power"], ["length"]),
        helper.make_node("Div", ["scores", "length"], ["y"]),
    ])  # fmt: skip
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    return model


def two_outputs() -> onnx.ModelProto:
    model = mlp()
    model.graph.node.append(helper.make_node("Sigmoid", ["h0"], ["gate"], name="gate"))
    model.graph.output.append(helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["N", 12]))
    return model


MODELS: Mapping[str, tuple[Callable[[], onnx.ModelProto], Any, str]] = {
    "scores": (mlp, rows(), "KL of the classes"),
    "softmax": (lambda: ending("Softmax", axis=1), rows(), "KL of the classes at temperature 4, in front"),
    "sigmoid": (lambda: ending("Sigmoid"), rows(), "KL of yes and no at temperature 4, in front"),
    "features": (lambda: ending("Tanh"), rows(), "squared error"),
    "unit rows": (embedding, rows(), "1 - cosine"),
    "two columns": (lambda: mlp(widths=(6, 12, 2)), rows(), "squared error"),
    "batch of one": (lambda: mlp(batch=1), rows(120), "KL"),
    "batch of four": (lambda: mlp(batch=4), rows(120), "KL"),
    "float16": (halves, rows(), "KL"),
    "several outputs": (two_outputs, rows(), "KL"),
    "boxes that are found": (outputs.boxes, images(100, 5), ""),
    "two tails": (outputs.early, images(200, 5), ""),
    "residual": (t.residual, images(80, 3, 6, 6), ""),
    "depthwise": (t.inverted_residual, images(80, 3, 6, 6), ""),
    "shared weights": (shared.siamese, None, ""),
}


def feeds_of(model: onnx.ModelProto, samples: Any) -> Any:
    if samples is not None and len(model.graph.input) == 1:
        return {model.graph.input[0].name: samples}
    shapes = {v.name: [d.dim_value or 160 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    rng = np.random.default_rng(2)
    return {name: rng.standard_normal((160, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_disturbed_student_comes_back(kind: str) -> None:
    build, samples, loss = MODELS[kind]
    model = build()
    small = disturbed(model)
    data = feeds_of(model, samples)
    result = heal(small, model, data, **{**FAST, "updates": 2000 if " one" in kind or "found" in kind else 6000})
    healing = result.report.healing
    assert healing is not None and healing.verdict.accepted, healing
    assert any(text.startswith(loss) for text in healing.losses.values())
    assert healing.verdict.loss_after < 0.7 * healing.verdict.loss_before
    assert result.report.agreement.error < 0.8 * compare(model, small, data, threads=1).agreement.error
    assert [n.SerializeToString() for n in result.model.graph.node] == [n.SerializeToString() for n in small.graph.node]
    assert {name: (v.dtype, v.shape) for name, v in weights_of(result.model).items()} == {
        name: (v.dtype, v.shape) for name, v in weights_of(small).items()
    }
    onnx.checker.check_model(result.model, full_check=True)


# -- what is promised --------------------------------------------------------------------------


class Stopped(Progress):
    """A user who presses Ctrl-C after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def track(self, items: Iterable[T], title: str, total: int | None) -> Iterator[T]:
        for done, item in enumerate(super().track(items, title, total), 1):
            yield item
            if title == "heal" and done == self._after:
                raise KeyboardInterrupt


def files(folder: Path, **choices: Any) -> tuple[Path, Path, Path]:
    """An original, its disturbed student and unlabelled samples."""
    model = choices.pop("model", mlp)()
    onnx.save(model, folder / "model.onnx")
    onnx.save(disturbed(model), folder / "small.onnx")
    np.savez(folder / "data.npz", x=rows())
    return folder / "small.onnx", folder / "model.onnx", folder / "data.npz"


def test_the_same_bytes_again_and_others_with_another_seed(tmp_path: Path) -> None:
    sources = files(tmp_path)
    a, b, other = (tmp_path / f"{name}.onnx" for name in "abc")
    heal(*sources, a, **FAST)
    torch.manual_seed(12345)
    heal(*sources, b, **FAST)
    heal(*sources, other, **FAST, seed=1)
    assert a.read_bytes() == b.read_bytes() != other.read_bytes()


def test_what_pytorch_was_set_to_is_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    heal(*files(tmp_path), **FAST)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("after", [1, 57, 150])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(after: int, tmp_path: Path) -> None:
    sources, out, whole = files(tmp_path), tmp_path / "out.onnx", tmp_path / "whole.onnx"
    heal(*sources, whole, **FAST)
    with pytest.raises(KeyboardInterrupt):
        heal(*sources, out, progress=Stopped(after), **FAST)
    left = tmp_path / "out.onnx.healing"
    assert not out.exists() and left.exists() is (after > 30)
    heal(*sources, out, resume=True, **FAST)
    assert out.read_bytes() == whole.read_bytes() and not left.exists()


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    sources, out = files(tmp_path), tmp_path / "out.onnx"
    with pytest.raises(KeyboardInterrupt) as early:
        heal(*sources, out, progress=Stopped(5), **FAST)
    assert not hasattr(early.value, "__notes__")  # there is no checkpoint yet
    with pytest.raises(KeyboardInterrupt) as late:
        heal(*sources, out, progress=Stopped(100), **FAST)
    note = f"'{out}.healing' is left: the same command with --resume goes on from there"
    assert late.value.__notes__ == [note]
    with pytest.raises(KeyboardInterrupt) as other:  # what an earlier run has left is not its own
        heal(*sources, out, progress=Stopped(5), **FAST)
    assert not hasattr(other.value, "__notes__")
    with pytest.raises(KeyboardInterrupt) as again:
        heal(*sources, out, resume=True, progress=Stopped(1), **FAST)
    assert again.value.__notes__ == [note]


def test_the_command_says_it_in_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small, model, data = files(tmp_path)

    @contextmanager
    def stopped(**choices: Any) -> Iterator[Progress]:
        yield Stopped(100)

    monkeypatch.setattr("pcns_onnx.cli.console.bars", stopped)
    out = tmp_path / "out.onnx"
    words = ["heal", str(small), "--original", str(model), "--data", str(data), "-o", str(out), "--threads", "1"]
    assert main([*words, "--updates", "6000"]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == [
        f"'{out}.healing' is left: the same command with --resume goes on from there",
        "pcns-onnx: error: interrupted",
    ]


@pytest.mark.parametrize(
    "error", [KeyError("ours"), ValueError("ours"), AssertionError("ours"), AttributeError("ours"), InputError("ours")]
)
def test_faults_of_ours_are_not_said_to_be_those_of_pytorch(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr("pcns_onnx.distillation.healing.augmentation_of", failing)
    with pytest.raises(type(error), match="ours"):
        heal(disturbed(mlp()), mlp(), {"x": rows()}, **FAST)
    report = shrink(mlp(), {"x": rows()}, width=0.5, heal=64, refine=0, threads=1).report
    assert any("not healed" in warning and "ours" in warning for warning in report.warnings)
    assert not any("PyTorch cannot train" in warning for warning in report.warnings)


def test_what_pytorch_raises_is_said_to_be_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        return torch.zeros(2) @ torch.zeros(3)

    monkeypatch.setattr("pcns_onnx.distillation.healing.augmentation_of", failing)
    with pytest.raises(UnsupportedError, match="PyTorch cannot train this model: "):
        heal(disturbed(mlp()), mlp(), {"x": rows()}, **FAST)


def test_labels_that_are_no_classes_are_said_and_decide_nothing() -> None:
    x = rows()
    labels = np.stack([np.argmax(x[:, :3], axis=1), np.arange(len(x)) % 3], axis=1)
    result = heal(disturbed(mlp()), mlp(), {"x": x, "labels": labels}, **{**FAST, "heal_accept": "auto"})
    healing = result.report.healing
    assert healing is not None and healing.verdict.by == "agreement"
    assert len([text for text in result.report.warnings if "labels of shape (N, 2) are not used" in text]) == 1
    with pytest.raises(InputError, match="--max-drop needs labels, one per sample"):
        heal(disturbed(mlp()), mlp(), {"x": x, "labels": labels}, max_drop=1, **FAST)
    with pytest.raises(InputError, match="--max-drop needs labels, one per sample"):
        shrink(mlp(), {"x": x, "labels": labels}, max_drop=1, width=0.5, threads=1)
    compared = compare(mlp(), disturbed(mlp()), {"x": x, "labels": labels}, threads=1)
    assert any("labels of shape (N, 2) are not used" in text for text in compared.warnings)


def test_few_samples_are_shown_no_more_often_than_helps() -> None:
    healing = heal(disturbed(mlp()), mlp(), {"x": rows(60)}, threads=1, updates=0).report.healing
    assert healing is not None and healing.updates <= schedule.TURNS * healing.learnt + healing.batch


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, model, data = files(tmp_path)
    out = tmp_path / "out.onnx"
    words = ["heal", str(small), "--original", str(model), "--data", str(data), "-o", str(out), "--threads", "1"]
    with pytest.raises(KeyboardInterrupt):
        heal(small, model, data, out, progress=Stopped(100), **FAST)
    assert main([*words, "--updates", "6000", "--resume", "--seed", "4"]) == 2
    assert "is of another run" in capsys.readouterr().err
    (tmp_path / "out.onnx.healing").write_bytes(b"nothing")
    assert main([*words, "--updates", "6000", "--resume"]) == 2
    error = capsys.readouterr().err
    assert "is no checkpoint" in error and error.count("\n") == 1 and not out.exists()


def test_what_is_not_accepted_comes_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, model, data = files(tmp_path)
    (tmp_path / "small.onnx").write_bytes(model.read_bytes())  # nothing can get better
    out = tmp_path / "out.onnx"
    monkeypatch.setattr(schedule, "RATE", 1e3)
    report = heal(small, model, data, out, **FAST).report
    assert report.healing is not None and not report.healing.verdict.accepted
    assert out.read_bytes() == small.read_bytes()
    assert any("healing was not accepted" in warning for warning in report.warnings)
    assert not (tmp_path / "out.onnx.healing").exists()


def test_a_rate_that_destroys_is_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "RATE", 20.0)
    healing = heal(*files(tmp_path), **FAST).report.healing
    assert healing is not None and healing.retries >= 1 and healing.verdict.accepted
    assert healing.verdict.loss_after < healing.verdict.loss_before
    assert healing.looks[0].loss is None or healing.looks[0].loss > 3 * healing.verdict.loss_before


def test_frozen_weights_stay(tmp_path: Path) -> None:
    small, model, data = files(tmp_path)
    result = heal(small, model, data, **FAST, freeze=["g0", "b1"])
    before, after = weights_of(onnx.load(small)), weights_of(result.model)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {"w0", "b0", "b1"}
    assert result.report.healing is not None and set(result.report.healing.frozen) == same
    with pytest.raises(InputError, match="--freeze 'nothing' matches no layer"):
        heal(small, model, data, **FAST, freeze="nothing")
    with pytest.raises(InputError, match="no weight to train"):
        heal(small, model, data, **FAST, freeze="*")


def test_labels_decide_where_there_are_any(tmp_path: Path) -> None:
    model, data = saved(tmp_path)
    small = disturbed(mlp())
    by_labels = heal(small, model, data, **{**FAST, "heal_accept": "auto"}).report.healing
    assert by_labels is not None and by_labels.verdict.by == "labels"
    by_itself = heal(small, model, {"x": rows()}, **{**FAST, "heal_accept": "auto"}).report.healing
    assert by_itself is not None and by_itself.verdict.by == "agreement"
    metric = heal(small, model, data, **{**FAST, "heal_accept": "auto"}, metric=lambda _, labels: 1.0)
    assert metric.report.healing is not None and metric.report.healing.verdict.by == "metric"


def test_gates_look_at_the_healed_model(tmp_path: Path) -> None:
    small, model, data = files(tmp_path)
    words = ["heal", str(small), "--original", str(model), "--data", str(data), "--threads", "1", "--updates", "6000"]
    out = tmp_path / "out.onnx"
    report = tmp_path / "report.json"
    assert main([*words, "-o", str(out), "--max-error", "1e-6", "--report", str(report)]) == 4
    assert not out.exists() and report.exists()
    assert main([*words, "-o", str(out), "--max-error", "0.3"]) == 0 and out.exists()


def test_a_shrunk_model_heals_inside_shrink(tmp_path: Path) -> None:
    data = {"x": rows(600)}
    healed = shrink(mlp(), data, width=0.4, refine=0, threads=1, heal=6000)
    assert healed.report.healing is not None and healed.report.healing.verdict.accepted
    verdict = healed.report.healing.verdict
    assert verdict.loss_after < verdict.loss_before
    write_plan(healed.plan, tmp_path / "plan.json")
    again = shrink(mlp(), data, plan=tmp_path / "plan.json", refine=0, threads=1, heal=6000)
    assert again.plan.groups == healed.plan.groups
    assert weights_of(again.model).keys() == weights_of(healed.model).keys()
    same = shrink(mlp(), data, width=0.4, refine=0, threads=1, heal=6000)
    assert same.model.SerializeToString() == healed.model.SerializeToString()


def shifting() -> onnx.ModelProto:
    """An operator on bits beside the scores, which PyTorch is not told of."""
    model = ending("Add")
    model.graph.node[-1].input.append("nothing")
    model.graph.node.extend([
        helper.make_node("Cast", ["scores"], ["u"], to=TensorProto.UINT8),
        helper.make_node("BitShift", ["u", "one"], ["v"], name="bits", direction="LEFT"),
        helper.make_node("Cast", ["v"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "zero"], ["nothing"]),
    ])  # fmt: skip
    end = model.graph.node[-5]
    model.graph.node.append(end)
    model.graph.node.remove(end)
    constants: dict[str, Any] = {"one": np.array(1, np.uint8), "zero": np.array(0, np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model


def test_what_cannot_train_leaves_the_shrunk_model() -> None:
    model, data = shifting(), {"x": rows(200)}
    healed = shrink(model, data, width=0.5, refine=0, threads=1, heal=1000)
    assert healed.report.healing is None
    assert any(text.startswith("not healed") and "BitShift 'bits'" in text for text in healed.report.warnings)
    onnx.checker.check_model(healed.model, full_check=True)
    with pytest.raises(UnsupportedError, match="BitShift 'bits'"):
        heal(healed.model, model, data, **FAST)


def test_what_was_learnt_from_proves_nothing(tmp_path: Path) -> None:
    small, model, data = files(tmp_path)
    out = tmp_path / "out.onnx"
    report = heal(small, model, data, out, **FAST, eval=data).report
    assert any("among those that healing has seen" in warning for warning in report.warnings)
    assert any("made on" in warning for warning in compare(model, out, data, threads=1).warnings)


BAD: Mapping[str, tuple[list[str], str]] = {
    "updates": (["--updates", "-1"], "--updates -1 is too small"),
    "loss": (["--heal-loss", "l1"], "--heal-loss l1 is not understood"),
    "mirror": (["--heal-augment", "mirror"], "--heal-augment mirror needs images"),
    "shift": (["--heal-augment", "shift"], "--heal-augment shift needs images"),
    "one sample": (["--samples", "1"], "give more data"),
    "freeze": (["--freeze", "w9"], "--freeze 'w9' matches no layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = BAD[case]
    small, model, data = files(tmp_path)
    out = tmp_path / "out.onnx"
    code = main(["heal", str(small), "--original", str(model), "--data", str(data), "-o", str(out), "-q", *words])
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("case", ["small model", "report", "folder"])
def test_a_checkpoint_takes_no_other_files_place(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, model, data = files(tmp_path)
    out, beside = tmp_path / "out.onnx", tmp_path / "out.onnx.healing"
    if case == "small model":
        beside.write_bytes(small.read_bytes())
        small = beside
    elif case == "folder":
        beside.mkdir()
    before = small.read_bytes()
    words = ["heal", str(small), "--original", str(model), "--data", str(data), "-o", str(out), "--updates", "64"]
    code = main([*words, *(["--report", str(beside)] if case == "report" else [])])
    assert code == 2 and f"cannot write '{beside}'" in capsys.readouterr().err
    assert small.read_bytes() == before and not out.exists()


def test_a_failed_gate_says_that_the_training_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, model, data = files(tmp_path)
    out, beside = tmp_path / "out.onnx", tmp_path / "out.onnx.healing"
    words = ["heal", str(small), "--original", str(model), "--data", str(data), "-o", str(out), "--updates", "640"]
    assert main([*words, "--max-error", "1e-9"]) == 4
    assert f"'{beside}' is left" in capsys.readouterr().err and not out.exists() and beside.exists()
    assert main([*words, "--resume", "--max-error", "9"]) == 0
    assert out.exists() and not beside.exists()


@pytest.mark.parametrize(("batch", "model"), [(5000, mlp()), (5, mlp(batch=4)), (6, mlp(batch=4))])
def test_the_samples_that_are_said_to_be_shown_were_shown(batch: int, model: onnx.ModelProto) -> None:
    result = heal(disturbed(model), model, {"x": rows(120)}, threads=1, updates=240, heal_batch=batch)
    told = result.report.healing
    assert told is not None and told.updates == told.steps * told.batch
    assert told.batch == {5000: told.learnt, 5: 4, 6: 4}[batch]


@pytest.mark.parametrize("end", ["", "Softmax"])
def test_samples_that_are_all_the_same_teach_nothing(end: str) -> None:
    model = ending(end, axis=1) if end else mlp()
    with pytest.raises(InputError, match="do not vary on the samples kept aside"):
        heal(disturbed(model), model, {"x": np.repeat(rows(1), 200, axis=0)}, threads=1, updates=64)


def test_models_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    other = mlp()
    other.graph.output[0].name = other.graph.node[-1].output[0] = "z"
    with pytest.raises(InputError, match="different outputs"):
        heal(other, mlp(), {"x": rows()}, **FAST)
    wide = mlp(widths=(6, 12, 8, 4))
    with pytest.raises(InputError, match=r"output 'y' has shape \(6\d, 4\) in the small model and \(6\d, 3\)"):
        heal(wide, mlp(), {"x": rows()}, **FAST)


def masked() -> onnx.ModelProto:
    """Tokens of a sequence; what stands behind its end means nothing."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 6)).astype(np.float32), "v": rng.standard_normal((6, 5)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["b"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["u"]),
        helper.make_node("Sub", ["u", "one"], ["behind"]),
        helper.make_node("Mul", ["behind", "noise"], ["n"]),
        helper.make_node("Add", ["b", "n"], ["y"]),
    ]
    weights |= {"one": np.float32(1.0), "noise": np.float32(50.0)}  # type: ignore[dict-item]
    model = build(nodes[:3], weights, ["N", 7, 4], output="b")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["N", 7]))
    model.graph.output[0].name = "y"
    onnx.checker.check_model(model)
    return model


def test_masked_places_count_for_nothing() -> None:
    rng, model = np.random.default_rng(1), masked()
    lengths = rng.integers(2, 8, 200)
    mask = (np.arange(7) < lengths[:, None]).astype(np.int64)
    data = {"x": rng.standard_normal((200, 7, 4)).astype(np.float32), "attention_mask": mask}
    healing = heal(disturbed(model), model, data, **FAST).report.healing
    assert healing is not None and healing.verdict.loss_after < 0.5 * healing.verdict.loss_before


def test_a_curve_says_what_more_samples_would_bring(tmp_path: Path) -> None:
    sources, a, b = files(tmp_path), tmp_path / "a.onnx", tmp_path / "b.onnx"
    choices = {**FAST, "updates": 2000}
    healing = heal(*sources, a, **choices, heal_curve=True).report.healing
    heal(*sources, b, **choices)
    assert healing is not None and a.read_bytes() == b.read_bytes()
    assert [point.samples for point in healing.curve] == [50, 101, 203, 406, 812]
    assert [point.predicted for point in healing.curve] == [False] * 3 + [True] * 2
    losses = [point.loss for point in healing.curve]
    assert losses[2] == healing.verdict.loss_after and losses == sorted(losses, reverse=True)
