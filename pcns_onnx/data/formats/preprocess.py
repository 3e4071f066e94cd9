"""How files become arrays: what is said in `--preprocess`, for images and for texts.

resize=256,crop=224,mean=0.485,0.456,0.406,std=0.229,0.224,0.225,layout=NCHW
tokenizer=tokenizer.json,length=128,text=sentence,split=lines
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pcns_onnx.data.conform import Normalize
from pcns_onnx.errors import InputError

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = ("RGB", "BGR", "L")
SPLITS = ("lines", "paragraphs")
AUTO = 0
"""The length that says: as long as the longest text."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocess:
    """What to do with images and texts; all may be left out.

    `resize`: the shorter side (int) or (height, width); `crop`: (height, width) cut from the middle;
    `normalize`: (x/255 - mean) / std per channel, else bytes stay bytes; `layout` NCHW or NHWC; `channels` RGB,
    BGR or L (grey). `tokenizer`: a tokenizer.json (None: the one in a folder of `near`); `length`: tokens per text
    (None: the model's, or the tokenizer's own, or 128; `AUTO`: those of the longest text); `text`: the column that
    holds the texts (None: the only one of texts); `split`: what one text is in a file of texts.
    `is_stated`: anything was asked for.
    """

    resize: int | Size | None = None
    crop: Size | None = None
    normalize: Normalize | None = None
    layout: str = "NCHW"
    channels: str = "RGB"
    tokenizer: str | None = None
    length: int | None = None
    text: str | None = None
    split: str = SPLITS[0]
    near: Sequence[Path] = ()
    is_stated: bool = False

    @classmethod
    def parse(cls, option: str) -> Preprocess:
        """Read 'resize=256,crop=224,mean=...,std=...'; raises `InputError` for anything else."""
        values: dict[str, str] = {}
        for piece in option.split(","):
            name, _, value = piece.partition("=")
            if name.strip() in _KEYS:
                key = name.strip()
                values[key] = value.strip()
            elif values:  # a further number of mean or std, or a comma in a file's name
                values[key] += f",{piece}"
            else:
                raise InputError(f"--preprocess '{piece}' is not understood: write KEY=VALUE with {', '.join(_KEYS)}")
        normalize = None
        if "mean" in values or "std" in values:
            normalize = Normalize.parse(values.get("mean", "0"), values.get("std", "1"), "--preprocess mean and std")
        return cls(
            _side(values["resize"]) if "resize" in values else None,
            _size("crop", values["crop"]) if "crop" in values else None,
            normalize,
            _one_of("layout", values.get("layout", "NCHW").upper(), LAYOUTS),
            _one_of("channels", values.get("channels", "RGB").upper(), CHANNELS),
            values.get("tokenizer"),
            _length(values["length"]) if "length" in values else None,
            values.get("text"),
            _one_of("split", values.get("split", SPLITS[0]).lower(), SPLITS),
            is_stated=True,
        )


_OTHER = ("normalize", "near", "is_stated")
"""Fields that are no keys."""
_KEYS = ("mean", "std", *(field.name for field in fields(Preprocess) if field.name not in _OTHER))


def _length(text: str) -> int:
    return AUTO if text.strip().lower() == "auto" else _whole("length", text)


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text.strip()):
        raise InputError(f"--preprocess {key}={text} is not understood: give a whole number")
    return int(text)


def _size(key: str, text: str) -> Size:
    height, _, width = text.lower().partition("x")
    return _whole(key, height), _whole(key, width or height)


def _side(text: str) -> int | Size:
    return _size("resize", text) if "x" in text.lower() else _whole("resize", text)


def _one_of(key: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise InputError(f"--preprocess {key}={text} is not understood: write {', '.join(allowed)}")
    return text
