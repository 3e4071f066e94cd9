"""Texts as tokens, through a `tokenizer.json` (tokenizers, an extra), for transformers.

The tokenizer is the one that is named, or the one that lies with the model. Every text is cut or padded to one length,
so that batches keep their shape. Ids go to `input_ids`, what is no padding to `attention_mask`, segments to
`token_type_ids`, places that count from the first token to `position_ids`, as far as the model has such inputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcns_onnx.data.columns import Array, Column, Part, refusing
from pcns_onnx.data.formats.preprocess import AUTO, Preprocess
from pcns_onnx.errors import InputError, UnsupportedError
from pcns_onnx.graph import TensorSpec


def _places(encoded: Any) -> NDArray[np.int64]:
    return np.asarray(np.maximum(np.cumsum(encoded.attention_mask) - 1, 0), dtype=np.int64)


FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "input_ids": lambda encoded: encoded.ids,
    "attention_mask": lambda encoded: encoded.attention_mask,
    "token_type_ids": lambda encoded: encoded.type_ids,
    "input_mask": lambda encoded: encoded.attention_mask,
    "segment_ids": lambda encoded: encoded.type_ids,
    "position_ids": _places,
}
"""What an input of a name takes of a text; `input_mask` and `segment_ids` are what BERT's first files have."""
FILE = "tokenizer.json"
LENGTH = 128
"""Tokens where neither the caller nor the model nor the tokenizer says how many."""
MOST = 512
"""Tokens of the longest text, where its tokenizer does not say how many a text may have."""

Texts = Callable[[int], Iterator[list[str]]]
"""Texts from the start, in runs of at most so many."""
_RUN = 1024


def token_columns(
    texts: Texts, count: int, where: str, inputs: Sequence[TensorSpec], preprocess: Preprocess
) -> dict[str, Column]:
    """Columns of int64 (count, length) for the inputs that take tokens; raises InputError where there are none."""
    taken = [spec for spec in inputs if spec.name in FIELDS]
    if not taken:
        names = ", ".join(spec.name for spec in inputs)
        raise InputError(f"{where} holds texts, but the model takes {names}: tokens go to {', '.join(FIELDS)}")
    fixed = next((spec.shape[1] for spec in taken if len(spec.shape) == 2 and spec.shape[1]), None)
    tokenizer, length = load_tokenizer(preprocess, fixed, texts)

    def column(name: str) -> Column:
        def rows(size: int) -> Iterator[Array]:
            for run in texts(size):
                encoded = tokenizer.encode_batch(run)
                yield np.array([FIELDS[name](text) for text in encoded], np.int64).reshape(len(run), length)

        return Column(f"{where}: `{name}`", np.dtype(np.int64), (count, length), rows)

    return {spec.name: column(spec.name) for spec in taken}


def load_tokenizer(preprocess: Preprocess, fixed: int | None, texts: Texts) -> tuple[Any, int]:
    """The tokenizer that pads and truncates to one length, and that length: the model's `fixed` one, if it has one."""
    path = tokenizer_file(preprocess)
    if path is None:
        looked = f" (there is none in {' or '.join(map(str, preprocess.near))})" if preprocess.near else ""
        raise InputError(f'texts need a tokenizer: give --preprocess "tokenizer={FILE}"{looked}')
    try:
        module = importlib.import_module("tokenizers")
    except ImportError:
        raise UnsupportedError("texts are read by tokenizers: `pip install 'pcns-onnx[text]'`") from None
    with refusing(f"{path} cannot be read as a tokenizer", "give the tokenizer.json of the model"):
        tokenizer = module.Tokenizer.from_file(str(path))
    padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
    own = padding.get("length") or truncation.get("max_length")
    if fixed is None and preprocess.length == AUTO:
        length = _longest(tokenizer, texts, truncation.get("max_length") or MOST)
    else:
        length = int(fixed or preprocess.length or own or LENGTH)
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    pad = padding.get("pad_id", next((i for i in known if i is not None), 0))
    rest = {key: padding[key] for key in ("direction", "pad_type_id", "pad_token") if key in padding}
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(**(rest | {"pad_id": pad, "length": length}))
    return tokenizer, length


def tokenizer_file(preprocess: Preprocess) -> str | None:
    """The tokenizer that is named, or else the first that lies near the model."""
    if preprocess.tokenizer is not None:
        return preprocess.tokenizer
    return next((str(folder / FILE) for folder in preprocess.near if (folder / FILE).is_file()), None)


def _longest(tokenizer: Any, texts: Texts, most: int) -> int:
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    return max((len(text.ids) for run in texts(_RUN) for text in tokenizer.encode_batch(run)), default=1)


def text_file(path: Path, inputs: Sequence[TensorSpec], preprocess: Preprocess) -> Part:
    """One text per line of a UTF-8 file, or per paragraph; empty lines do not count."""

    def texts(size: int) -> Iterator[list[str]]:
        with refusing(f"{path} cannot be read as text", "save it as UTF-8"), open(path, encoding="utf-8") as file:
            lines = (line.strip() for line in file)
            yield from _runs(_paragraphs(lines) if preprocess.split == "paragraphs" else filter(None, lines), size)

    count = sum(len(run) for run in texts(_RUN))
    return Part(str(path), token_columns(texts, count, str(path), inputs, preprocess), note=token_note(preprocess))


def token_note(preprocess: Preprocess) -> str | None:
    """Which tokenizer was found, where none was named."""
    return None if preprocess.tokenizer else f"texts are tokenised by {tokenizer_file(preprocess)}"


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Lines between empty ones, as one text each."""
    return (" ".join(group) for has_text, group in groupby(lines, key=bool) if has_text)


def _runs(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(texts)
    while run := list(islice(source, size)):
        yield run
