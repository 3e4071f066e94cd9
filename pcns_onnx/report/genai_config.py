"""onnxruntime-genai's `genai_config.json` for a decoder whose caches have got narrower.

The runtime makes all caches by one shape, (batch, `num_key_value_heads`, length, `head_size`). So the file goes along
only where that is true of what is written: all caches of all layers have one shape, and the file spoke of the old one.
Numbers of that kind in the model's own `metadata_props` follow, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcns_onnx.errors import first_line
from pcns_onnx.files import write_atomic
from pcns_onnx.graph import Graph
from pcns_onnx.report.contract import NarrowedState, Size, narrowed_states
from pcns_onnx.rewrite.contract import close_states

NAME = "genai_config.json"
_HEADS, _WIDTH, _QUERIES = "num_key_value_heads", "head_size", "num_attention_heads"
_METADATA = {"head_size": 1, "head_dim": 1, "num_key_value_heads": 0, "num_kv_heads": 0, "kv_num_heads": 0}
"""Names of metadata that hold the number of heads (0) or their width (1)."""


@dataclass(frozen=True)
class GenaiConfig:
    """What is written beside the model, nothing without `content`, and what is said of it."""

    path: Path
    content: bytes | None
    note: str

    def write(self) -> None:
        """Write the file, if it goes along."""
        if self.content is not None:
            write_atomic(self.path, self.content)


@dataclass(frozen=True)
class Contract:
    """What has become of a model's states: the model as it is written, the narrower states, and what goes along."""

    closed: Graph
    states: list[NarrowedState]
    config: GenaiConfig | None

    @property
    def notes(self) -> list[str]:
        """What a caller must be told, a line for each state."""
        return [*map(str, self.states), *([] if self.config is None else [self.config.note])]

    def save(self, output: str | os.PathLike[str]) -> None:
        """Write the model, and what goes along with it."""
        self.closed.save(output)
        if self.config is not None:
            self.config.write()


def contract_of(original: Graph, small: Graph, source: object, output: str | os.PathLike[str] | None) -> Contract:
    """The contract of `small`, whose states are open, made of the file `source` (or a model) for `output`."""
    states, closed = narrowed_states(original, small), close_states(small)
    follow_metadata(closed, states)
    return Contract(closed, states, genai_config_for(source, output, states))


def genai_config_for(
    model: object, output: str | os.PathLike[str] | None, contract: Sequence[NarrowedState]
) -> GenaiConfig | None:
    """The configuration that lies beside the file `model`, for `output`; None where there is none, or no need."""
    if not isinstance(model, str | os.PathLike) or output is None or not contract:
        return None
    source, target = Path(model).parent / NAME, Path(output).parent / NAME
    if not source.is_file():
        return None
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
        changed = _changed(config, contract, Path(output).name)
        _check_target(source, target, Path(output).name)
    except (OSError, ValueError, _NotBroughtAlong) as error:
        return GenaiConfig(target, None, f"{NAME} is not brought along: {first_line(error)}")
    content = json.dumps(config, indent=4, ensure_ascii=False).encode() + b"\n"
    return GenaiConfig(target, content, f"{NAME} is written beside the model, with {', '.join(changed)}")


class _NotBroughtAlong(Exception):
    """Why the file would not be true."""


def _changed(config: Any, contract: Sequence[NarrowedState], name: str) -> list[str]:
    """Bring a configuration up to date, in place: what has changed in it."""
    try:
        decoder = config["model"]["decoder"]
        heads, width = decoder[_HEADS], decoder[_WIDTH]
        layers = int(decoder["num_hidden_layers"])
        patterns = [decoder["inputs"][key] for key in ("past_key_names", "past_value_names")]
        names = {pattern % layer for pattern in patterns for layer in range(layers)}
    except (KeyError, TypeError, ValueError) as error:
        raise _NotBroughtAlong(f"it does not say what its decoder's caches are ({error})") from None
    narrowed = {state.input: state for state in contract}
    missing = sorted(names - narrowed.keys())
    if missing:
        raise _NotBroughtAlong(f"cache '{missing[0]}' keeps its shape, and the file has one for all")
    old, new = ({_of_heads(getattr(narrowed[own], side)) for own in names} for side in ("old", "new"))
    if old != {(heads, width)}:
        raise _NotBroughtAlong(f"it says {heads} heads of {width}, which the model's caches are not")
    if len(new) != 1:
        shapes = " and ".join(f"{count} heads of {size}" for count, size in sorted(new, key=str))
        raise _NotBroughtAlong(f"caches are now of several shapes ({shapes}), and the file has one for all")
    (count, size), changed = new.pop(), list[str]()
    numbers = {_HEADS: count, _WIDTH: size}
    if isinstance(decoder.get(_QUERIES), int) and count != heads:
        numbers[_QUERIES] = decoder[_QUERIES] * int(count) // heads
    for key, value in numbers.items():
        if decoder[key] != value:
            changed.append(f"{key} {value} (was {decoder[key]})")
            decoder[key] = value
    decoder["filename"] = name
    return changed


def _of_heads(shape: Sequence[Size]) -> tuple[Size, Size]:
    """Heads and their width, of a cache (batch, heads, length, width)."""
    if len(shape) != 4:
        raise _NotBroughtAlong("the caches have no axis of heads")
    return shape[1], shape[3]


def _check_target(source: Path, target: Path, name: str) -> None:
    """Raise where the file of another model would be overwritten."""
    if target.exists() and source.samefile(target):
        raise _NotBroughtAlong("it is the original's, which lies in the same folder: write into a folder of its own")
    if target.exists():
        described = json.loads(target.read_text(encoding="utf-8"))["model"]["decoder"].get("filename")
        if described != name:
            raise _NotBroughtAlong(f"'{target}' is there already, for '{described}'")


def follow_metadata(small: Graph, contract: Sequence[NarrowedState]) -> None:
    """Bring numbers of heads, and their width, in a model's metadata up to date, in place."""
    caches = [state for state in contract if len(state.old) == 4]
    if not caches or len({(*state.old[1::2], *state.new[1::2]) for state in caches}) != 1:
        return
    old, new = caches[0].old[1::2], caches[0].new[1::2]
    for name, place in _METADATA.items():
        if old[place] != new[place] and small.metadata(name) == str(old[place]):
            small.set_metadata(name, str(new[place]))
