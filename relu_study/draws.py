"""Draw experiments in words: which cells, how many draws, what is shown of them. Plain data, no JAX."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from relu_study.questions import DIRECTIONS, Section
from relu_study.registry import UserError, nearest

BLOCK = 1 << 14  # draws that are stored together
MOST_DRAWS = 2**32  # a draw's index is 32 bits wide
COLUMNS = (  # of cells.csv besides the factors, which stand after `cell_id`
    *("experiment", "cell", "statistic", "cell_id"),
    *("number", "draws", "n", "estimate", "ci_lo", "ci_hi", "std", "q05", "q25", "median", "q75", "q95"),
    *("theory", "theory_se", "lower", "upper", "z"),
)
KINDS = ("map", "lines")


@dataclass(frozen=True)
class Draws:
    """A draw experiment: `draws` draws of a statistic in each of its cells; nothing is trained.

    `cells` maps a label to the factors that differ from the statistic's defaults. `theory` names another draw experiment
    of the study, whose estimates (of the same number, at the same values of all factors that both have) are what this one
    should find.
    """

    name: str
    statistic: str
    cells: Mapping[str, Mapping[str, Any]]
    draws: int
    theory: str = ""
    title: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        if not self.cells:
            raise UserError(f"experiment {self.name} has no cells; give it some, e.g. cells=crossed(width=(2, 3))")
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 1:
            raise UserError(f"experiment {self.name}: draws must be a whole number of at least 1, not {self.draws!r}")
        if self.draws > MOST_DRAWS:
            raise UserError(f"experiment {self.name}: draws must be at most 2^32, not {self.draws:,}; take fewer draws")


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


@dataclass(frozen=True)
class DrawStudy:
    """A named set of draw experiments with the claims they answer; `presets` multiply their draws by `times`."""

    name: str
    title: str
    text: str
    experiments: Sequence[Draws]
    claims: Sequence[CellClaim] = ()
    tables: Sequence[CellTable] = ()
    figures: Sequence[CellFigure] = ()
    sections: Sequence[Section] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [e.name for e in self.experiments]
        if not names:
            raise UserError(f"study {self.name} declares no experiments; give it at least one Draws")
        if twice := {n for n in names if names.count(n) > 1}:
            raise UserError(f"study {self.name}: experiment {min(twice)!r} is declared twice")
        asked = [(e.theory, f"experiment as theory of {e.name}") for e in self.experiments if e.theory]
        asked += [(c.experiment, f"experiment in claim {c.claim}") for c in self.claims]
        shown: tuple[CellTable | CellFigure, ...] = (*self.tables, *self.figures)
        asked += [(name, f"experiment in {item.name}") for item in shown for name in item.experiments]
        for name, where in asked:
            if name not in names:
                raise nearest(name, names, where)
        for preset, changes in self.presets.items():
            for key in changes:
                if key != "times":
                    raise nearest(key, ("times",), f"setting of preset {preset}")

    def sized(self, preset: str | None = None, draws: int | None = None) -> DrawStudy:
        """This study at a preset's size; `draws`: at most so many in each cell."""
        if preset and preset != "default" and preset not in self.presets:
            raise nearest(preset, ["default", *self.presets], "preset")
        times = int(self.presets.get(preset or "default", {}).get("times", 1))
        sizes = {e.name: min(e.draws * times, draws or e.draws * times) for e in self.experiments}
        return replace(self, experiments=[replace(e, draws=sizes[e.name]) for e in self.experiments])

    def declaration(self) -> dict[str, Any]:
        """All of it but the cells as plain data for `manifest.json`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("experiments", "presets")}
        for name in ("claims", "tables", "figures", "sections"):
            plain[name] = [asdict(item) for item in plain[name]]
        kept = ("name", "statistic", "draws", "theory", "title", "text")
        return {**plain, "experiments": [{name: getattr(e, name) for name in kept} for e in self.experiments]}


@dataclass(frozen=True)
class Block:
    """Draws first..first + count - 1 of one cell: the unit of dispatch, of storage and of resuming, as a tile is of runs.

    `width` of them are made at a time by one program, which is that of the cell.
    """

    cohort: str  # the cell's id: a cell has a program of its own
    width: int
    statistic: str
    cell: tuple[tuple[str, Any], ...]
    first: int
    count: int
    cost: float  # operations of a draw

    @property
    def size(self) -> int:
        """Its draws."""
        return self.count

    @property
    def price(self) -> float:
        """Its cost beside that of other blocks."""
        return self.count * self.cost


def halved(blocks: Sequence[Block]) -> list[Block] | None:
    """The blocks of a cell drawn half as many at a time; None where that is one."""
    return [replace(block, width=block.width // 2) for block in blocks] if blocks[0].width > 1 else None


@dataclass(frozen=True)
class DrawPlan:
    """Everything that will be drawn, before anything is."""

    tiles: list[Block]  # the costliest first, so that devices finish together
    devices: int
    platform: str
    noun: str = "draws"

    def price(self, block: Block) -> float:
        """The cost of a block beside that of others."""
        return block.price

    def compiling(self, block: Block) -> float:
        """What compiling the program of a block's cell costs beside those of others: they are all alike."""
        return 1.0


def crossed(**values: Any) -> dict[str, dict[str, Any]]:
    """Cells for every combination of the factors' values, labelled "factor=value, ..." by those given as several.

    A single value is the same in all of them and stands in no label. Floats are labelled by six digits; two that these do not
    tell apart are refused (UserError).
    """
    several = {name: list(v) for name, v in values.items() if not isinstance(v, str) and isinstance(v, Sequence)}
    single = {name: v for name, v in values.items() if name not in several}
    found = {}
    for combo in itertools.product(*several.values()):
        pairs = dict(zip(several, combo, strict=True))
        label = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs.items()) or "all"
        if label in found:
            raise UserError(f"two cells are called {label!r}; give values that differ in six digits, or labels of your own")
        found[label] = {**single, **pairs}
    return found


def cell_id(statistic: str, cell: Mapping[str, Any]) -> str:
    """Hash of a cell's statistic and of its factors, in name order."""
    return hashlib.sha256(json.dumps([statistic, dict(cell)], sort_keys=True).encode()).hexdigest()[:12]


def blocks_of(draws: int) -> list[tuple[int, int]]:
    """(first, count) of the blocks that `draws` draws are stored in; only the last is not full."""
    return [(first, min(BLOCK, draws - first)) for first in range(0, draws, BLOCK)]
