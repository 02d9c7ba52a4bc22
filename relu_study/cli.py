"""The door: `relu-study list | plan | run | report | view`. JAX is imported only when something will be trained."""

from __future__ import annotations

import ast
import importlib.util
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from relu_study.registry import UserError, nearest

if TYPE_CHECKING:
    from relu_study.plan import Plan
    from relu_study.study import Study

INTERRUPTED = 130


# ------------------------------------------------------------------------------------------ studies


def studies() -> dict[str, Path]:
    """The studies by name: from a clone's `benchmarks`, or from an installed wheel."""
    here = Path(__file__).resolve().parent
    for folder in (here.parent / "benchmarks", here / "benchmarks"):
        if (folder / "article.py").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
    return {}


def find_study(name: str) -> Path:
    """The file of a study, by name or by path."""
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no study file {name}; give a path to a Python file, or one of: {', '.join(studies())}")
        return path
    known = studies()
    if name not in known:
        raise nearest(name, known, "study")
    return known[name]


def load_study(path: Path) -> Study:
    """Run a study file (it is Python, and does what it contains) and take the Study it declares."""
    from relu_study.study import Study

    module_spec = importlib.util.spec_from_file_location(f"relu_study_of_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{path} is no Python file; a study's file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:
        at = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        line = f", line {at[-1]}" if at else f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        said = " ".join(str(error).split())
        raise UserError(f"{path}{line} raises {type(error).__name__}{': ' if said else ''}{said}") from None
    found = list({id(value): value for value in vars(module).values() if isinstance(value, Study)}.values())
    if not found:
        raise UserError(f"{path} declares no Study; assign one to a name, e.g. study = Study(...)")
    if len(found) > 1:
        raise UserError(f"{path} declares {len(found)} studies; keep one to a file")
    return found[0]


# ----------------------------------------------------------------------------------------- commands

StudyName = Annotated[Positional[str], arg(metavar="STUDY")]
Folder = Annotated[Positional[str], arg(metavar="DIR")]


def list_studies() -> None:
    """Name every study and what it asks."""
    for name, path in studies().items():
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        print(f"{name:<16}{about}")


def show_plan(
    study: StudyName,
    preset: str = "default",
    seeds: int | None = None,
    epochs: float | None = None,
    probe_examples: int | None = None,
    val_examples: str = "8192",
    out: str | None = None,
) -> None:
    """Print cohorts, tiles, compilations, memory and time before anything runs.

    Args:
        study: A study's name, or the path of a study file.
        preset: The size of the study.
        seeds: Seeds of each configuration.
        epochs: Epochs of every run.
        probe_examples: Training examples in the probe set.
        val_examples: Validation rows that val_loss reads: a number or "all".
        out: The results folder; what it holds is not planned again.
    """
    declared, folder, probing = _asked(study, preset, seeds, epochs, probe_examples, val_examples, out)
    from relu_study.job import prepare
    from relu_study.runner import use_devices

    use_devices()
    job = prepare(declared, folder, probing)
    print_plan(job.plan, job.stored, f"{declared.name}: {declared.title}")


def run(
    study: StudyName,
    preset: str = "default",
    seeds: int | None = None,
    epochs: float | None = None,
    only: str | None = None,
    like: str | None = None,
    probe_examples: int | None = None,
    val_examples: str = "8192",
    all_epochs: bool = False,
    out: str | None = None,
) -> int:
    """Train a study and write its results folder; run it again to go on where it stopped.

    Args:
        study: A study's name, or the path of a study file (it is Python: it does what it contains).
        preset: The size of the study, e.g. "full".
        seeds: Seeds of each configuration.
        epochs: Epochs of every run.
        only: A run_id: train that run alone and print its row of runs.csv; writes a folder only with --out.
        like: With --only: the results folder of the sweep, whose tile widths are taken (default results/STUDY).
        probe_examples: Training examples in the probe set (default 8192, or all where there are fewer).
        val_examples: Validation rows that val_loss reads: a number or "all".
        all_epochs: Write every epoch to summary.csv, not only the report epochs.
        out: The results folder (default results/STUDY).
    """
    declared, folder, probing = _asked(study, preset, seeds, epochs, probe_examples, val_examples, out)
    from relu_study import runner, store

    if like is not None and only is None:
        raise UserError("--like belongs to --only RUN_ID: it names the sweep whose tile widths that run takes")
    if only is not None:
        sweep = Path(_existing(like) if like else f"results/{declared.name}")
        print(runner.run_alone(declared, only, sweep, Path(out) if out else None, probing))
        return 0
    from relu_study.progress import Progress

    command = shlex.join(["relu-study", *sys.argv[1:]])
    runner.use_devices()
    with Progress() as progress:
        try:
            runner.carry_out(declared, folder, probing, progress, {"command": command, "preset": preset}, all_epochs=all_epochs)
        except KeyboardInterrupt:
            kept = len(store.stored_runs(folder))
            progress.say(f"interrupted: {kept} finished runs are kept in {folder}; go on with: {command}")
            return INTERRUPTED
    print(f"{folder}/report.md")
    return 0


def rebuild(folder: Folder, all_epochs: bool = False) -> None:
    """Rebuild everything that is derived from a results folder's raw tiles, without JAX.

    Args:
        folder: The results folder.
        all_epochs: Write every epoch to summary.csv, not only the report epochs.
    """
    from relu_study.report import report

    for line in report(_existing(folder), all_epochs):
        print(line)
    print(f"{folder}/report.md")


def view(folder: Folder, port: int = 6006, host: str = "127.0.0.1") -> int:
    """Open TensorBoard on a results folder and print its address.

    Args:
        folder: The results folder.
        port: The port to listen on; 0 takes any free one.
        host: The address to listen on; this machine alone unless told.
    """
    logs = _existing(folder) / "tensorboard"
    if not logs.is_dir():
        raise UserError(f"{logs} is missing; make it with 'relu-study report {folder}' (needs raw/), or run the study")
    if port == 0:
        import socket

        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    print(f"http://{host}:{port}/", flush=True)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", host, "--port", str(port)]
    try:
        return subprocess.call(command)
    except KeyboardInterrupt:
        return 0


def _existing(folder: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        near = (
            nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()], "folder") if path.parent.is_dir() else None
        )
        raise near or UserError(f"no folder {folder}; make one with 'relu-study run STUDY --out {folder}'")
    return path


def _asked(
    study: str,
    preset: str,
    seeds: int | None,
    epochs: float | None,
    probe_examples: int | None,
    val_examples: Any,
    out: str | None,
) -> tuple[Study, Path, Any]:
    path, validation = find_study(study), None if val_examples == "all" else val_examples
    for name, value, least in (("seeds", seeds, 1), ("probe-examples", probe_examples, 1), ("val-examples", validation, 1)):
        if value is not None and not (str(value).isdecimal() and int(value) >= least):
            raise UserError(f"--{name} must be a whole number of at least {least}, not {value}")
    if epochs is not None and not 0 <= epochs < float("inf"):
        raise UserError(f"--epochs must be at least 0, not {epochs:g}")
    declared = load_study(path).sized(preset, seeds=seeds, epochs=epochs)
    from relu_study.programs import Probing

    return (
        declared,
        Path(out or f"results/{declared.name}"),
        Probing(declared.probe_examples if probe_examples is None else probe_examples, int(validation) if validation else None),
    )


def print_plan(plan: Plan, stored: int, title: str) -> None:
    """The plan as a table: a cohort a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("cohort", "program", "runs", "width", "tiles", "steps a run", "MiB a tile"):
        table.add_column(column, justify="left" if column in ("cohort", "program") else "right")
    for c in plan.cohorts:
        steps = sorted({t.steps for t in c.tiles}) or [c.work.steps]
        mib = c.bytes() / 2**20
        span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,}-{steps[-1]:,}"
        table.add_row(c.name, c.work.title, f"{c.runs:,}", str(c.width), f"{len(c.tiles):,}", span, f"{mib:.0f}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    asked = plan.seconds()
    duration = (
        "time: unknown on this device until its first tiles are done" if asked is None else f"about {asked:,.0f} s of training"
    )
    runs = sum(c.runs for c in plan.cohorts)
    print(
        f"{runs:,} runs to train ({stored:,} stored) in {len(plan.cohorts)} cohorts and {len(plan.tiles):,} tiles on "
        f"{plan.devices} {plan.platform} device(s); about {plan.compilations()} compilations; "
        f"about {plan.bytes() / 2**20:,.0f} MiB of tiles at a time; {duration}"
    )


COMMANDS: dict[str, Callable[..., Any]] = {"list": list_studies, "plan": show_plan, "run": run, "report": rebuild, "view": view}


def main() -> None:
    """The command `relu-study`: bad input is one clear line and exit status 2."""
    try:
        status = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="relu-study", description="Train thousands of small networks at once and see every unit that dies."
        )
    except UserError as error:
        print(f"relu-study: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(status or 0)
