"""relu_study: train thousands of small networks at once and see every unit that dies.

Everything below is imported when first used, so that words and reports never wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from relu_study.activations import activation as activation
    from relu_study.cell_report import load_cells as load_cells
    from relu_study.draws import CellClaim as CellClaim
    from relu_study.draws import CellFigure as CellFigure
    from relu_study.draws import CellTable as CellTable
    from relu_study.draws import Draws as Draws
    from relu_study.draws import DrawStudy as DrawStudy
    from relu_study.draws import crossed as crossed
    from relu_study.fingerprint import data_file as data_file
    from relu_study.frames import load as load
    from relu_study.initializers import initializer as initializer
    from relu_study.networks import network as network
    from relu_study.optimizers import optimizer as optimizer
    from relu_study.pictures import figure as figure
    from relu_study.pivot import compare as compare
    from relu_study.pivot import table as table
    from relu_study.questions import Claim as Claim
    from relu_study.questions import Counts as Counts
    from relu_study.questions import Figure as Figure
    from relu_study.questions import Section as Section
    from relu_study.questions import Table as Table
    from relu_study.questions import Target as Target
    from relu_study.registry import UserError as UserError
    from relu_study.runner import run as run
    from relu_study.runner import run_draws as run_draws
    from relu_study.spec import RunSpec as RunSpec
    from relu_study.statistics import Number as Number
    from relu_study.statistics import Theory as Theory
    from relu_study.statistics import statistic as statistic
    from relu_study.study import Experiment as Experiment
    from relu_study.study import Study as Study
    from relu_study.study import grid as grid
    from relu_study.tasks import Signature as Signature
    from relu_study.tasks import Task as Task
    from relu_study.tasks import task as task

_HOMES = {
    "spec": ("RunSpec",),
    "registry": ("UserError",),
    "questions": ("Claim", "Counts", "Figure", "Section", "Table", "Target"),
    "study": ("Experiment", "Study", "grid"),
    "draws": ("CellClaim", "CellFigure", "CellTable", "DrawStudy", "Draws", "crossed"),
    "statistics": ("Number", "Theory", "statistic"),
    "fingerprint": ("data_file",),
    "frames": ("load",),
    "pivot": ("compare", "table"),
    "pictures": ("figure",),
    "runner": ("run", "run_draws"),
    "cell_report": ("load_cells",),
    "activations": ("activation",),
    "initializers": ("initializer",),
    "optimizers": ("optimizer",),
    "networks": ("network",),
    "tasks": ("Signature", "Task", "task"),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"relu_study.{home}"), name)
    raise AttributeError(f"module 'relu_study' has no attribute {name!r}")
