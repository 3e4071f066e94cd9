"""Whatever is wrong with the input: exit code 2, one clear line on stderr, and no file touched."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from builders.models import build
from pcns_onnx import InputError, UnsupportedError, inspect, shrink
from pcns_onnx.api.options import Options
from pcns_onnx.cli import main as cli
from pcns_onnx.graph import Graph
from pcns_onnx.planning.plan import fingerprint
from pcns_onnx.runtime.engine import choose_engine

Array = np.ndarray[Any, np.dtype[Any]]


def mlp(seed: int = 0, *, outputs: int = 3, poison: float | None = None, custom: bool = False) -> ModelProto:
    """x (N, 4) -> first (8, Relu) -> last, with one weight poisoned or an unknown operator between."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.standard_normal((4, 8)).astype(np.float32),
        "w2": rng.standard_normal((8, outputs)).astype(np.float32),
        "b2": np.zeros(outputs, np.float32),
    }
    if poison is not None:
        weights["w1"][1, 2] = poison
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="last"),
    ]
    if not custom:
        return build(nodes, weights, ["N", 4])
    nodes[1] = helper.make_node("Squash", ["h"], ["a"], name="act", domain="acme.corp")
    model = build(nodes[:1], {"w1": weights["w1"]}, ["N", 4], output="h")
    model.opset_import.append(helper.make_opsetid("acme.corp", 1))
    model.graph.node.extend(nodes[1:])
    model.graph.initializer.extend(numpy_helper.from_array(weights[n], n) for n in ("w2", "b2"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs]))
    return model


def text_output() -> ModelProto:
    """A model whose file parses, but whose graph the checker refuses."""
    model = mlp()
    model.graph.node[2].input[0] = "nowhere"
    return model


def images() -> ModelProto:
    """x (N, 3, 4, 4) float -> Conv -> Relu -> Conv."""
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.standard_normal(s).astype(np.float32) for i, s in ((1, (16, 3, 3, 3)), (2, (2, 16, 2, 2)))}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("Conv", ["a", "w2"], ["y"], name="last"),
    ]
    return build(nodes, weights, ["N", 3, 4, 4])


def constant_weight(poison: float) -> ModelProto:
    """The same network with its first weight in a Constant node."""
    model = mlp(poison=poison)
    first = model.graph.initializer[0]
    node = NodeProto(op_type="Constant", output=[first.name], name="stored")
    node.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR, t=first))
    del model.graph.initializer[0]
    model.graph.node.insert(0, node)
    return model


def plan(**changes: Any) -> dict[str, Any]:
    """A valid plan for `mlp()`, changed."""
    entry = {"width": 4, "of": 8, "error": 0.1, "keep": [0, 1, 2, 3]}
    fields = {"schema": 1, "model": fingerprint(Graph(mlp())), "method": "obs", "groups": {"first": entry}}
    group = {key: value for key, value in changes.items() if key in entry or key == "spare"}
    fields["groups"] = {"first": entry | group}
    return fields | {key: value for key, value in changes.items() if key not in group}


def write_models(folder: Path) -> None:
    whole = mlp().SerializeToString()
    (folder / "model.onnx").write_bytes(whole)
    (folder / "link.onnx").symlink_to("model.onnx")
    (folder / "text.onnx").write_text("this is not a model\n")
    (folder / "model.json").write_text("{}")
    (folder / "model.textproto").write_text("ir_version: {")
    (folder / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)))
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.onnx").mkdir()
    models = {
        "other": mlp(1),
        "wider": mlp(outputs=5),
        "images": images(),
        "invalid": text_output(),
        "nan": mlp(poison=float("nan")),
        "inf": mlp(poison=float("inf")),
        "constant-nan": constant_weight(float("nan")),
        "custom": mlp(custom=True),
        "no-inputs": ModelProto(ir_version=8),
        "renamed": mlp(),
        "damaged": mlp(),
    }
    models["renamed"].graph.output[0].name = models["renamed"].graph.node[2].output[0] = "z"
    models["damaged"].graph.initializer[0].raw_data = b"1234"
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    for name in ("external", "short"):
        onnx.save(mlp(), folder / f"{name}.onnx", save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    (folder / "external.data").unlink()
    (folder / "short.data").write_bytes(b"12")


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 4)).astype(np.float32)
    labels = rng.integers(0, 3, 40)
    holes = {"nan": float("nan"), "inf": float("inf")}
    for name, hole in holes.items():
        bad = x.copy()
        bad[7, 1] = hole
        np.savez(folder / f"{name}.npz", x=bad)
    np.savez(folder / "data.npz", x=x, labels=labels)
    np.savez(folder / "unlabelled.npz", x=x)
    np.savez(folder / "wrong-name.npz", z=x)
    np.savez(folder / "wrong-shape.npz", x=x[:, :3])
    np.savez(folder / "wrong-dtype.npz", x=np.arange(160).reshape(40, 4))
    np.savez(folder / "float-labels.npz", x=x, labels=labels.astype(np.float32))
    np.savez(folder / "lengths.npz", x=x, labels=labels[:-1])
    np.savez(folder / "no-rows.npz", x=x[:0])
    np.savez(folder / "nothing.npz")
    np.savez(folder / "pixels.npz", x=rng.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8))
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}] * 40, dtype=object))
    np.save(folder / "objects.npy", np.array([{"a": 1}] * 40, dtype=object), allow_pickle=True)
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.npz").write_text("x = 1\n")
    (folder / "data.csv").write_text("1,2,3,4\n")
    whole = (folder / "data.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(folder / "rotten.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00rotten")
    (folder / "empty-folder").mkdir()
    (folder / "bad_metrics.py").write_text(
        "def fails(outputs, labels):\n    raise KeyError('no such\\nkey')\n"
        "def texts(outputs, labels):\n    return 'high'\n"
        "number = 1\n"
    )
    (folder / "broken_module.py").write_text("1 / 0\n")
    (folder / "bad_feeds.py").write_text(
        "import numpy as np\n"
        "def fails():\n    yield {'x': np.zeros((4, 4), np.float32)}\n    raise OSError('the disk\\nis gone')\n"
        "def none():\n    return iter(())\n"
    )


def write_plans(folder: Path) -> None:
    plans: dict[str, dict[str, Any]] = {
        "good": plan(),
        "foreign": plan(model="0123456789abcdef"),
        "future": plan(schema=99),
        "method": plan(method="magic"),
        "zero": plan(width=0),
        "too-wide": plan(width=9),
        "negative": plan(width=-4),
        "of": plan(of=16),
        "twice": plan(keep=[0, 0, 1, 2]),
        "outside": plan(keep=[0, 1, 2, 8]),
        "text-width": plan(width="4"),
        "extra": plan(comment="mine"),
        "extra-group": plan(spare=1),
        "last": plan(groups={"last": {"width": 1, "of": 3, "error": 0.0}}),
        "nobody": plan(groups={"nobody": {"width": 1, "of": 3, "error": 0.0}}),
    }
    for name, content in plans.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "no-fields.json").write_text("{}")
    (folder / "malformed.json").write_text('{"schema": 1,')
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "empty.json").write_bytes(b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the cases below name, good and bad."""
    made = tmp_path_factory.mktemp("bad")
    write_models(made)
    write_data(made)
    write_plans(made)
    (made / "old.onnx").write_bytes(b"what was there before")
    return made


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in that folder; the modules there are importable while the test lasts."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def shrinking(
    model: str = "model.onnx", data: str = "data.npz", goal: str = "--width 0.5", more: str = "", out: str = "out.onnx"
) -> str:
    return f"shrink {model} --data {data} {goal} -o {out} {more}"


MODELS = {
    "a text file": ("text.onnx", "'text.onnx' is not an ONNX model"),
    "a picture": ("picture.onnx", "'picture.onnx' is not an ONNX model"),
    "an empty file": ("empty.onnx", "'empty.onnx' is not an ONNX model: it holds no graph"),
    "a truncated file": ("cut.onnx", "'cut.onnx' is not an ONNX model, or is truncated"),
    "a JSON file": ("model.json", "'model.json' is not an ONNX model"),
    "a text protobuf": ("model.textproto", "'model.textproto' is not an ONNX model"),
    "no such file": ("absent.onnx", "no such model file: 'absent.onnx'"),
    "no such folder": ("absent/model.onnx", "no such model file: 'absent/model.onnx'"),
    "below a file": ("data.npz/model.onnx", "cannot read 'data.npz/model.onnx': Not a directory"),
    "a folder": ("folder.onnx", r"the folder folder\.onnx holds no \.onnx file: name the model"),
    "a graph that does not check": ("invalid.onnx", "'invalid.onnx' is not a valid ONNX model: .*nowhere"),
    "a model without a graph": ("no-inputs.onnx", "'no-inputs.onnx' is not an ONNX model: it holds no graph"),
    "a weight of too few bytes": ("damaged.onnx", "'damaged.onnx'.*w1"),
    "external data that is gone": ("external.onnx", "external data of 'external.onnx'.*external.data"),
    "external data cut short": ("short.onnx", "'short.onnx'"),
}

DATA = {
    "no such data": ("absent.npz", "absent.npz does not exist: give a file"),
    "no .npz at all": ("data.csv", "data.csv is none of .npz, .npy"),
    "an empty .npz": ("empty.npz", "empty.npz cannot be read"),
    "a text .npz": ("text.npz", "text.npz cannot be read"),
    "a truncated .npz": ("cut.npz", "cut.npz cannot be read"),
    "a rotten array": ("rotten.npz", "rotten.npz: `x` cannot be read"),
    "a .npz without arrays": ("nothing.npz", "nothing.npz lacks `x`: it has no arrays"),
    "no samples": ("no-rows.npz", "no-rows.npz: `x` has no samples"),
    "another name": ("wrong-name.npz", "wrong-name.npz lacks `x`: it has `z`"),
    "another shape": ("wrong-shape.npz", r"wrong-shape.npz: `x` has shape \(40, 3\) but the model takes \(N, 4\)"),
    "another dtype": ("wrong-dtype.npz", "wrong-dtype.npz: `x` holds int64 but the model takes float32"),
    "float labels": ("float-labels.npz", "float-labels.npz: `labels` holds float32"),
    "labels of another length": ("lengths.npz", "lengths.npz: `x` has 40 samples but lengths.npz: `labels` has 39"),
    "NaN": ("nan.npz", "nan.npz: `x` is NaN or Inf at sample 7"),
    "Inf": ("inf.npz", "inf.npz: `x` is NaN or Inf at sample 7"),
    "pickled arrays in .npz": ("objects.npz", "objects.npz: `x` holds Python objects"),
    "pickled arrays in .npy": ("objects.npy", "objects.npy: `x` holds Python objects"),
    "an empty folder": ("empty-folder", "empty-folder holds no .npz or .npy files"),
    "no such module": ("no_such_module:feeds", "`no_such_module:feeds` cannot be imported"),
    "no such function": ("bad_feeds:nobody", "`bad_feeds:nobody` cannot be imported"),
    "a function that fails": ("bad_feeds:fails", "bad_feeds:fails.* failed .*the disk is gone"),
    "a function without feeds": ("bad_feeds:none", "no samples"),
}

GOALS = {
    "no goal": ("", "nothing says how small to make the model: give one of --budget, --width, --variance, --plan"),
    "two goals": ("--width 0.5 --budget macs=0.5", "--budget and --width both say how small"),
    "macs=0": ("--budget macs=0", "budget 'macs=0' is not understood: write macs=0.5"),
    "macs=2": ("--budget macs=2", "budget 'macs=2' is not understood"),
    "macs=-1": ("--budget macs=-1", "budget 'macs=-1' is not understood"),
    "macs=nan": ("--budget macs=nan", "budget 'macs=nan' is not understood"),
    "macs=abc": ("--budget macs=abc", "budget 'macs=abc' is not understood"),
    "macs": ("--budget macs", "budget 'macs' is not understood"),
    "foo=0.5": ("--budget foo=0.5", "budget 'foo=0.5' is not understood"),
    "an empty budget": ("--budget ''", "budget '' is not understood"),
    "the second budget": ("--budget macs=0.5 --budget params=5", "budget 'params=5' is not understood"),
    "out of reach": ("--budget macs=0.01", r"budget macs=0.01 is out of reach: the narrowest .* has macs=0.125"),
    "width 0": ("--width 0", "--width 0 is out of range"),
    "width 1.5": ("--width 1.5", "--width 1.5 is out of range"),
    "width nan": ("--width nan", "--width nan is out of range"),
    "width as text": ("--width half", "'half' is not a valid float"),
    "variance 0": ("--variance 0", "--variance 0 is out of range"),
    "variance 2": ("--variance 2", "--variance 2 is out of range"),
    "no such plan": ("--plan absent.json", "cannot read plan 'absent.json': No such file"),
    "a plan that is a folder": ("--plan empty-folder", "cannot read plan 'empty-folder': Is a directory"),
    "an empty plan": ("--plan empty.json", "plan 'empty.json' is not a valid plan"),
    "a binary plan": ("--plan binary.json", "plan 'binary.json' is not a valid plan"),
    "a malformed plan": ("--plan malformed.json", "plan 'malformed.json' is not a valid plan"),
    "a plan without fields": ("--plan no-fields.json", "plan 'no-fields.json' is not a valid plan: .*`schema`"),
    "an unknown field": ("--plan extra.json", "plan 'extra.json' is not a valid plan: .*`comment`"),
    "an unknown field of a group": (
        "--plan extra-group.json",
        "plan 'extra-group.json' is not a valid plan: .*`spare`",
    ),
    "a width that is text": ("--plan text-width.json", "plan 'text-width.json' is not a valid plan: .*`int`"),
    "a plan for another model": ("--plan foreign.json", "plan 'foreign.json' was made for another model"),
    "a plan of the future": ("--plan future.json", "plan 'future.json' has schema 99, this version reads 1"),
    "an unknown method in a plan": ("--plan method.json", "unknown method 'magic'"),
    "no width": ("--plan zero.json", "the plan's width 0 of 8 for 'first'"),
    "a negative width": ("--plan negative.json", "the plan's width -4 of 8 for 'first'"),
    "too wide": ("--plan too-wide.json", "the plan's width 9 of 8 for 'first'"),
    "another full width": ("--plan of.json", "the plan's width 4 of 16 for 'first' does not fit its 8"),
    "a channel kept twice": ("--plan twice.json", "channels to keep for 'first' is not 4 different channels"),
    "a channel outside": ("--plan outside.json", "channels to keep for 'first' is not 4 different channels"),
    "a layer that must stay": ("--plan last.json", "the plan narrows 'last', which cannot be narrowed here"),
    "a layer that is not there": ("--plan nobody.json", "the plan narrows 'nobody'"),
}

OPTIONS = {
    "an unknown method": ("--method magic", "unknown method 'magic': choose one of auto, obs"),
    "an unknown order": ("--order sideways", "--order sideways is not understood"),
    "an unknown device": ("--device tpu", "--device tpu is not understood"),
    "an unknown option": ("--frobnicate", "--frobnicate"),
    "a multiple of 0": ("--multiple 0", "--multiple 0 is not understood"),
    "a multiple in words": ("--multiple eight", "--multiple eight is not understood"),
    "a superscript multiple": ("--multiple ²", "--multiple ² is not understood"),
    "0 samples": ("--samples 0", "--samples 0 is too small"),
    "fewer samples than none": ("--samples -3", "--samples -3 is too small"),
    "samples in words": ("--samples many", "'many' is not a valid integer"),
    "half a sample": ("--samples 1.5", "'1.5' is not a valid integer"),
    "an empty batch": ("--batch 0", "--batch 0 is too small"),
    "a holdout of everything": ("--holdout 1", "--holdout 1 is out of range"),
    "a negative holdout": ("--holdout -0.1", "--holdout -0.1 is out of range"),
    "a holdout of nan": ("--holdout nan", "--holdout nan is out of range"),
    "a negative seed": ("--seed -1", "--seed -1 is too small"),
    "a seed of many digits": ("--seed 99999999999999999999", "--seed 99999999999999999999 is too large"),
    "negative threads": ("--threads -1", "--threads -1 is too small"),
    "a negative error": ("--max-error -1", "--max-error -1 is out of range"),
    "an error of nan": ("--max-error nan", "--max-error nan is out of range"),
    "an include that matches nothing": ("--include 'conv*'", r"'conv\*' matches no layer"),
    "an exclude that matches nothing": ("--exclude nobody", "'nobody' matches no layer"),
    "no such --eval": ("--eval absent.npz", "absent.npz does not exist"),
    "--eval of another shape": ("--eval wrong-shape.npz", "wrong-shape.npz: `x` has shape"),
    "normalising floats": ("--normalize 0.5 0.5", "data.npz has no uint8 pixels to normalise"),
    "normalising by words": ("--normalize mean std", "--normalize takes two lists of numbers"),
    "normalising by zero": ("--normalize 0.5 0", "give finite means and positive stds"),
    "no such metric module": ("--metric no_such_module:score", "metric 'no_such_module:score' cannot be imported"),
    "no such metric": ("--metric bad_metrics:nobody", "metric 'bad_metrics:nobody' cannot be imported"),
    "a metric without a name": ("--metric bad_metrics", "metric 'bad_metrics' cannot be imported"),
    "a metric of a broken module": ("--metric broken_module:score", "'broken_module:score' .*ZeroDivisionError"),
    "a metric that is a number": (
        "--metric bad_metrics:number",
        "metric 'bad_metrics:number' is a int, not a function",
    ),
    "a metric that fails": ("--metric bad_metrics:fails", r"the metric failed: KeyError: .*no such\\nkey"),
    "a metric that gives text": ("--metric bad_metrics:texts", "the metric failed: ValueError"),
    "an order without pcns": ("--order descending", "--order and --no-refit are choices of method pcns: 'obs' has"),
    "no re-fit without pcns": ("--method interpolative --no-refit", "'interpolative' has neither"),
    "a drop of unlabelled samples": ("--max-drop 1 --eval unlabelled.npz", "--max-drop needs labels"),
}

TARGETS = {
    "a missing folder": ("absent/out.onnx", "", "cannot write 'absent/out.onnx': there is no folder 'absent'"),
    "below a file": ("data.npz/out.onnx", "", "cannot write 'data.npz/out.onnx': there is no folder"),
    "a folder": ("folder.onnx", "", "cannot write 'folder.onnx': it is a folder"),
    "nothing": ("''", "", "cannot write '.': it is a folder"),
    "a device": ("/dev/null", "", "cannot write '/dev/null': it is no regular file"),
    "a name of 300 letters": ("a" * 300, "", "cannot write 'aaa.*: .*too long"),
    "the model": ("model.onnx", "", "cannot write 'model.onnx': it is an input"),
    "the model by another way": ("./folder.onnx/../model.onnx", "", "it is an input"),
    "the model through a link": ("link.onnx", "", "cannot write 'link.onnx': it is an input"),
    "the data": ("data.npz", "", "cannot write 'data.npz': it is an input"),
    "the plan in a missing folder": ("out.onnx", "--plan-out absent/p.json", "cannot write 'absent/p.json'"),
    "the report in a missing folder": ("out.onnx", "--report absent/r.json", "cannot write 'absent/r.json'"),
    "the report over the model": ("out.onnx", "--report model.onnx", "cannot write 'model.onnx': it is an input"),
    "the report over the output": ("out.onnx", "--report out.onnx", "it is an input or another output"),
}

OTHERS = {
    "shrink without data": ("shrink model.onnx --width 0.5 -o out.onnx", "give samples with --data"),
    "shrink without an output": ("shrink model.onnx --data data.npz --width 0.5", "Missing option .*--output"),
    "shrink without a model": ("shrink --data data.npz --width 0.5 -o out.onnx", "Missing argument 'MODEL'"),
    "compare without data": ("compare model.onnx other.onnx", "Missing option '--data'"),
    "compare with one model": ("compare model.onnx --data data.npz", "Missing argument 'B'"),
    "an unknown command": ("shirk model.onnx", "No such command 'shirk'"),
    "inspect of no model": ("inspect text.onnx", "'text.onnx' is not an ONNX model"),
    "inspect on bad data": ("inspect model.onnx --data nan.npz", "nan.npz: `x` is NaN or Inf at sample 7"),
    "pixels for a float input": (
        "inspect images.onnx --data pixels.npz",
        "pixels.npz: `x` holds uint8 but the model takes float32: pass --normalize MEAN STD",
    ),
    "pixels of three channels, two means": (
        "inspect images.onnx --data pixels.npz --normalize 0.5,0.5 0.2",
        "--normalize has 2 values: give one per channel",
    ),
    "inspect of an operator that cannot run": (
        "inspect custom.onnx --data data.npz",
        "onnxruntime cannot load the model: .*Squash",
    ),
    "compare of something that is no model": ("compare model.onnx text.onnx --data data.npz", "'text.onnx'"),
    "compare of other inputs": (
        "compare model.onnx images.onnx --data data.npz",
        r"input 'x' is \? x 4 in one model and \? x 3 x 4 x 4 in the other: no samples fit both\n",
    ),
    "compare of other outputs": ("compare model.onnx renamed.onnx --data data.npz", r"different outputs: \['y'\]"),
    "compare of other widths": (
        "compare model.onnx wider.onnx --data data.npz",
        r"output 'y' has shape \(40, 3\) in one model and \(40, 5\) in the other",
    ),
    "compare with a report over a model": (
        "compare model.onnx other.onnx --data data.npz --report other.onnx",
        "cannot write 'other.onnx': it is an input",
    ),
    "a drop without labels": (
        "compare model.onnx other.onnx --data unlabelled.npz --max-drop 1",
        "--max-drop needs labels",
    ),
}

CASES = {
    **{f"model: {name}": (shrinking(model), line) for name, (model, line) in MODELS.items()},
    **{f"data: {name}": (shrinking(data=data), line) for name, (data, line) in DATA.items()},
    **{f"goal: {name}": (shrinking(goal=goal), line) for name, (goal, line) in GOALS.items()},
    **{f"option: {name}": (shrinking(more=more), line) for name, (more, line) in OPTIONS.items()},
    **{f"target: {name}": (shrinking(out=out, more=more), line) for name, (out, more, line) in TARGETS.items()},
    "over an older file": (shrinking("cut.onnx", out="old.onnx"), "'cut.onnx' is not an ONNX model, or is truncated"),
    **OTHERS,
}


@pytest.mark.parametrize(("command", "line"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_and_touches_no_file(
    command: str, line: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder)
    code = cli.main(shlex.split(command))
    shown = capfd.readouterr()
    assert code == 2, shown
    assert shown.err.startswith("pcns-onnx: error: ") and shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert re.search(line, shown.err), shown.err
    assert snapshot(folder) == before


def test_the_command_itself_says_so_too(folder: Path) -> None:
    script = Path(sys.executable).with_name("pcns-onnx")
    done = subprocess.run([script, *shlex.split(shrinking("cut.onnx"))], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"pcns-onnx: error: 'cut.onnx' is not an ONNX model, or is truncated: .*\n", done.stderr)


@pytest.mark.parametrize("model", [text_output(), ModelProto()], ids=["graph", "empty"])
def test_a_model_in_memory_is_checked_too(model: ModelProto) -> None:
    with pytest.raises(InputError, match=r"^the given ModelProto"):
        inspect(model)


@pytest.mark.parametrize("model", ["nan.onnx", "inf.onnx", "constant-nan.onnx"])
def test_a_layer_with_a_poisoned_weight_stays_with_the_reason(
    model: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder)
    assert cli.main(shlex.split(shrinking(model))) == 3
    shown = capfd.readouterr()
    assert "Gemm 'first' has NaN or Inf in 'w1'" in shown.out
    assert shown.err == "pcns-onnx: error: nothing can be shrunk: every layer has a reason to stay\n"
    assert snapshot(folder) == before


@pytest.mark.parametrize("where", ["weight", "bias", "bias behind"])
def test_the_rest_is_shrunk_around_a_poisoned_layer(where: str) -> None:
    """-Inf in front of a Relu is a neuron that is never heard of; NaN beside what is put out hurts nobody else."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 12), "w2": (12, 12), "b2": (12,), "w3": (12, 12), "w4": (12, 3), "w5": (6, 3)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    name, value = {"weight": ("w5", np.nan), "bias": ("b2", -np.inf), "bias behind": ("b2", -np.inf)}[where]
    weights[name].flat[1] = value
    second = [helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"], name="two")]
    if where == "bias behind":
        second = [
            helper.make_node("MatMul", ["r1", "w2"], ["m2"], name="two"),
            helper.make_node("Add", ["m2", "b2"], ["h2"]),
        ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h1"], name="one"), helper.make_node("Relu", ["h1"], ["r1"]),
        *second, helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "w3"], ["h3"], name="three"), helper.make_node("Relu", ["h3"], ["r3"]),
        helper.make_node("Gemm", ["r3", "w4"], ["y"], name="four"),
        helper.make_node("Gemm", ["x", "w5"], ["beside"], name="five"),
    ]  # fmt: skip
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in ("y", "beside")]
    stored = [numpy_helper.from_array(array, n) for n, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((80, 6)).astype(np.float32)
    layers = {layer.name: layer.reason for layer in inspect(model, x).layers}
    poisoned, op = ("five", "Gemm") if where == "weight" else ("two", "MatMul" if where == "bias behind" else "Gemm")
    assert layers[poisoned] == f"{op} '{poisoned}' has NaN or Inf in '{name}'"
    result = shrink(model, x, width=0.75, multiple="1", refine=0)
    assert "three" in result.plan.groups and np.isfinite(result.report.agreement.error)
    assert {item.name: item.reason for item in result.report.left_alone}[poisoned] == layers[poisoned]


def test_a_table_with_infinities_is_no_damage() -> None:
    """A bias per distance, with -Inf for those that are not attended to: it is no layer's weight."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in {"w1": (6, 12), "w2": (12, 3)}.items()}
    weights["table"] = np.concatenate([[[-np.inf]], rng.standard_normal((4, 1))])
    nodes = [
        helper.make_node("Gather", ["table", "distances"], ["bias"]), helper.make_node("Squeeze", ["bias"], ["flat"]),
        helper.make_node("Add", ["x", "flat"], ["s"]), helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("Gemm", ["p", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2"], ["y"]),
    ]  # fmt: skip
    stored = {name: value.astype(np.float32) for name, value in weights.items()}
    model = build(nodes, {**stored, "distances": np.array([1, 0, 2, 3, 4, 0])}, ["N", 6])
    x = rng.standard_normal((80, 6)).astype(np.float32)
    assert all("Inf" not in (layer.reason or "") for layer in inspect(model, x).layers)
    assert shrink(model, x, width=0.5, multiple="1", refine=0).report.agreement.error < 0.5


def test_a_mask_of_infinities_is_no_damage() -> None:
    model = mlp()
    mask = np.array([0, -np.inf, 0], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.inf, np.float32), "bound"))
    assert len(inspect(model).layers) == 2


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_without_a_runtime_the_message_says_which_to_install(
    device: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(shlex.split(shrinking(more=f"--device {device}"))) == 2
    shown = capfd.readouterr().err
    assert "pip install 'pcns-onnx[cpu]'" in shown and "pip install 'pcns-onnx[cuda]'" in shown
    assert shown.count("\n") == 1


def test_a_device_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        choose_engine("cuda")
    except UnsupportedError:
        assert cli.main(shlex.split(shrinking(more="--device cuda"))) == 2
        assert re.fullmatch(r"pcns-onnx: error: device 'cuda' .*--device cpu\n", capfd.readouterr().err)
    else:
        pytest.skip("this machine has one")


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"^cannot write '.*small.onnx': No space left on device$"):
        shrink(mlp(), np.random.default_rng(0).standard_normal((40, 4)), tmp_path / "small.onnx", width=0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"width": "0.5"}, "--width '0.5' is not understood: it must be a number"),
        ({"batch": None}, "--batch None is not understood: it must be a whole number"),
        ({"max_error": "1"}, "--max-error '1' is not understood: it must be a number"),
        ({"budget": 0.5}, "--budget 0.5 is not understood: give a text or a list of texts"),
        ({"normalize": (0.5, 0.5)}, "it must be a pcns_onnx.Normalize(mean, std)"),
        ({"multiple": 0}, "--multiple 0 is not understood"),
    ],
)
def test_values_of_the_wrong_type_from_python_are_one_line(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        Options.of(**choices)
    assert said in str(caught.value)


def test_a_multiple_may_be_a_number() -> None:
    assert Options.of(multiple=8) == Options.of(multiple="8")


def test_a_plan_that_is_replayed_is_not_overwritten(folder: Path) -> None:
    plan = folder / "kept.json"
    shrink(folder / "model.onnx", folder / "data.npz", width=0.5, plan_out=plan)
    before = plan.read_bytes()
    outputs: list[Any] = [{"output": plan}, {"report": plan}, {"plan_out": plan}]
    for output in outputs:
        with pytest.raises(InputError, match="it is an input or another output"):
            shrink(folder / "model.onnx", folder / "data.npz", plan=plan, **output)
    assert plan.read_bytes() == before
