"""Texts and files that ship with Python and with packages, as token ids, characters and bytes."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.public_cases import packages

Ids = NDArray[np.int64]
PROSE = re.compile(r"(?!.*--)[A-Z][A-Za-z0-9,;:'\"()\- ]+[.!?]")


def sentences(count: int, *, tested: bool) -> list[str]:
    """English prose from docstrings of the standard library; every fourth module is for the test."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(Path(np.__path__[0]).glob("**/*.py"))
    kept = dict[str, None]()
    for path in (path for n, path in enumerate(modules) if (n % 4 == 3) == tested):
        for sentence in _prose(path):
            kept[sentence] = None
    return random.Random(0).sample(list(kept), min(count, len(kept)))


def _prose(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join((ast.get_docstring(node) or "").split())):
                if PROSE.fullmatch(sentence) and 5 <= len(sentence.split()) <= 24:
                    yield sentence


def word_pieces(cache: Path, texts: list[str], length: int) -> dict[str, Ids]:
    """`input_ids` and `attention_mask` (N, length)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packages.WORDPIECES.file(cache, "**/tokenizer.json")))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
    }


def chinese(cache: Path, model_folder: Path, count: int, length: int, *, tested: bool) -> dict[str, Ids]:
    """Reviews by customers, `length` characters of each, as ids of the tagger's dictionary."""
    name = "pos.txt" if tested else "neg.txt"
    lines = packages.CHINESE.file(cache, f"**/sentiment/{name}").read_text(encoding="utf-8").splitlines()
    lines = [line.strip() for line in lines if len(line.strip()) >= length]
    words = dict(_pairs(model_folder / "word.dic"))
    ids = {character: int(number) for number, character in words.items()}
    chosen = random.Random(0).sample(lines, count)
    rows = [[ids.get(character, ids.get("OOV", 0)) for character in line[:length]] for line in chosen]
    return {"token_ids": np.array(rows, dtype=np.int64), "length": np.full(count, length, dtype=np.int64)}


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if "\t" in line:
            key, value = line.split("\t", 1)
            yield key, value


def khmer(cache: Path, model_folder: Path, count: int, length: int, *, tested: bool) -> dict[str, NDArray[np.generic]]:
    """Names of countries, languages and currencies in Khmer, one after the other, `length` characters each."""
    folder = str(packages.LOCALES.unpacked(cache))
    sys.path.insert(0, folder)
    try:
        from babel import Locale

        locale = Locale("km")
        names = [*locale.territories.values(), *locale.languages.values(), *locale.currencies.values()]
    finally:
        sys.path.remove(folder)
    names = [name for n, name in enumerate(names) if re.fullmatch(r"[\u1780-\u17ff]+", name) and (n % 4 == 3) == tested]
    ids = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))["char2id"]
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        text = "".join(draw.sample(names, length // 2))[:length]
        rows.append([ids.get(character, 1) for character in text])
    return {"x": np.array(rows, dtype=np.int64), "mask": np.ones((count, length), dtype=bool)}


# -- files -------------------------------------------------------------------------------------

EDGE, BLOCK, PADDING = 1024, 4096, 256
"""Bytes that Magika looks at from both ends, out of blocks of so many; what stands where there are none."""


def file_bytes(cache: Path, count: int, *, tested: bool) -> dict[str, NDArray[np.int32]]:
    """Files of Python and of the packages here, as many of each kind as can be; every fourth is for the test."""
    kinds: dict[str, list[Path]] = {}
    for root in (Path(sysconfig.get_paths()["stdlib"]), cache):
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.stat().st_size >= 64:
                kinds.setdefault(path.suffix.lower(), []).append(path)
    draw = random.Random(0)
    pools = []
    for paths in kinds.values():
        draw.shuffle(paths)
        pools.append([path for n, path in enumerate(paths) if (n % 4 == 3) == tested])
    rows: list[NDArray[np.int64]] = []
    for turn in range(max(map(len, pools))):
        rows += [_edges(pool[turn]) for pool in pools if turn < len(pool) and len(rows) < count]
    return {"bytes": np.stack(rows[:count]).astype(np.int32)}


def _edges(path: Path) -> NDArray[np.int64]:
    """Both ends of a file without white space around it, as Magika's own reader does."""
    with path.open("rb") as file:
        first = file.read(BLOCK).lstrip()
        file.seek(max(0, path.stat().st_size - BLOCK))
        last = file.read(BLOCK).rstrip()
    row = np.full(2 * EDGE, PADDING, dtype=np.int64)
    begin, end = np.frombuffer(first[:EDGE], np.uint8), np.frombuffer(last[-EDGE:], np.uint8)
    row[: len(begin)] = begin
    row[2 * EDGE - len(end) :] = end
    return row
