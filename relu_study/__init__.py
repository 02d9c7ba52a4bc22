"""relu_study: train thousands of small networks at once and count every dead unit.

Public names are imported on first use. The command line's help and reports therefore never import JAX.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

IMPORTED = time.time()  # sources that are newer may differ from the modules of this process

if TYPE_CHECKING:
    from relu_study.components.activations import activation as activation
    from relu_study.components.initializers import initializer as initializer
    from relu_study.components.layers import Activate as Activate
    from relu_study.components.networks import network as network
    from relu_study.components.optimizers import optimizer as optimizer
    from relu_study.components.tasks.own_arrays import task_from_arrays as task_from_arrays
    from relu_study.components.tasks.task import Signature as Signature
    from relu_study.components.tasks.task import Task as Task
    from relu_study.components.tasks.task import task as task
    from relu_study.components.untrained.statistic import Quantity as Quantity
    from relu_study.components.untrained.statistic import Theory as Theory
    from relu_study.components.untrained.statistic import statistic as statistic
    from relu_study.diagnosis.finding import Finding as Finding
    from relu_study.diagnosis.finding import MemberFinding as MemberFinding
    from relu_study.errors import UserError as UserError
    from relu_study.monitor.checkpoints import monitor_checkpoints as monitor_checkpoints
    from relu_study.monitor.measurement import Measurement as Measurement
    from relu_study.monitor.monitor import Monitor as Monitor
    from relu_study.monitor.monitor import MonitorWarning as MonitorWarning
    from relu_study.report.cell_report import load_cells as load_cells
    from relu_study.report.figures.on_demand import figure as figure
    from relu_study.report.tables.pivot_table import compare as compare
    from relu_study.report.tables.pivot_table import table as table
    from relu_study.runner.callback import Callback as Callback
    from relu_study.runner.replay import replay as replay
    from relu_study.runner.run import run as run
    from relu_study.runner.run import run_draws as run_draws
    from relu_study.storage.frames import load as load
    from relu_study.study.claims import CellClaim as CellClaim
    from relu_study.study.claims import Claim as Claim
    from relu_study.study.claims import Target as Target
    from relu_study.study.data_files import data_file as data_file
    from relu_study.study.draw_study import Draws as Draws
    from relu_study.study.draw_study import DrawStudy as DrawStudy
    from relu_study.study.draw_study import grid_cells as grid_cells
    from relu_study.study.outputs import CellFigure as CellFigure
    from relu_study.study.outputs import CellTable as CellTable
    from relu_study.study.outputs import EventTable as EventTable
    from relu_study.study.outputs import Figure as Figure
    from relu_study.study.outputs import Section as Section
    from relu_study.study.outputs import Table as Table
    from relu_study.study.run_spec import RunSpec as RunSpec
    from relu_study.study.study import Experiment as Experiment
    from relu_study.study.study import Study as Study
    from relu_study.study.study import grid as grid
    from relu_study.watch.find import Site as Site
    from relu_study.watch.find import find_sites as find_sites
    from relu_study.watch.inspection import Inspection as Inspection
    from relu_study.watch.inspection import inspect as inspect
    from relu_study.watch.tap import Tap as Tap
    from relu_study.watch.tap import tap as tap

_MODULES = {
    "components.activations": ("activation",),
    "components.initializers": ("initializer",),
    "components.layers": ("Activate",),
    "components.networks": ("network",),
    "components.optimizers": ("optimizer",),
    "components.tasks.own_arrays": ("task_from_arrays",),
    "components.tasks.task": (
        "Signature",
        "Task",
        "task",
    ),
    "components.untrained.statistic": (
        "Quantity",
        "Theory",
        "statistic",
    ),
    "diagnosis.finding": (
        "Finding",
        "MemberFinding",
    ),
    "errors": ("UserError",),
    "monitor.checkpoints": ("monitor_checkpoints",),
    "monitor.measurement": ("Measurement",),
    "monitor.monitor": (
        "Monitor",
        "MonitorWarning",
    ),
    "report.cell_report": ("load_cells",),
    "report.figures.on_demand": ("figure",),
    "report.tables.pivot_table": (
        "compare",
        "table",
    ),
    "runner.callback": ("Callback",),
    "runner.replay": ("replay",),
    "runner.run": (
        "run",
        "run_draws",
    ),
    "storage.frames": ("load",),
    "study.claims": (
        "CellClaim",
        "Claim",
        "Target",
    ),
    "study.draw_study": (
        "Draws",
        "DrawStudy",
        "grid_cells",
    ),
    "study.data_files": ("data_file",),
    "study.outputs": (
        "CellFigure",
        "CellTable",
        "EventTable",
        "Figure",
        "Section",
        "Table",
    ),
    "study.run_spec": ("RunSpec",),
    "study.study": (
        "Experiment",
        "Study",
        "grid",
    ),
    "watch.find": (
        "Site",
        "find_sites",
    ),
    "watch.inspection": (
        "Inspection",
        "inspect",
    ),
    "watch.tap": (
        "Tap",
        "tap",
    ),
}
__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"relu_study.{module}"), name)
    raise AttributeError(f"module 'relu_study' has no attribute {name!r}")
