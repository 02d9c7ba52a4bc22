"""Registered statistics: random quantities of untrained networks, with their theory.

A statistic is one function of a cell and a key:

    @statistic("coin", factors={"p": 0.5}, numbers={"heads": Quantity("share of draws that show heads", share=True)},
               theory=lambda cell: {"heads": Theory(cell["p"])})
    def coin(cell, key):
        '''One throw.'''
        return {"heads": jax.random.bernoulli(key, cell["p"])}

The function is pure and returns the quantities of one draw. The engine maps it over many keys and stores only sums. `cell` maps
every factor to a number or a name. These values are constants of the compiled program. NaN marks an undefined quantity, which
does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, Key
from numpy.typing import ArrayLike

from relu_study.components.registry import statistics
from relu_study.errors import UserError, nearest

Cell = Mapping[str, Any]  # factor -> its value
Draw = Callable[[Cell, Key[Array, ""]], Mapping[str, Array]]


@dataclass(frozen=True)
class Quantity:
    """A quantity of a draw: a scalar, or a vector along the factor `along`.

    Args:
      text: description in reports.
      unit: unit in reports.
      share: whether the value is 0 or 1 in each draw. Its mean then has a Wilson interval.
      along: the factor that differs between the entries of a vector. Empty for a scalar.
      spread: range (low, high) of the stored distribution. Quantiles have a resolution of 1/2,048 of the range. Values outside
        count at the nearest end.
    """

    text: str
    unit: str = ""
    share: bool = False
    along: str = ""
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Theory:
    """The theoretical mean of a quantity: a scalar, or a vector along its factor. NaN marks values without a theorem.

    `error` is the standard error of an estimated `value`. `lower` and `upper` are proven bounds.
    """

    value: ArrayLike = np.nan
    error: ArrayLike = 0.0
    lower: ArrayLike = np.nan
    upper: ArrayLike = np.nan


@dataclass(frozen=True)
class Statistic:
    """A registered statistic: a pure function of one draw, with its quantities, factors and theory.

    Args:
      draw: `draw(cell, key)` returns quantity -> value.
      numbers: the quantities by name.
      factors: the default of every factor.
      along: `along(cell)` returns factor -> its values, for the factors of vectors.
      theory: `theory(cell)` returns quantity -> its theory, for some quantities, in NumPy.
      check: `check(cell)` raises UserError for an invalid cell, before anything compiles.
      cost: `cost(cell)` returns the approximate number of operations of a draw.
    """

    draw: Draw
    numbers: Mapping[str, Quantity]
    factors: Mapping[str, Any]
    along: Callable[[Cell], Mapping[str, Sequence[float]]] = field(default=lambda cell: {})
    theory: Callable[[Cell], Mapping[str, Theory]] = field(default=lambda cell: {})
    check: Callable[[Cell], None] = field(default=lambda cell: None)
    cost: Callable[[Cell], float] = field(default=lambda cell: 1e4)

    def cell(self, **values: Any) -> dict[str, Any]:
        """Return the cell of `values` and the defaults of all other factors. Raises UserError for an invalid cell."""
        for name, value in values.items():
            if name not in self.factors:
                raise nearest(name, self.factors, "factor")
            is_name = isinstance(self.factors[name], str)
            if is_name != isinstance(value, str):
                raise UserError(f"factor {name} is {value!r}. Give a {'name' if is_name else 'number'}.")
        cell = {**self.factors, **values}
        self.check(cell)
        return cell


def statistic(
    name: str, numbers: Mapping[str, Quantity], factors: Mapping[str, Any] | None = None, **functions: Any
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers a draw. `functions` are `along`, `theory`, `check` and `cost` of its `Statistic`."""

    def decorate(draw: Draw) -> Draw:
        statistics.add(name, Statistic(draw, numbers, factors or {}, **functions))
        return draw

    return decorate
