"""Inputs of a program by their path in the arguments, and the layer that a parameter belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLLECTIONS = {"params", "batch_stats"}  # of Linen variables
PARAMETERS = {"kernel", "bias", "scale", "mean", "var", "w", "b", "weight", "weights", "gamma", "beta", "alpha", "embedding"}
BOXES = {"value", "raw_value"}  # of an NNX variable


@dataclass(frozen=True)
class Leaf:
    """One array among the arguments."""

    index: int
    argument: int
    keys: tuple[str, ...]  # its path in the argument; the argument's name if the argument is the array itself
    bare: bool  # the argument is the array itself

    @property
    def path(self) -> str:
        """The path, for example "blocks.3.up.kernel"."""
        return ".".join(self.keys)

    @property
    def layer(self) -> str:
        """The path of its layer, for example "blocks.3.up"."""
        keys = self.keys[1:] if len(self.keys) > 1 and self.keys[0] in COLLECTIONS else self.keys
        while len(keys) > 1 and (keys[-1].lower() in PARAMETERS or (keys[-1].isdigit() and keys[-2].isdigit())):
            keys = keys[:-1]
        return ".".join(keys)


def leaf_of(index: int, argument: int, name: str, path: Sequence[Any]) -> Leaf:
    """Return the leaf at a key path of `jax.tree_util` within the argument called `name`."""
    keys = tuple(_text(key) for key in path)
    if len(keys) > 1 and keys[-1] in BOXES:
        keys = keys[:-1]
    return Leaf(index, argument, keys or (name,), not keys)


def _text(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
