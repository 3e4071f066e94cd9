"""`module:function`, as callers name their own functions and tables name ours."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any


def resolve(reference: str) -> Any:
    """What `module:name` (or `module:name.name`) stands for; raises whatever the import raises."""
    module, _, names = reference.partition(":")
    target: Any = import_module(module)
    for name in names.split("."):
        target = getattr(target, name)
    return target


def resolve_here(reference: str) -> Any:
    """The same for a caller's own module, which may lie in the current folder."""
    if os.getcwd() not in sys.path:
        # For good, as with `python -m`: the module may import its neighbours when the function runs.
        sys.path.insert(0, os.getcwd())
    return resolve(reference)
