"""Claims of a study, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from relu_study.errors import UserError, nearest
from relu_study.study.epochs import parse_epoch

DIRECTIONS = ("less", "greater", "equivalent")
EPOCHS = ("last", "min", "max")  # or a number


@dataclass(frozen=True)
class Target:
    """One target of a task, with its `variance` (squared error of the best constant) and its `floor` (smallest possible loss)."""

    name: str
    variance: float = 1.0
    floor: float = 0.0


@dataclass(frozen=True)
class Claim:
    """One testable row of a claim: a contrast between two arms, or between an arm and a constant.

    Rows with the same `claim` share one `overall` verdict. The value of a run is `metric/site` at `epoch`:

    - `epoch` is "last", a number, or "min"/"max" over all epochs;
    - `over` names a site; the value is then divided by `metric/over`;
    - `equals` turns the value into the indicator of that number;
    - `excess` subtracts the target's floor.

    Args:
      arm: one label, or several; several are averaged per seed.
      against: a label, compared seed by seed at `against_epoch` (default: `epoch`) and `against_site` (default: `site`), or
        a constant.
      direction: "less", "greater" or "equivalent".
      margin: the smallest difference that matters. With `less` and `greater` a negative margin claims "no better than":
        `greater` with -0.05 is confirmed if the whole interval is above -0.05.
      relative: `margin` and a constant `against` are in units of the target's variance.
      against_dead_site: use only the seeds whose `against` run ends with a dead site.
      least_seeds: a row with fewer seeds is not testable.
      off_floor: a row is testable only if the arm's mean loss exceeds the floor by this share of the target's variance.
      targets: targets of the row; empty: every target that all its arms have.

    Raises:
      UserError: for an unknown direction or epoch, an equivalence without a positive margin, or the site of a constant.
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
    against_site: str | None = None

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise nearest(self.direction, DIRECTIONS, f"direction of claim {self.claim}")
        if self.against_site is not None and not isinstance(self.against, str):
            raise UserError(f"claim {self.claim}: a constant has no site. Omit against_site, or compare with an arm.")
        for epoch in (self.epoch, self.against_epoch):
            if epoch is not None:
                parse_epoch(epoch, f"claim {self.claim}", EPOCHS)
        if self.direction == "equivalent" and self.margin <= 0:
            raise UserError(f"claim {self.claim}: an equivalence needs a margin above 0, not {self.margin:g}")


@dataclass(frozen=True)
class CellClaim:
    """One testable row of a claim about a quantity of one cell of a draw study.

    Rows with the same `claim` share one `overall` verdict.

    Args:
      number: the quantity whose mean is compared.
      at: value of the factor along which the quantity is an array; None for a scalar.
      against: a constant, "theory", or the label of another cell of the experiment.
      margin: the smallest difference that matters, as a share of `against` if `relative`.

    Raises:
      UserError: for an unknown direction, or an equivalence without a positive margin.
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
