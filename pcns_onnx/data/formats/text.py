"""Texts as tokens, through a `tokenizer.json` (tokenizers, an extra), for transformer encoders.

Every text is cut or padded to one length, so that batches keep their shape. Ids go to `input_ids`, what is
no padding to `attention_mask`, segments to `token_type_ids`, as far as the model has inputs of these names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pcns_onnx.data.columns import Array, Column, Part, refusing
from pcns_onnx.data.formats.preprocess import Preprocess
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import TensorSpec

FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
LENGTH = 128
"""Tokens where neither the caller nor the model nor the tokenizer says how many."""

Texts = Callable[[int], Iterator[list[str]]]
"""Texts from the start, in runs of at most so many."""


def token_columns(
    texts: Texts, count: int, where: str, inputs: Sequence[TensorSpec], preprocess: Preprocess
) -> dict[str, Column]:
    """Columns of int64 (count, length) for the inputs that take tokens; raises InputError where there are none."""
    taken = [spec for spec in inputs if spec.name in FIELDS]
    if not taken:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{where} holds texts, but the model takes {names}: tokens go to {', '.join(FIELDS)}")
    length = next((spec.shape[1] for spec in taken if len(spec.shape) == 2 and spec.shape[1]), preprocess.length)
    tokenizer, length = load_tokenizer(preprocess, length)

    def column(name: str) -> Column:
        def rows(size: int) -> Iterator[Array]:
            for run in texts(size):
                encoded = tokenizer.encode_batch(run)
                yield np.array([getattr(e, FIELDS[name]) for e in encoded], np.int64).reshape(len(run), length)

        return Column(f"{where}: `{name}`", np.dtype(np.int64), (count, length), rows)

    return {spec.name: column(spec.name) for spec in taken}


def load_tokenizer(preprocess: Preprocess, length: int | None) -> tuple[Any, int]:
    """The tokenizer that pads and truncates to one length, and that length."""
    if preprocess.tokenizer is None:
        raise InputError('texts need a tokenizer: give --preprocess "tokenizer=tokenizer.json"')
    try:
        module = importlib.import_module("tokenizers")
    except ImportError:
        raise UnsupportedError("texts are read by tokenizers: `pip install 'pcns-onnx[text]'`") from None
    with refusing(f"{preprocess.tokenizer} cannot be read as a tokenizer", "give the tokenizer.json of the model"):
        tokenizer = module.Tokenizer.from_file(preprocess.tokenizer)
    padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
    length = length or padding.get("length") or truncation.get("max_length") or LENGTH
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    pad = padding.get("pad_id", next((i for i in known if i is not None), 0))
    rest = {key: padding[key] for key in ("direction", "pad_type_id", "pad_token") if key in padding}
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(**(rest | {"pad_id": pad, "length": length}))
    return tokenizer, int(length)


def text_file(path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess) -> Part:
    """One text per line of a UTF-8 file; empty lines do not count."""

    def texts(size: int) -> Iterator[list[str]]:
        with refusing(f"{path} cannot be read as text", "save it as UTF-8"), open(path, encoding="utf-8") as file:
            yield from _runs((line.strip() for line in file if line.strip()), size)

    count = sum(len(run) for run in texts(4096))
    return Part(str(path), token_columns(texts, count, str(path), inputs, preprocess))


def _runs(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(texts)
    while run := list(islice(source, size)):
        yield run
