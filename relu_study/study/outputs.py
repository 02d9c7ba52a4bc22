"""What a study asks of its runs, and what it shows: claims, tables, figures and sections, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relu_study.errors import UserError, nearest
from relu_study.study.claims import check_epoch
from relu_study.study.run_spec import FIELDS

KINDS = ("map", "lines")
FIGURE_KINDS = ("curves", "survival", "forest", "depth", "histograms", "map")
FACTORS = (*(name for name in FIELDS if name != "seed"), "arm", "experiment")  # what a map may have as rows and columns


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
class EventTable:
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
            check_epoch(epoch, self.name)
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


@dataclass(frozen=True)
class CellTable:
    """Rows of cells.csv as a table: of some experiments, those that meet every condition of `where`.

    `columns` maps a header to a column of cells.csv. The CSV file has all rows; `shown` are conditions for those that are
    printed too, in Markdown and LaTeX. Where `levels` are given, a row is a cell, and for each of `columns` and each level it
    has the greatest value of the factor `along` up to which that column is at most the level, also between the values drawn.
    Rows stand in the order of the cells, or by the column `sort`, those without a value first.
    """

    name: str
    caption: str
    experiments: tuple[str, ...]
    columns: Mapping[str, str]
    where: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    along: str = ""
    levels: tuple[float, ...] = ()
    sort: str = ""


@dataclass(frozen=True)
class CellFigure:
    """A picture of the rows of cells.csv that meet every condition of `where`.

    - `map`: a number over two factors, `rows` and `cols`; its colours run over its values, or `between` two numbers;
    - `lines`: a number along the factor `cols`, a line for each value of `rows`, with its interval, or with its quantiles where
      it has some; what theory says of it dotted, with crosses, and with `bounds` its bounds dashed.

    One picture has a panel for each value of `by` (a factor, `experiment` or `number`).
    """

    name: str
    caption: str
    kind: str
    experiments: tuple[str, ...]
    cols: str
    rows: str = ""
    by: str = ""
    number: str = ""  # none: every number of these experiments
    column: str = "estimate"
    where: tuple[str, ...] = ()
    log: bool = False
    log_cols: bool = False  # of lines
    between: tuple[float, float] | None = None
    bounds: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise nearest(self.kind, KINDS, f"kind of figure {self.name}")
        if self.kind == "map" and not self.rows:
            raise UserError(f"figure {self.name} needs a factor as rows; a map has both: rows='width', cols='layers'")
