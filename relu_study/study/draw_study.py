"""Draw studies as plain data: cells, numbers of draws, claims, tables and figures. No JAX."""

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

BLOCK = 1 << 14  # draws stored in one file
MAX_DRAWS = 2**32  # a draw's index has 32 bits


@dataclass(frozen=True)
class Draws:
    """A draw experiment: `draws` independent draws of a statistic in each cell. Nothing is trained.

    Args:
      cells: label -> the factors that differ from the statistic's defaults.
      draws: draws per cell, from 1 to 2^32.
      theory: another draw experiment of the study. Its estimates of the same quantity, at equal values of all shared
        factors, are the theory of this one.

    Raises:
      UserError: for an experiment without cells, or an invalid number of draws.
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
            raise UserError(f"experiment {self.name} has no cells. Give it some, e.g. cells=grid_cells(width=(2, 3))")
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 1:
            raise UserError(f"experiment {self.name}: draws must be a whole number of at least 1, not {self.draws!r}")
        if self.draws > MAX_DRAWS:
            raise UserError(f"experiment {self.name}: draws must be at most 2^32, not {self.draws:,}. Take fewer draws")


@dataclass(frozen=True)
class DrawStudy:
    """A named set of draw experiments with their claims, tables and figures.

    `presets` maps a name to `{"times": n}`, a factor on every number of draws.

    Raises:
      UserError: for no experiments, a repeated name, or a reference to an unknown experiment or setting.
    """

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
            raise UserError(f"study {self.name} declares no experiments. Give it at least one Draws")
        if repeated := {n for n in names if names.count(n) > 1}:
            raise UserError(f"study {self.name}: experiment {min(repeated)!r} is declared twice")
        references = [(e.theory, f"experiment as theory of {e.name}") for e in self.experiments if e.theory]
        references += [(c.experiment, f"experiment in claim {c.claim}") for c in self.claims]
        outputs: tuple[CellTable | CellFigure, ...] = (*self.tables, *self.figures)
        references += [(name, f"experiment in {item.name}") for item in outputs for name in item.experiments]
        for name, place in references:
            if name not in names:
                raise nearest(name, names, place)
        for preset, changes in self.presets.items():
            for key in changes:
                if key != "times":
                    raise nearest(key, ("times",), f"setting of preset {preset}")

    def with_preset(self, preset: str | None = None, draws: int | None = None) -> DrawStudy:
        """Return this study at a preset's size, with at most `draws` draws per cell."""
        if preset and preset != "default" and preset not in self.presets:
            raise nearest(preset, ["default", *self.presets], "preset")
        times = int(self.presets.get(preset or "default", {}).get("times", 1))
        sizes = {e.name: min(e.draws * times, draws or e.draws * times) for e in self.experiments}
        return replace(self, experiments=[replace(e, draws=sizes[e.name]) for e in self.experiments])

    def declaration(self) -> dict[str, Any]:
        """Return the study without its cells as plain data for `manifest.json`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("experiments", "presets")}
        for name in ("claims", "tables", "figures", "sections"):
            plain[name] = [asdict(item) for item in plain[name]]
        columns = ("name", "statistic", "draws", "theory", "title", "text")
        return {**plain, "experiments": [{name: getattr(e, name) for name in columns} for e in self.experiments]}


def grid_cells(**values: Any) -> dict[str, dict[str, Any]]:
    """Return the cells of every combination of the factors' values, by label.

    A factor given as a sequence varies and appears in the labels, "factor=value, ...". A single value is shared by all
    cells and appears in no label. Labels show floats to six digits.

    Raises:
      UserError: if two cells have the same label.
    """
    varied = {name: list(v) for name, v in values.items() if not isinstance(v, str) and isinstance(v, Sequence)}
    shared = {name: v for name, v in values.items() if name not in varied}
    cells = {}
    for combo in itertools.product(*varied.values()):
        pairs = dict(zip(varied, combo, strict=True))
        label = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs.items()) or "all"
        if label in cells:
            raise UserError(f"two cells are called {label!r}. Give values that differ in six digits, or labels instead of a grid")
        cells[label] = {**shared, **pairs}
    return cells


def cell_id(statistic: str, cell: Mapping[str, Any]) -> str:
    """Hash of a cell's statistic and of its factors, in name order."""
    return hashlib.sha256(json.dumps([statistic, dict(cell)], sort_keys=True).encode()).hexdigest()[:12]


def blocks_of(draws: int) -> list[tuple[int, int]]:
    """(first, count) of the blocks that `draws` draws are stored in; only the last is not full."""
    return [(first, min(BLOCK, draws - first)) for first in range(0, draws, BLOCK)]
