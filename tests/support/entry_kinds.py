"""Small modules by kind of dependency, each with a text that its entry depends on and a replacement for the text."""

from __future__ import annotations

import entry_kinds_functions
import entry_kinds_syntax
import entry_kinds_values

HEAD = """
import collections, dataclasses, enum, functools, math, operator, typing
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
"""
# Form of a block: "=== name | text | replacement", then the source of a module that defines `entry`.
TEXT = entry_kinds_functions.TEXT + entry_kinds_syntax.TEXT + entry_kinds_values.TEXT


def kinds() -> dict[str, tuple[str, str, str]]:
    """Return the modules by name, with the replaced text and its replacement."""
    found = {}
    for block in TEXT.split("\n=== ")[1:]:
        first, code = block.split("\n", 1)
        name, old, new = (part.strip() for part in first.split(" | "))
        found[name] = (HEAD + code, old, new)
    return found
