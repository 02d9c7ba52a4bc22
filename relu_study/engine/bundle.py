"""Bundles: the many small arrays of a measurement, joined to one array per dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]  # name, dtype, and shape of a run's part, in the order of the arrays


@jax.tree_util.register_pytree_node_class
class Bundle:
    """Named arrays of W runs, joined to one array of W rows per dtype.

    A measurement has about a hundred small arrays. Each output of a program costs 40 microseconds of Python, more than its
    numbers cost to compute in a small study.
    """

    def __init__(self, joined: Mapping[str, Any], layout: Layout) -> None:
        # JAX also builds trees of shapes and of placeholders.
        self.joined, self.layout = dict(joined), layout

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Bundle:
        """Join arrays whose first axis is the runs. Moves no bit."""
        parts: dict[str, list[Array]] = {}
        for values in arrays.values():
            row = jax.lax.reshape(values, (values.shape[0], math.prod(values.shape[1:])))
            parts.setdefault(values.dtype.name, []).append(row)
        joined = {dtype: jax.lax.concatenate(rows, 1) for dtype, rows in parts.items()}
        return cls(joined, tuple((name, values.dtype.name, values.shape[1:]) for name, values in arrays.items()))

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[tuple[str, ...], Layout]]:
        return tuple(self.joined.values()), (tuple(self.joined), self.layout)

    @classmethod
    def tree_unflatten(cls, names_and_layout: tuple[tuple[str, ...], Layout], arrays: Sequence[Any]) -> Bundle:
        names, layout = names_and_layout
        return cls(dict(zip(names, arrays, strict=True)), layout)


def separate(bundles: Sequence[Bundle], runs: int) -> dict[str, np.ndarray]:
    """Wait for the bundles of E measurements, and return their arrays by name, of the first `runs` runs: runs x E x ..."""
    fetched = [jax.device_get(bundle.joined) for bundle in bundles]
    joined = {dtype: np.stack([one[dtype][:runs] for one in fetched], axis=1) for dtype in fetched[0]}
    arrays, at = {}, dict.fromkeys(joined, 0)
    for name, dtype, shape in bundles[0].layout:
        first, at[dtype] = at[dtype], at[dtype] + math.prod(shape)
        part = joined[dtype][:, :, first : at[dtype]]
        arrays[name] = part.reshape(*part.shape[:2], *shape).copy()
    return arrays
