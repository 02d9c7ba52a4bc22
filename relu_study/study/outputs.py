"""Tables, figures and sections of a study, as plain data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from relu_study.errors import UserError, nearest
from relu_study.study.epochs import parse_epoch
from relu_study.study.options import could_be_option
from relu_study.study.run_spec import FIELDS

KINDS = ("map", "lines")
FIGURE_KINDS = ("curves", "survival", "forest", "depth", "histograms", "map")
FACTORS = (*(name for name in FIELDS if name != "seed"), "arm", "experiment")  # and the options of a study


@dataclass(frozen=True)
class Table:
    """A table with the arms of some experiments as rows and metrics as columns.

    Args:
      metrics: columns, as "metric", "metric/site" or "metric/site@epoch".
      epoch: epoch of the columns that name none.
      arms: labels of the rows; empty: every arm.
      baseline: label of the arm with which the others are compared.
      tune: a swept field or option. Its best value is chosen by `val_loss` on the even seeds and reported on the odd ones.
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
    """A table of event counts: one row per arm and target, with a Wilson 95 % interval of the last event's share.

    The columns are `keys`, `n` (the number of stored runs), `events`, and `ci_lo` and `ci_hi` of the last event.

    Args:
      keys: header -> a factor (a RunSpec field, an option, `arm` or `experiment`), or a mapping from an arm's label ("rai", or
        "rai@abs" on one target) to the printed text. A label without an entry is printed unchanged.
      events: header -> metrics with values 0 or 1 ("collapsed", "collapsed@0"). A run counts once if any of them is 1.
        A run that is nonfinite by then has no event. An event at a given epoch has one metric.
      arms: labels of the rows; empty: every arm.

    Raises:
      UserError: for no events, or an unknown factor among the keys.
    """

    name: str
    caption: str
    experiments: tuple[str, ...]
    keys: Mapping[str, str | Mapping[str, str]]
    events: Mapping[str, tuple[str, ...]]
    arms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.events:
            raise UserError(f"table {self.name} counts no events. Name some, e.g. events={{'collapsed': ('collapsed',)}}")
        _check_possible(self)


@dataclass(frozen=True)
class Figure:
    """A figure of one kind, of the arms of some experiments (default: all) on each of their targets.

    Kinds:

    - `curves`: mean and interval of `metrics` ("metric", "metric/site"; "metric/*": each site) over the epochs;
    - `survival`: the share of units not yet dead over the epochs, by site;
    - `forest`: the rows of `claims`, each effect with its interval and the claimed range;
    - `depth`: `metrics` with sites, from the first site to the last, as quantiles over the runs at each `epoch`;
    - `histograms`: pre, post or gradient of a site ("post/site_1", "gradient/*") over the epochs, pooled over the runs;
    - `map`: the mean of `metrics` at `epoch` by two factors, `rows` and `cols`: RunSpec fields, options, `arm` or `experiment`.

    `log` requests a logarithmic scale where one is possible. `depth` always has one for norms.

    Raises:
      UserError: for an unknown kind or factor, missing metrics, claims or factors, or an invalid epoch.
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
    epoch: str | float | tuple[str | float, ...] = "last"  # several only for `depth`

    def __post_init__(self) -> None:
        if self.kind not in FIGURE_KINDS:
            raise nearest(self.kind, FIGURE_KINDS, f"kind of figure {self.name}")
        if not self.metrics and self.kind not in ("survival", "forest"):
            raise UserError(f"figure {self.name} is of kind {self.kind} and names no metrics. Name some, e.g. metrics=(...,)")
        if self.kind == "forest" and not self.claims:
            raise UserError(f"figure {self.name} is a forest and names no claims. Name some, e.g. claims=(...,)")
        for axis, name in (("rows", self.rows), ("cols", self.cols)):
            if (name is None) == (self.kind == "map"):
                need = "needs a factor as" if name is None else "is no map and has no"
                raise UserError(f"figure {self.name} {need} {axis}. Only a map has both: rows='activation', cols='learning_rate'")
        _check_possible(self)
        if self.rows is not None and self.rows == self.cols:
            raise UserError(f"figure {self.name} has {self.rows} as rows and as cols. Name two factors")
        for epoch in self.epochs:
            parse_epoch(epoch, f"figure {self.name}")
        if self.kind not in ("depth", "map") and self.epochs != ("last",):
            raise UserError(f"figure {self.name} is of kind {self.kind}, which shows every epoch. Leave out epoch")
        if len(self.epochs) != 1 and self.kind == "map":
            raise UserError(f"figure {self.name} is a map and shows one epoch, not {len(self.epochs)}. Name one")

    @property
    def epochs(self) -> tuple[str | float, ...]:
        """The epochs shown by a figure of kind `depth` or `map`."""
        return tuple(self.epoch) if isinstance(self.epoch, (tuple, list)) else (self.epoch,)


def check_factors(outputs: Iterable[Table | EventTable | Figure], options: Collection[str]) -> None:
    """Raise UserError (with the nearest names) for a factor that is neither a RunSpec field nor one of the study's `options`."""
    for item in outputs:
        for name, kind, names in _factors(item):
            if name not in (*names, *options):
                raise nearest(name, (*names, *options), kind)


def _check_possible(item: EventTable | Figure) -> None:
    """Raise UserError for a factor that no study can have. The options of the study are not known here."""
    for name, kind, names in _factors(item):
        if name not in names and not could_be_option(name):
            raise nearest(name, names, kind)


def _factors(item: Table | EventTable | Figure) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield each factor of a table or figure, its kind in errors, and the factors that need no option."""
    if isinstance(item, Table):
        if item.tune:
            yield item.tune, f"tuned field of table {item.name}", FIELDS
    elif isinstance(item, EventTable):
        for key in item.keys.values():
            if isinstance(key, str):
                yield key, f"factor among the keys of table {item.name}", FACTORS
    else:
        for axis, name in (("rows", item.rows), ("cols", item.cols)):
            if name is not None:
                yield name, f"factor as {axis} of figure {item.name}", FACTORS


@dataclass(frozen=True)
class Section:
    """One section of the report: a question, its prose, and the names of the tables, figures and claims that answer it."""

    title: str
    text: str
    claims: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellTable:
    """A table of the rows of cells.csv that meet every condition of `where`, for some experiments.

    Args:
      columns: header -> a column of cells.csv.
      where: conditions on the rows, e.g. "width>=4".
      shown: further conditions on the rows of the Markdown and LaTeX files. The CSV file has all rows.
      along: a factor; needed with `levels`.
      levels: thresholds. A row is then one cell. For each column and level it has the greatest value of `along` up to which
        the column is at most the level, interpolated between the values drawn.
      sort: a column to sort by, rows without a value first; empty: the order of the cells.
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
    """A figure of the rows of cells.csv that meet every condition of `where`.

    Kinds:

    - `map`: a quantity over two factors, `rows` and `cols`. The colour scale spans its values, or `between` two numbers.
    - `lines`: a quantity along the factor `cols`, one line per value of `rows`, with its quantiles if it has some, else its
      interval. Theory is dotted with crosses; `bounds` adds the proven bounds, dashed.

    The figure has one panel per value of `by` (a factor, `experiment` or `number`).

    Raises:
      UserError: for an unknown kind, or a map without rows.
    """

    name: str
    caption: str
    kind: str
    experiments: tuple[str, ...]
    cols: str
    rows: str = ""
    by: str = ""
    number: str = ""  # empty: every quantity of these experiments
    column: str = "estimate"
    where: tuple[str, ...] = ()
    log: bool = False
    log_cols: bool = False  # only for lines
    between: tuple[float, float] | None = None
    bounds: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise nearest(self.kind, KINDS, f"kind of figure {self.name}")
        if self.kind == "map" and not self.rows:
            raise UserError(f"figure {self.name} needs a factor as rows. A map has both: rows='width', cols='layers'")
