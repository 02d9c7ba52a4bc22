"""Statistics by name: what is drawn of a network that is never trained.

    @statistic("coin", factors={"p": 0.5}, numbers={"heads": Quantity("share of draws that show heads", share=True)},
               theory=lambda cell: {"heads": Theory(cell["p"])})
    def coin(cell, key):
        '''One throw.'''
        return {"heads": jax.random.bernoulli(key, cell["p"])}

`draw(cell, key)` is a pure function of one draw: the engine maps it over very many keys and keeps sums alone. `cell` has a value
for every factor, plain numbers and names, fixed while the program is compiled. A number that is NaN in a draw is not defined
there, and is not counted.
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
    """One number that is drawn, or a vector of them: one for each value of the factor `along`.

    `share`: it is 0 or 1 in each draw, and its mean has a Wilson interval. `spread`: (low, high) between which its
    distribution is kept, for quantiles to a 2,048th of that range; what lies outside counts as the nearest end.
    """

    text: str
    unit: str = ""
    share: bool = False
    along: str = ""
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Theory:
    """What a number should be on average, as a scalar or along its factor; NaN where no theorem holds.

    `error` is the standard error of `value` where that is itself drawn or computed to a known error; `lower` and `upper` are
    proven bounds.
    """

    value: ArrayLike = np.nan
    error: ArrayLike = 0.0
    lower: ArrayLike = np.nan
    upper: ArrayLike = np.nan


@dataclass(frozen=True)
class Statistic:
    """One draw as a pure function, with all that is known of its numbers.

    `along(cell)` gives the values of every factor that a number runs along; `theory(cell)` what is known of some of the
    numbers, in NumPy; `check(cell)` refuses a cell (UserError) before anything compiles; `cost(cell)` is about how many
    operations a draw takes.
    """

    draw: Draw
    numbers: Mapping[str, Quantity]
    factors: Mapping[str, Any]
    along: Callable[[Cell], Mapping[str, Sequence[float]]] = field(default=lambda cell: {})
    theory: Callable[[Cell], Mapping[str, Theory]] = field(default=lambda cell: {})
    check: Callable[[Cell], None] = field(default=lambda cell: None)
    cost: Callable[[Cell], float] = field(default=lambda cell: 1e4)

    def cell(self, **values: Any) -> dict[str, Any]:
        """A cell with every factor: those not named at their defaults; an unknown one is refused by name."""
        for name, value in values.items():
            if name not in self.factors:
                raise nearest(name, self.factors, "factor")
            if isinstance(self.factors[name], str) != isinstance(value, str):
                raise UserError(f"{name} must be a {'name' if isinstance(self.factors[name], str) else 'number'}, not {value!r}")
        whole = {**self.factors, **values}
        self.check(whole)
        return whole


def statistic(
    name: str, numbers: Mapping[str, Quantity], factors: Mapping[str, Any] | None = None, **known: Any
) -> Callable[[Draw], Draw]:
    """Register a draw under a name; `known` are `along`, `theory`, `check` and `cost` of its `Statistic`."""

    def keep(draw: Draw) -> Draw:
        statistics.add(name, Statistic(draw, numbers, factors or {}, **known))
        return draw

    return keep
