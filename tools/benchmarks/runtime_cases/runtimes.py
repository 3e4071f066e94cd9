"""The table of the runtimes: a row each, with the versions that it is tried at and how it opens a file.

A new runtime is a new row and a function. The function gets a file, one sample (name to array, a batch of one), the
names of the outputs and a scratch folder, and returns what runs the sample once, on one thread; it converts where its
runtime wants files of its own. It is called in the runtime's own environment, so it imports there and by name:
nothing of this module is imported but NumPy, which all of them bring.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Sample: TypeAlias = Mapping[str, NDArray[Any]]
Run: TypeAlias = Callable[[], Sequence[NDArray[Any]]]
Opener: TypeAlias = Callable[[Path, Sample, Sequence[str], Path], Run]

PATIENCE = 240
"""Seconds that a converter may take."""


def onnxruntime(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """The reference."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(list(outputs), dict(sample))


def openvino(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """Float32 by name: where the processor has bfloat16, that is the default."""
    core = import_module("openvino").Core()
    model = core.read_model(file)
    model.reshape({name: list(value.shape) for name, value in sample.items()})
    wishes = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", wishes).create_infer_request()
    inputs = dict(sample)

    def run() -> list[NDArray[Any]]:
        made = request.infer(inputs)
        return [made[name] for name in outputs]

    return run


def opencv(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """OpenCV's `dnn`; what its new engine refuses goes to the one before it."""
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    try:
        network = cv2.dnn.readNetFromONNX(str(file))
    except cv2.error:
        network = cv2.dnn.readNetFromONNX(str(file), cv2.dnn.ENGINE_CLASSIC)

    def run() -> list[NDArray[Any]]:
        for name, value in sample.items():
            network.setInput(value, name)
        return list(network.forward(list(outputs)))

    return run


def tract(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """Rust. Where stored shapes name a batch, it has to be bound behind the analysis; else inputs say it."""
    library = import_module("tract")
    kinds = {"float32": "f32", "int64": "i64", "int32": "i32", "uint8": "u8"}
    model = library.onnx().load(str(file))
    order = [model.input_name(place) for place in range(model.input_count())]
    for place, name in enumerate(order):
        value = sample[name]
        model.set_input_fact(place, ",".join([*map(str, value.shape), kinds[str(value.dtype)]]))
    for place in range(model.output_count()):
        model.set_output_fact(place, None)
    try:
        typed = model.into_model()
    except library.TractError:
        typed = library.onnx().load(str(file)).into_model()
        stated = [str(typed.input_fact(place)).split(",")[:-1] for place in range(len(order))]
        bound = {
            symbol: size
            for name, sizes in zip(order, stated, strict=True)
            for symbol, size in zip(sizes, sample[name].shape, strict=True)
            if not symbol.isdigit()
        }
        typed.transform(library.SetSymbols(bound))
    runnable = typed.into_runnable()
    inputs = [sample[name] for name in order]
    return lambda: [tensor.to_numpy() for tensor in runnable.run(inputs)]


def mnn(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """Alibaba's; converted by `mnnconvert`."""
    made = scratch / f"{file.stem}.mnn"
    _converted(
        [Path(sys.executable).parent / "mnnconvert", "-f", "ONNX", "--modelFile", file, "--MNNModel", made], made
    )
    layers, numeric = import_module("MNN.nn"), import_module("MNN.numpy")
    expressions = import_module("MNN.expr")
    runtime = layers.create_runtime_manager(({"backend": 0, "numThread": 1, "precision": "high"},))
    network = layers.load_module_from_file(
        str(made), list(sample), list(outputs), runtime_manager=runtime, dynamic=False, shape_mutable=False
    )
    kinds = {"float32": numeric.float32, "int64": numeric.int32, "int32": numeric.int32}
    inputs = []
    for value in sample.values():
        held = expressions.placeholder(list(value.shape), expressions.NCHW, kinds[str(value.dtype)])
        held.write(value.astype(np.int32) if value.dtype == np.int64 else value)
        inputs.append(held)

    def run() -> list[NDArray[Any]]:
        return [
            np.array(expressions.convert(value, expressions.NCHW).read(), copy=True)
            for value in network.forward(inputs)
        ]

    return run


def ncnn(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """Tencent's, through pnnx; there is no batch in it."""
    copy = scratch / f"{file.stem.replace('.', '_')}.onnx"
    copy.write_bytes(file.read_bytes())  # pnnx writes beside what it reads
    shapes = ",".join(
        f"[{','.join(map(str, value.shape))}]{'' if value.dtype == np.float32 else 'i64'}" for value in sample.values()
    )
    made = copy.with_suffix(".ncnn.param")
    _converted([Path(sys.executable).parent / "pnnx", copy, f"inputshape={shapes}", "fp16=0"], made)
    library = import_module("ncnn")
    network = library.Net()
    network.opt.num_threads, network.opt.use_vulkan_compute = 1, False
    for wish in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(network.opt, f"use_{wish}", False)
    if network.load_param(str(made)) or network.load_model(str(made.with_suffix(".bin"))):
        raise RuntimeError("ncnn does not load what pnnx wrote")
    inputs = [np.ascontiguousarray(value[0]) for value in sample.values()]

    def run() -> list[NDArray[Any]]:
        extractor = network.create_extractor()
        for place, value in enumerate(inputs):
            extractor.input(f"in{place}", library.Mat(value))
        made = []
        for place in range(len(outputs)):
            failed, value = extractor.extract(f"out{place}")
            if failed:
                raise RuntimeError(f"ncnn cannot compute output {place}")
            made.append(np.array(value)[None])
        return made

    return run


def litert(file: Path, sample: Sample, outputs: Sequence[str], scratch: Path) -> Run:
    """TensorFlow Lite's heir, through onnx2tf; pictures come with the channels last."""
    folder = scratch / f"{file.stem}.litert"
    made = folder / f"{file.stem}_float32.tflite"
    shapes = [f"{name}:{','.join(map(str, value.shape))}" for name, value in sample.items()]
    command = [sys.executable, "-m", "onnx2tf", "-i", file, "-o", folder, "-n", "-ois", *shapes, "-coion"]
    _converted(command, made)
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(made), num_threads=1)
    interpreter.allocate_tensors()
    inputs = []
    for value, detail in zip(sample.values(), interpreter.get_input_details(), strict=True):
        wanted = tuple(detail["shape"])
        last = np.moveaxis(value, 1, -1) if value.ndim > 2 and value.shape != wanted else value
        inputs.append((detail["index"], np.ascontiguousarray(last.reshape(wanted), dtype=detail["dtype"])))
    details = interpreter.get_output_details()

    def run() -> list[NDArray[Any]]:
        for index, value in inputs:
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in details]

    return run


def _converted(command: Sequence[object], made: Path) -> None:
    """Runs a converter; raises RuntimeError with its last line where there is no `made`."""
    if made.exists():
        return
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=PATIENCE)
    if not made.exists():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        telling = [line for line in lines if "rror" in line or "upport" in line] or lines or ["it said nothing"]
        raise RuntimeError(f"{Path(str(command[0])).name}: exit code {done.returncode}: {telling[-1].strip()}")


@dataclass(frozen=True)
class Runtime:
    """A runtime: `title` in the table, what pip (or npm) installs, and what opens a file; `browser`: how JavaScript
    is run where that is what it is for ('node' or 'chromium')."""

    name: str
    title: str
    pins: tuple[str, ...]
    opener: Opener | None = None
    browser: str = ""


_NUMPY = "numpy==2.4.6"
_WEB = ("onnxruntime-web@1.30.0",)

RUNTIMES = (
    Runtime("onnxruntime", "onnxruntime 1.32", (_NUMPY, "onnxruntime==1.32.0"), onnxruntime),
    Runtime("openvino", "OpenVINO 2026.4", (_NUMPY, "openvino==2026.4.1"), openvino),
    Runtime("opencv", "OpenCV 5.0", (_NUMPY, "opencv-python-headless==5.0.0.93"), opencv),
    Runtime("tract", "tract 0.23", (_NUMPY, "tract==0.23.9"), tract),
    Runtime("mnn", "MNN 3.6", (_NUMPY, "MNN==3.6.1"), mnn),
    Runtime("ncnn", "ncnn 1.0 (pnnx)", (_NUMPY, "ncnn==1.0.20261020", "pnnx==20261020"), ncnn),
    Runtime("litert", "LiteRT 2.1 (onnx2tf)", ("onnx2tf==1.29.24", "ai-edge-litert==2.1.0"), litert),
    Runtime("node", "onnxruntime-web 1.30, Node", _WEB, browser="node"),
    Runtime("chromium", "onnxruntime-web 1.30, Chromium", _WEB, browser="chromium"),
)
