"""The door: one function for each command of `relu-study`. JAX is imported only when something will be trained."""

from __future__ import annotations

import ast
import logging
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from relu_study.cli.arguments import describe_stored, existing_folder, parse_shard, resolve_study, strip_shard
from relu_study.cli.encoding import as_typed, quiet, use_utf8, write_plainly
from relu_study.cli.signals import StopSignal, heeded
from relu_study.errors import UserError
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.atomic_write import WriteError
from relu_study.study.loading import studies

INTERRUPTED = 130


# ----------------------------------------------------------------------------------------- commands

StudyName = Annotated[Positional[str], arg(metavar="STUDY")]
Folder = Annotated[Positional[str], arg(metavar="DIR")]


def list_studies() -> None:
    """Name every study and what it asks."""
    for name, path in studies().items():
        about = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"{name:<16}{about}")


def show_plan(
    study: StudyName,
    preset: str = "default",
    seeds: int | None = None,
    epochs: float | None = None,
    probe_examples: int | None = None,
    val_examples: str = "8192",
    max_draws: int | None = None,
    shard: str | None = None,
    no_memory: bool = False,
    out: str | None = None,
) -> None:
    """Print cohorts, tiles, compilations, memory and time before anything runs.

    Peak memory is what XLA says of the largest program, which is compiled for it (`run` finds it in the cache), with all that
    the process holds beside it.

    Args:
        study: A study's name, or the path of a study file.
        preset: The size of the study.
        seeds: Seeds of each configuration.
        epochs: Epochs of every run.
        probe_examples: Training examples in the probe set.
        val_examples: Validation rows that val_loss reads: a number or "all".
        max_draws: Of a draw study: at most so many draws of each cell.
        shard: I/N: the part that `run --shard I/N` would take.
        no_memory: Compile nothing and leave out the peak memory.
        out: The results folder; what it holds is not planned again, and its tiles say how fast this machine is.
    """
    part = parse_shard(shard)
    declared, folder, probing = resolve_study(study, preset, seeds, epochs, probe_examples, val_examples, max_draws, out)
    from relu_study.cli.progress import print_draws, print_plan
    from relu_study.runner.memory import predict_memory, predict_memory_draws
    from relu_study.runner.prepare import prepare
    from relu_study.runner.prepare_draws import prepare_draws
    from relu_study.runner.run import use_devices
    from relu_study.storage.resume import doubts
    from relu_study.study.draw_study import DrawStudy

    use_devices()
    title = f"{declared.name}: {declared.title}{f' (shard {part})' if part else ''}"
    if isinstance(declared, DrawStudy):
        drawing = prepare_draws(declared, folder, shard=part)
        print_draws(drawing.plan, drawing.stored, title, "" if no_memory else f"{predict_memory_draws(drawing)}; ")
        damaged, own = drawing.folder_state.damaged, drawing.provenance["own"]
    else:
        job = prepare(declared, folder, probing, shard=part)
        print_plan(job.plan, job.stored, title, job.folder_state.timing, "" if no_memory else f"{predict_memory(job)}; ")
        damaged, own = job.folder_state.damaged, job.provenance["own"]
        for note in job.declaration.get("notes", []):
            print(f"note: {note}")
    for line in doubts(own, folder):
        print(line)
    for error in damaged:
        print(f"{error.path} is damaged ({error.reason}); a run moves it into damaged/ and makes again what it held")


def run(
    study: StudyName,
    preset: str = "default",
    seeds: int | None = None,
    epochs: float | None = None,
    only: str | None = None,
    widths_from: str | None = None,
    probe_examples: int | None = None,
    val_examples: str = "8192",
    all_epochs: bool = False,
    per_seed: bool = False,
    max_draws: int | None = None,
    shard: str | None = None,
    out: str | None = None,
) -> int:
    """Train a study and write its results folder; run it again to go on where it stopped.

    Ctrl-C or SIGTERM: what is finished is kept, and it is said how to go on; a second one ends at once.

    Args:
        study: A study's name, or the path of a study file (it is Python: it does what it contains).
        preset: The size of the study, e.g. "full".
        seeds: Seeds of each configuration.
        epochs: Epochs of every run.
        only: A run_id: train that run alone and print its row of runs.csv; writes a folder only with --out.
        widths_from: With --only: the results folder of the sweep, whose tile widths are taken (default results/STUDY).
        probe_examples: Training examples in the probe set (default 8192, or all where there are fewer).
        val_examples: Validation rows that val_loss reads: a number or "all".
        all_epochs: Write every epoch to summary.csv, not only the report epochs.
        per_seed: Add a TensorBoard run for each single seed (at most 500 in all).
        max_draws: Of a draw study: at most so many draws of each cell.
        shard: I/N: train part I of N into a folder that N processes or machines share (a job array); then run without it.
        out: The results folder (default results/STUDY).
    """
    part = parse_shard(shard)
    if part and only is not None:
        raise UserError("--shard takes one part of a study and --only RUN_ID one run of it; leave one of them out")
    declared, folder, probing = resolve_study(study, preset, seeds, epochs, probe_examples, val_examples, max_draws, out)
    from relu_study.runner import execute, single_run
    from relu_study.runner.run import use_devices
    from relu_study.study.draw_study import DrawStudy

    if widths_from is not None and only is None:
        raise UserError("--widths-from belongs to --only RUN_ID: it names the sweep whose tile widths that run takes")
    if per_seed and only is not None:
        raise UserError("--per-seed adds runs to the TensorBoard of a sweep; --only RUN_ID trains one run and writes none")
    if isinstance(declared, DrawStudy):
        if only is not None or per_seed or all_epochs:
            raise UserError(f"{declared.name} draws networks and trains none: --only, --per-seed and --all-epochs do not apply")
    elif only is not None:
        sweep = Path(existing_folder(widths_from) if widths_from else f"results/{declared.name}")
        print(single_run.run_single(declared, only, sweep, folder if out else None, probing))
        return 0
    from relu_study.cli.progress import Progress

    command = as_typed(["relu-study", *sys.argv[1:]])
    with Progress() as progress:
        try:
            use_devices()
            about = {"command": command, "preset": preset}
            if isinstance(declared, DrawStudy):
                execute.execute_draws(declared, folder, progress, about, part)
            else:
                execute.execute(declared, folder, probing, progress, about, all_epochs=all_epochs, per_seed=per_seed, shard=part)
        except KeyboardInterrupt as stop:
            progress.on_message(f"interrupted: {describe_stored(declared, folder)} are kept in {folder}; go on with: {command}")
            return _status(stop)
        except WriteError as error:
            raise UserError(f"{error}: {command}; {describe_stored(declared, folder)} are kept in {folder}") from error
    if part:
        whole = shlex.join(["relu-study", *strip_shard(sys.argv[1:])])
        print(f"when all {part.of} shards are done, write the report with: {whole}")
    else:
        print(f"{folder}/report.md")
    return 0


def rebuild(folder: Folder, all_epochs: bool = False, per_seed: bool = False) -> None:
    """Rebuild everything that is derived from a results folder's raw tiles, without JAX.

    Args:
        folder: The results folder.
        all_epochs: Write every epoch to summary.csv, not only the report epochs.
        per_seed: Add a TensorBoard run for each single seed (at most 500 in all); without it those that were there go.
    """
    from relu_study.report.report import report

    for line in report(existing_folder(folder), all_epochs, per_seed):
        print(line)
    print(f"{folder}/report.md")


def draw_figure(
    folder: Folder,
    name: str | None = None,
    kind: str | None = None,
    metrics: Annotated[tuple[str, ...], arg(aliases=("--metric",))] = (),
    experiments: tuple[str, ...] = (),
    arms: tuple[str, ...] = (),
    rows: str | None = None,
    cols: str | None = None,
    epoch: tuple[str, ...] = (),
    claims: tuple[str, ...] = (),
    log: bool = False,
    where: tuple[str, ...] = (),
    out: tuple[str, ...] = (),
) -> None:
    """Draw a figure that the study declares, or one of your own, without JAX.

    Args:
        folder: The results folder.
        name: A figure that the study declares.
        kind: One of your own: curves, survival, forest, depth, histograms or map.
        metrics: What to show: "metric", "metric/site" or "metric/*" for each site; for histograms pre, post or gradient.
        experiments: Of these experiments alone.
        arms: These arms alone, in this order.
        rows: For a map: the factor down its side (a field such as activation, or arm, or experiment).
        cols: For a map: the factor along its foot.
        epoch: For a map or depth: "last" or a number; depth takes several.
        claims: For a forest: these claims alone.
        log: A logarithmic scale where one is possible.
        where: Conditions that all hold: activation=relu,selu "learning_rate>=0.01" "dead_fraction/site_1<0.5" seed=0,1.
        out: Files to write; .png, .svg or .pdf says the format (default KIND.png in the current folder).
    """
    from relu_study.report.figures.on_demand import figure

    paths = figure(
        existing_folder(folder),
        kind,
        name=name,
        metrics=metrics,
        experiments=experiments,
        arms=arms,
        rows=rows,
        cols=cols,
        epoch=epoch,
        claims=claims,
        log=log,
        where=where,
        out=out,
    )
    print("\n".join(map(str, paths)))


def make_table(
    folder: Folder,
    rows: tuple[str, ...] = ("arm",),
    cols: tuple[str, ...] = (),
    metric: Annotated[tuple[str, ...], arg(aliases=("--metrics",))] = ("val_loss",),
    site: str = "all",
    epoch: str = "last",
    baseline: str | None = None,
    where: tuple[str, ...] = (),
    format: str = "markdown",
) -> None:
    """Print a table of a results folder: factors as rows and columns, metrics as cells.

    Args:
        folder: The results folder.
        rows: Factors (RunSpec fields, "arm", "experiment") whose values make the rows.
        cols: Factors whose values make the columns.
        metric: One or several metrics of the study.
        site: "all", or one site of the networks, e.g. site_1.
        epoch: "last", or a number (needs raw/).
        baseline: The label of the row that the others are compared with.
        where: Conditions on factors and metrics, e.g. activation=relu,selu learning_rate<=0.01 dead_fraction<0.5 seed<16.
        format: markdown, latex (booktabs) or csv.
    """
    from relu_study.report.tables.pivot_table import table

    print(table(existing_folder(folder), rows, cols, metric, site, epoch, baseline, where, format), end="")


def make_comparison(
    folder: Folder,
    by: tuple[str, ...] = ("arm",),
    metric: str = "val_loss",
    site: str = "all",
    epoch: str = "last",
    baseline: str | None = None,
    where: tuple[str, ...] = (),
) -> None:
    """Print the comparisons of a results folder's configurations as CSV, paired by seed.

    Args:
        folder: The results folder.
        by: Factors (RunSpec fields, "arm", "experiment") in which the configurations differ.
        metric: A metric of the study.
        site: "all", or one site of the networks, e.g. site_1.
        epoch: "last", or a number (needs raw/).
        baseline: The label that all others are compared with (Holm's correction); without it every pair (Benjamini-Hochberg's).
        where: Conditions as those of `table`.
    """
    from relu_study.report.tables.pivot_table import compare
    from relu_study.storage.csv_files import csv_text

    print(csv_text(compare(existing_folder(folder), by, metric, site, epoch, baseline, where)), end="")


def view(
    folder: Folder,
    port: int = 6006,
    host: str = "127.0.0.1",
    path_prefix: str = "",
    options: Annotated[Positional[tuple[str, ...]], arg(metavar="-- OPTION")] = (),
) -> int:
    """Open TensorBoard on a results folder and print its address.

    Args:
        folder: The results folder.
        port: The port to listen on; 0 takes any free one.
        host: The address to listen on; this machine alone unless told.
        path_prefix: The path of its address, e.g. /tb behind a proxy.
        options: Options of TensorBoard itself, after --, e.g. -- --reload_interval 5.
    """
    from relu_study.report.tensorboard.server import show
    from relu_study.storage.manifest import read_manifest

    logs = existing_folder(folder) / "tensorboard"
    read_manifest(logs.parent)
    if not logs.is_dir():
        raise UserError(f"{logs} is missing; make it with 'relu-study report {folder}' (needs raw/), or run the study")
    return show(logs, host, port, path_prefix, options)


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_studies,
    "plan": show_plan,
    "run": run,
    "report": rebuild,
    "table": make_table,
    "compare": make_comparison,
    "figure": draw_figure,
    "view": view,
}


def _status(stop: KeyboardInterrupt) -> int:
    return stop.status if isinstance(stop, StopSignal) else INTERRUPTED


def main() -> None:
    """The command `relu-study`: bad input, or a system that refuses, is one clear line and exit status 2.

    `--traceback` anywhere before a `--` prints Python's traceback before that line.
    """
    use_utf8()
    write_plainly()
    quiet()
    own = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    whole = "--traceback" in sys.argv[:own]
    logging.getLogger("jax._src.callback").disabled = not whole  # it logs a traceback of its own
    sys.argv[:own] = [word for word in sys.argv[:own] if word != "--traceback"]
    try:
        with heeded(), numpy_defaults():
            status = tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="relu-study",
                description="Train thousands of small networks at once and see every unit that dies. "
                "Any command takes --traceback, which prints the whole of an error.",
            )
    except UserError as error:
        if whole:
            traceback.print_exception(error)
        print(f"relu-study: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"relu-study: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"relu-study: interrupted; go on with: {shlex.join(['relu-study', *sys.argv[1:]])}", file=sys.stderr)
        sys.exit(_status(stop))
    sys.exit(status or 0)
