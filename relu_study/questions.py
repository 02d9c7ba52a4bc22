"""What a study asks of its runs, and what it shows: claims, tables, figures and sections, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relu_study.registry import UserError, nearest
from relu_study.spec import FIELDS

DIRECTIONS = ("less", "greater", "equivalent")
EPOCHS = ("last", "min", "max")  # or a number
FIGURE_KINDS = ("curves", "survival", "forest", "depth", "histograms", "map")
FACTORS = (*(name for name in FIELDS if name != "seed"), "arm", "experiment")  # what a map may have as rows and columns


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


@dataclass(frozen=True)
class Table:
    """Arms of some experiments as rows, `metrics` ("metric", "metric/site" or "metric/site@epoch") as columns.

    `tune` names a swept field: its best value is chosen by `val_loss` on the even seeds
    and reported on the odd ones.
    """

    name: str
    caption: str
    experiments: tuple[str, ...]
    metrics: tuple[str, ...]
    epoch: str | float = "last"
    arms: tuple[str, ...] = ()
    baseline: str | None = None
    tune: str | None = None


@dataclass(frozen=True)
class Counts:
    """How many runs of each arm something happened to: one row an arm and target, with Wilson's 95 % interval of the last share.

    `keys` are the first columns: header -> a factor (a RunSpec field, `arm` or `experiment`), or what the label of an arm ("rai",
    or on one target "rai@abs") stands for there, a label that is not named standing as it is. Then comes `n`, the runs that are
    stored, then `events`: header -> metrics that are 0 or 1 ("collapsed", "collapsed@0"); a run counts once if any of them is 1,
    and one that went nonfinite before has no event. At an epoch of its own an event is one metric. `ci_lo` and `ci_hi` are those
    of the last event.
    """

    name: str
    caption: str
    experiments: tuple[str, ...]
    keys: Mapping[str, str | Mapping[str, str]]
    events: Mapping[str, tuple[str, ...]]
    arms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.events:
            raise UserError(f"table {self.name} counts no events; say which, e.g. events={{'collapsed': ('collapsed',)}}")
        for key in self.keys.values():
            if isinstance(key, str) and key not in FACTORS:
                raise nearest(key, FACTORS, f"factor among the keys of table {self.name}")


@dataclass(frozen=True)
class Figure:
    """A picture of one kind, of the arms of some experiments (none named: all) on each of their targets.

    - `curves`: mean and interval of `metrics` ("metric", "metric/site"; "metric/*": each site) over the epochs;
    - `survival`: the share of units not yet dead over the epochs, by site;
    - `forest`: the rows of `claims`, each effect with its interval and the range that was claimed;
    - `depth`: `metrics` that have sites, from the first site to the last, as quantiles over the runs at each `epoch`;
    - `histograms`: pre, post or gradient of a site ("post/site_1", "gradient/*") over the epochs, pooled over the runs;
    - `map`: the mean of `metrics` at `epoch` by two factors, `rows` and `cols`: RunSpec fields, `arm` or `experiment`.

    `log` asks for a logarithmic scale where one is possible; `depth` has one for norms without asking.
    """

    name: str
    caption: str
    kind: str
    experiments: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    log: bool = False
    rows: str | None = None
    cols: str | None = None
    epoch: str | float | tuple[str | float, ...] = "last"  # several for `depth` alone

    def __post_init__(self) -> None:
        if self.kind not in FIGURE_KINDS:
            raise nearest(self.kind, FIGURE_KINDS, f"kind of figure {self.name}")
        if not self.metrics and self.kind not in ("survival", "forest"):
            raise UserError(f"figure {self.name} is of kind {self.kind} and names no metrics; say which, e.g. metrics=(...,)")
        if self.kind == "forest" and not self.claims:
            raise UserError(f"figure {self.name} is a forest and names no claims; say which, e.g. claims=(...,)")
        for way, name in (("rows", self.rows), ("cols", self.cols)):
            if (name is None) == (self.kind == "map"):
                need = "needs a factor as" if name is None else "is no map and has no"
                raise UserError(f"figure {self.name} {need} {way}; a map has both: rows='activation', cols='learning_rate'")
            if name is not None and name not in FACTORS:
                raise nearest(name, FACTORS, f"factor as {way} of figure {self.name}")
        if self.rows is not None and self.rows == self.cols:
            raise UserError(f"figure {self.name} has {self.rows} as rows and as cols; name two factors")
        epochs = self.epoch if isinstance(self.epoch, (tuple, list)) else (self.epoch,)
        for epoch in epochs:
            _epoch_of(epoch, self.name)
        if self.kind not in ("depth", "map") and tuple(epochs) != ("last",):
            raise UserError(f"figure {self.name} is of kind {self.kind}, which shows every epoch; leave out epoch")
        if len(epochs) != 1 and self.kind == "map":
            raise UserError(f"figure {self.name} is a map and shows one epoch, not {len(epochs)}")


@dataclass(frozen=True)
class Section:
    """One question of the report: its prose, and the names of the tables, figures and claims that answer it."""

    title: str
    text: str
    claims: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


def _epoch_of(epoch: Any, figure: str) -> None:
    try:
        fine = epoch == "last" or 0 <= float(epoch) < math.inf
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise UserError(f"figure {figure}: the epoch must be 'last' or a number of at least 0, not {epoch!r}")
