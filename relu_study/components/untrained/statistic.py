"""Statistics by name: random quantities of untrained networks, with their theory.

    @statistic("coin", factors={"p": 0.5}, numbers={"heads": Quantity("share of draws that show heads", share=True)},
               theory=lambda cell: {"heads": Theory(cell["p"])})
    def coin(cell, key):
        '''One throw.'''
        return {"heads": jax.random.bernoulli(key, cell["p"])}

`draw(cell, key)` is a pure function of one draw. The engine maps it over many keys and stores only sums. `cell` maps every
factor to a number or a name, a constant of the compiled program. A quantity that is NaN in a draw is undefined there and
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
      share: the value is 0 or 1 in each draw; its mean has a Wilson interval.
      along: the factor of a vector's entries.
      spread: range (low, high) of the stored distribution, for quantiles with a resolution of 1/2,048 of the range. Values
        outside count at the nearest end.
    """

    text: str
    unit: str = ""
    share: bool = False
    along: str = ""
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Theory:
    """The theoretical mean of a quantity, as a scalar or along its factor; NaN where no theorem applies.

    `error` is the standard error of a `value` that is itself estimated. `lower` and `upper` are proven bounds.
    """

    value: ArrayLike = np.nan
    error: ArrayLike = 0.0
    lower: ArrayLike = np.nan
    upper: ArrayLike = np.nan


@dataclass(frozen=True)
class Statistic:
    """A registered statistic: the pure function of one draw, with its quantities, factors and theory.

    Args:
      draw: `draw(cell, key)` -> quantity -> value.
      numbers: the quantities.
      factors: every factor with its default.
      along: `along(cell)` -> factor of a vector -> its values.
      theory: `theory(cell)` -> the theory of some quantities, in NumPy.
      check: `check(cell)` raises UserError for an invalid cell, before anything compiles.
      cost: `cost(cell)` -> approximate number of operations of a draw.
    """

    draw: Draw
    numbers: Mapping[str, Quantity]
    factors: Mapping[str, Any]
    along: Callable[[Cell], Mapping[str, Sequence[float]]] = field(default=lambda cell: {})
    theory: Callable[[Cell], Mapping[str, Theory]] = field(default=lambda cell: {})
    check: Callable[[Cell], None] = field(default=lambda cell: None)
    cost: Callable[[Cell], float] = field(default=lambda cell: 1e4)

    def cell(self, **values: Any) -> dict[str, Any]:
        """Return a cell with `values`, and the defaults of all other factors. Raises UserError for an invalid cell."""
        for name, value in values.items():
            if name not in self.factors:
                raise nearest(name, self.factors, "factor")
            if isinstance(self.factors[name], str) != isinstance(value, str):
                raise UserError(f"{name} must be a {'name' if isinstance(self.factors[name], str) else 'number'}, not {value!r}")
        whole = {**self.factors, **values}
        self.check(whole)
        return whole


def statistic(
    name: str, numbers: Mapping[str, Quantity], factors: Mapping[str, Any] | None = None, **functions: Any
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers a draw; `functions` are `along`, `theory`, `check` and `cost` of its `Statistic`."""

    def decorate(draw: Draw) -> Draw:
        statistics.add(name, Statistic(draw, numbers, factors or {}, **functions))
        return draw

    return decorate
