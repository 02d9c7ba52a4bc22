"""Private JAX functions that the analysis of a jaxpr needs. No other module imports them."""

from __future__ import annotations

from typing import Any

from jax._src import source_info_util


def name_scopes(eqn: Any) -> tuple[str, ...]:
    """Return the names of `jax.named_scope` around an equation, outermost first: Linen modules put theirs there."""
    return tuple(part for part in str(eqn.source_info.name_stack).split("/") if part)


def source_line(eqn: Any) -> str:
    """Return "file.py:12" of the user's code that made an equation, or "" if JAX does not know it."""
    frame = source_info_util.user_frame(eqn.source_info.traceback)
    return f"{frame.file_name}:{frame.start_line}" if frame else ""


def evaluate(eqn: Any, values: list[Any]) -> list[Any]:
    """Bind an equation's primitive to values. Custom derivatives are bound whole and keep their rules."""
    results = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(results) if eqn.primitive.multiple_results else [results]
