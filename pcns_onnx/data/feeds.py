"""Data as programs hold it: arrays and tensors of any library, and feeds, which are yielded one by one.

A feed is a mapping of input names to arrays, a tuple or list of arrays in the order of the inputs, or one array; labels
may follow, as a `DataLoader` gives them: (x, y), ({name: x}, y). It is what the model takes at once: one sample or
several. No library is imported for any of that: tensors are known by what they can do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pcns_onnx.data.columns import LABELS, Array, Column, Part, array_column, npy_column, refusing, wanted_names
from pcns_onnx.errors import InputError
from pcns_onnx.files import Scratch

ArrayLike: TypeAlias = Any
"""An array, or what turns into one: a tensor by `__array__` or DLPack."""
Feed: TypeAlias = Any
"""A mapping of names to arrays, arrays in the order of the inputs, or one array; perhaps with labels behind."""


def is_array(value: Any) -> bool:
    """Whether this is an array or a tensor, of whatever library."""
    return isinstance(value, np.ndarray | np.generic) or hasattr(value, "__dlpack__") or hasattr(value, "__array__")


def as_array(value: Any) -> Array:
    """An array of what was given; raises whatever that raises."""
    for step in ("detach", "cpu"):
        # PyTorch hands out neither what has a gradient nor what lies on a GPU.
        value = getattr(value, step)() if hasattr(value, step) and is_array(value) else value
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    array = np.asarray(value)
    is_text = array.dtype.hasobject and array.size and all(isinstance(item, str) for item in array.reshape(-1))
    return array.astype(str) if is_text else array


def is_per_input(source: Any, inputs: Sequence[str]) -> bool:
    """Whether this is a tuple of arrays, one for each input, perhaps with labels behind."""
    if not isinstance(source, tuple) or not source or not all(is_array(item) for item in source):
        return False
    more = len(source) - len(inputs)
    return more == 0 or (more == 1 and as_array(source[-1]).dtype.kind in "iub")


def once_only(source: Any) -> Iterator[Feed] | None:
    """The feeds of what gives others, or nothing, when it is gone through again; None for all else.

    A `DataLoader` shuffles, a `CalibrationDataReader` is at its end.
    """
    if isinstance(source, Iterator):
        return source
    if isinstance(source, type):
        return None
    if hasattr(source, "get_next"):
        return iter(source.get_next, None)
    is_loader = hasattr(source, "batch_sampler") and hasattr(source, "dataset")
    return iter(source) if is_loader else None


def again(source: Any) -> Callable[[], Iterable[Feed]] | None:
    """What gives the same feeds each time that it is called; None for what holds none."""
    if isinstance(source, type):
        return None
    if isinstance(source, Iterable):
        return source.__iter__
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return partial(_items, source)
    return None


def _items(source: Any) -> Iterator[Feed]:
    return (source[index] for index in range(len(source)))


def feed_parts(
    make: Callable[[], Iterable[Feed]], inputs: Sequence[str], needed: Sequence[str], where: str
) -> Iterator[Part]:
    """The feeds of one call of `make`, which is the user's code: whatever it raises is an InputError.

    Arrays without names are for the `needed` inputs.
    """
    with refusing(f"{where} failed", "it must yield mappings of input names to arrays"):
        feeds: Any = make()
        feeds = [feeds] if isinstance(feeds, Mapping) else feeds
        feeds = iter(feeds.get_next, None) if hasattr(feeds, "get_next") else feeds
        for index, feed in enumerate(feeds):
            named = in_order(feed, needed, f"{where}: feed {index}")
            yield array_part(named, inputs, f"{where}: feed {index}", is_feed=True)


def in_order(feed: Feed, inputs: Sequence[str], where: str) -> Mapping[str, Any]:
    """A feed by names; raises InputError where it is none."""
    if isinstance(feed, Mapping) or (hasattr(feed, "keys") and hasattr(feed, "__getitem__")):
        values = {name: feed[name] for name in feed.keys()}  # noqa: SIM118 - transformers' encodings iterate otherwise
        label = values.get("label")
        if label is not None and not {"label", LABELS} & {*inputs, *(values.keys() - {"label"})}:
            values |= {LABELS: values.pop("label")} if _is_integer(label) else {}
        return values
    if is_array(feed):
        feed = (feed,)
    if not isinstance(feed, tuple | list) or not feed:
        kinds = "a mapping of input names to arrays, or arrays in the order of the inputs"
        raise InputError(f"{where} is a {type(feed).__name__}: give {kinds}")
    first, *others = feed
    if isinstance(first, Mapping) and len(others) < 2:
        return {**first, **({LABELS: others[0]} if others and _is_integer(others[0]) else {})}
    if len(inputs) == 1 and not is_array(first) and not isinstance(first, list | tuple):
        return {inputs[0]: feed}
    if len(feed) > len(inputs) + 1:
        names = ", ".join(f"`{name}`" for name in inputs)
        raise InputError(f"{where} holds {len(feed)} arrays, the model takes {names}: give one for each, by name")
    named = dict(zip(inputs, feed, strict=False))
    if len(feed) > len(inputs) and _is_integer(feed[-1]):
        named[LABELS] = feed[-1]
    return named


def _is_integer(value: Any) -> bool:
    return as_array(value).dtype.kind in "iub"


def array_part(values: Mapping[str, Any], inputs: Sequence[str], where: str, *, is_feed: bool = False) -> Part:
    """Arrays by name, as far as the model has a use for them."""
    wanted = [name for name in wanted_names(inputs) if name in values]
    columns = {name: _value_column(values[name], f"{where}: `{name}`") for name in wanted}
    return Part(where, columns, tuple(str(name) for name in values if name not in wanted), is_feed)


def _value_column(value: Any, where: str) -> Column:
    with refusing(f"{where} is no array", "give a NumPy array"):
        array = as_array(value)
    return array_column(array, where)


class FeedSpool:
    """Replays an iterator: a feed is written to a temporary folder when it is first asked for.

    Only what is asked for is read, so an endless iterator is fine where the caller stops by itself. The
    folder goes when the spool does, or at exit.
    """

    def __init__(self, feeds: Iterator[Feed], inputs: Sequence[str], needed: Sequence[str]) -> None:
        self._fresh = feed_parts(lambda: feeds, inputs, needed, "data")
        self._kept: list[Part] = []
        self._failure: InputError | None = None
        scratch = Scratch()
        self._folder = Path(scratch.name)
        weakref.finalize(self, scratch.cleanup)

    def parts(self) -> Iterator[Part]:
        """All feeds from the first, those kept and then those to come."""
        index = 0
        while index < len(self._kept) or self._keep_next():
            yield self._kept[index]
            index += 1

    def _keep_next(self) -> bool:
        if self._failure is not None:
            # The iterator is finished after raising: another pass would take the rest for the whole.
            raise self._failure
        try:
            part = next(self._fresh, None)
            if part is not None:
                self._kept.append(self._written(part))
        except InputError as failure:
            self._failure = failure
            raise
        return part is not None

    def _written(self, part: Part) -> Part:
        columns: dict[str, Column] = {}
        for name, column in part.columns.items():
            path = self._folder / f"{len(self._kept)}-{len(columns)}.npy"
            values = column.whole()
            if column.dtype.isbuiltin == 2:
                # The .npy format knows no bfloat16 (nor its kin); float32 holds every value of it.
                values = values.astype(np.float32)
            with refusing(f"{column.where} cannot be kept in {self._folder}", "free space, or set TMPDIR"):
                np.save(path, values, allow_pickle=False)
            columns[name] = npy_column(path, column.where)
        return Part(part.where, columns, part.ignored, part.is_feed)
