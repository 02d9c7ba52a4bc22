"""Claims of a study, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from relu_study.errors import UserError, nearest

DIRECTIONS = ("less", "greater", "equivalent")
EPOCHS = ("last", "min", "max")  # or a number


@dataclass(frozen=True)
class Target:
    """One target of a task: its variance (the best constant's squared error) and its floor (the least loss)."""

    name: str
    variance: float = 1.0
    floor: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One testable row of a claim; the rows that share `claim` are answered together by its `overall` row.

    The number of a run is `metric/site` at `epoch` ("last", a number, or "min"/"max" over all
    epochs), divided by `metric/over` where `over` names a site, turned into an indicator where
    `equals` is set, and with the target's floor taken off where `excess` is set. It is compared, seed by
    seed, with the same number of the arm `against` (at `against_epoch`, default `epoch`), or with
    a constant where `against` is a number. `arm` may be several labels: their mean, per seed.

    `margin` is the smallest difference that matters; it and a constant `against` are in units of the target's variance where
    `relative` is set. With `less` and `greater` a negative margin claims "no better than": `greater` with -0.05
    is confirmed when the interval lies wholly above -0.05.
    `against_dead_site` keeps the seeds whose `against` run ends with a dead site;
    `least_seeds` and `off_floor` (mean loss of the arm at least this share of the target's variance above the floor)
    say when a row is not testable. It is asked on `targets`; none named: wherever its arms are.
    """

    claim: str
    statement: str
    metric: str
    arm: str | tuple[str, ...]
    against: str | float
    direction: str
    margin: float
    site: str = "all"
    epoch: str | float = "last"
    against_epoch: str | float | None = None
    over: str | None = None
    equals: float | None = None
    excess: bool = False
    relative: bool = False
    against_dead_site: bool = False
    least_seeds: int = 2
    off_floor: float | None = None
    why: str = ""
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise nearest(self.direction, DIRECTIONS, f"direction of claim {self.claim}")
        for epoch in (self.epoch, self.against_epoch):
            if isinstance(epoch, str) and epoch not in EPOCHS:
                raise nearest(epoch, EPOCHS, f"epoch of claim {self.claim}")
        if self.direction == "equivalent" and self.margin <= 0:
            raise UserError(f"claim {self.claim}: an equivalence needs a margin above 0, not {self.margin:g}")


def check_epoch(epoch: Any, figure: str) -> None:
    """Refuse an epoch that is neither `last` nor a number from 0 on."""
    try:
        fine = epoch == "last" or 0 <= float(epoch) < math.inf
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise UserError(f"figure {figure}: the epoch must be 'last' or a number of at least 0, not {epoch!r}")


@dataclass(frozen=True)
class CellClaim:
    """One testable row of a claim about a number of one cell; rows that share `claim` have one `overall` answer.

    The mean of `number` (`at` a value of the factor that it runs along) is compared with `against`: a constant, "theory", or the
    label of another cell of the experiment. `margin` is the smallest difference that matters, in parts of it if `relative`.
    """

    claim: str
    statement: str
    experiment: str
    cell: str
    number: str
    against: float | str
    direction: str
    margin: float
    at: float | None = None
    relative: bool = False
    why: str = ""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise nearest(self.direction, DIRECTIONS, f"direction of claim {self.claim}")
        if self.direction == "equivalent" and self.margin <= 0:
            raise UserError(f"claim {self.claim}: an equivalence needs a margin above 0, not {self.margin:g}")
