"""Private JAX functions that the analysis of a jaxpr needs. No other module imports them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flax
from jax._src import source_info_util

# Code of these packages is not the user's: a site in it has the line of the user's call.
LIBRARIES = tuple(str(folder) + os.sep for folder in (Path(__file__).parent, Path(flax.__file__).parent))


def name_scopes(eqn: Any) -> tuple[str, ...]:
    """Return the names of `jax.named_scope` around an equation, outermost first: Linen modules put theirs there."""
    return tuple(part for part in str(eqn.source_info.name_stack).split("/") if part)


def source_line(eqn: Any) -> str:
    """Return "file.py:12" of the user's code that made an equation, or "" if JAX does not know it."""
    for frame in source_info_util.user_frames(eqn.source_info.traceback):
        if not frame.file_name.startswith(LIBRARIES):
            return f"{frame.file_name}:{frame.start_line}"
    return ""


def differs_by_device(aval: Any) -> bool:
    """Whether an array inside shard_map has other values on other devices."""
    return bool(getattr(getattr(aval, "mat", None), "varying", ()) or getattr(aval, "vma", ()))


def evaluate(eqn: Any, values: list[Any]) -> list[Any]:
    """Bind an equation's primitive to values. Custom derivatives are bound whole and keep their rules."""
    results = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]
