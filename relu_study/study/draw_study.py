"""Draw experiments in words: which cells, how many draws, what is shown of them. Plain data, no JAX."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from relu_study.errors import UserError, nearest
from relu_study.study.claims import CellClaim
from relu_study.study.outputs import CellFigure, CellTable, Section

BLOCK = 1 << 14  # draws that are stored together
MOST_DRAWS = 2**32  # a draw's index is 32 bits wide


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
            raise UserError(f"experiment {self.name} has no cells; give it some, e.g. cells=grid_cells(width=(2, 3))")
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 1:
            raise UserError(f"experiment {self.name}: draws must be a whole number of at least 1, not {self.draws!r}")
        if self.draws > MOST_DRAWS:
            raise UserError(f"experiment {self.name}: draws must be at most 2^32, not {self.draws:,}; take fewer draws")


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

    def with_preset(self, preset: str | None = None, draws: int | None = None) -> DrawStudy:
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


def grid_cells(**values: Any) -> dict[str, dict[str, Any]]:
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
