"""Command-line interface: one function per subcommand. JAX is imported only by the commands that train."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

from relu_study.cli.arguments import (
    Folder,
    SizeOptions,
    StudyName,
    existing_folder,
    parse_shard,
    resolve_study,
    strip_shard,
)
from relu_study.cli.diagnose_command import diagnose_runs
from relu_study.cli.encoding import as_typed, quiet, use_utf8, write_plainly
from relu_study.cli.export_command import export_results
from relu_study.cli.result_commands import draw_figure, make_comparison, make_table, view
from relu_study.cli.signals import StopSignal, handle_signals
from relu_study.errors import UserError
from relu_study.runner.cluster_address import check_request
from relu_study.storage.atomic_write import REPLAYS, WriteError

if TYPE_CHECKING:
    from relu_study.study.draw_study import DrawStudy
    from relu_study.study.shard import Shard
    from relu_study.study.study import Study

CRASHED = 3  # exit status of `run` if runs crashed
INTERRUPTED = 130

Size = Annotated[SizeOptions, arg(name="")]
DEFAULT_SIZE = SizeOptions()
OutFolder = Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: results/STUDY)")]
ClusterName = Annotated[str | None, arg(metavar="ray|ray:HOST:PORT|ray:local", help_behavior_hint="")]
Workers = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one a CPU node or GPU)")]
ShardName = Annotated[str | None, arg(metavar="I/N", help_behavior_hint="")]


def list_studies() -> None:
    """List the built-in studies with their sizes and estimated minutes."""
    from relu_study.cli.study_list import study_lines

    print("\n".join(study_lines()))


def show_plan(
    study: StudyName,
    size: Size = DEFAULT_SIZE,
    shard: ShardName = None,
    no_memory: bool = False,
    out: OutFolder = None,
    cluster: ClusterName = None,
    workers: Workers = None,
) -> None:
    """Print cohorts, tiles, compilations, memory and time of a study without running it.

    Peak memory is XLA's analysis of the largest program plus the measured size of the process. The program is compiled for
    the analysis and stays in the compilation cache for `run`.

    Args:
        shard: Plan only the part that `run --shard I/N` trains.
        no_memory: Compile nothing and omit the peak memory.
        out: Results folder. Stored runs are not planned again, and their time gives the speed of this machine.
        cluster: Plan for the workers of a Ray cluster, and list them.
        workers: With --cluster: the number of workers to ask for.
    """
    part = parse_shard(shard)
    check_request(cluster, workers, "--shard" if part else "")
    declared, folder = resolve_study(study, size, out)
    from relu_study.cli.progress import print_plan
    from relu_study.runner.devices import use_devices
    from relu_study.runner.execute import places_of
    from relu_study.runner.prepare import prepare
    from relu_study.storage.resume import doubts

    use_devices()
    with places_of(cluster, declared, workers, print, folder, size.measure_config()) as places:
        job = prepare(declared, folder, size.measure_config(), shard=part, machine=None if places is None else places.machine)
        title = f"{declared.name}: {declared.title}{f' (shard {part})' if part else ''}"
        print_plan(job, title, "" if no_memory or places else f"{job.kind.memory(job)}; ")
        for line in places.forecast(job.plan) if places else ():
            print(line)
    for note in job.declaration.get("notes", []):
        print(f"note: {note}")
    for line in [*filter(None, [job.undecidable_rows]), *doubts(job.provenance["own"], folder)]:
        print(line)
    for error in job.folder_state.damaged:
        print(f"{error.path} is damaged ({error.reason}). A run moves it into damaged/ and computes its contents again.")


def run(
    study: StudyName,
    size: Size = DEFAULT_SIZE,
    only: Annotated[str | None, arg(metavar="RUN_ID", help_behavior_hint="")] = None,
    widths_from: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: results/STUDY)")] = None,
    all_epochs: bool = False,
    per_seed: bool = False,
    shard: ShardName = None,
    out: OutFolder = None,
    cluster: ClusterName = None,
    workers: Workers = None,
) -> int:
    """Run a study and write its results folder. The same command resumes an interrupted run.

    Ctrl-C or SIGTERM keeps finished tiles and prints the command to resume with; a second one exits immediately. The exit status
    is 3 if runs crashed: the report has all others, and the same command tries them again.

    Args:
        only: Train only this run and print its row of runs.csv. A folder is written only with --out.
        widths_from: With --only: the results folder of the sweep that sets the tile widths.
        all_epochs: Write every epoch to summary.csv, not only the report epochs.
        per_seed: Add a TensorBoard run for each seed of each configuration (at most 500 runs).
        shard: Train part I of N into a folder that N processes share (a job array). Afterwards run without --shard.
        out: Results folder.
        cluster: Train on a Ray cluster: the one of RAY_ADDRESS or the latest one of this machine, one by address, or a new one on
            this machine.
        workers: With --cluster: the number of workers to ask for.
    """
    part = parse_shard(shard)
    check_request(cluster, workers, "--shard" if part else "--only" if only is not None else "")
    if part and only is not None:
        raise UserError("--shard selects a part of a study and --only RUN_ID one run. Use one of them.")
    declared, folder = resolve_study(study, size, out)
    _check_options(declared, only, widths_from, all_epochs, per_seed)
    if only is not None:
        from relu_study.runner.single_run import run_single
        from relu_study.study.study import Study

        assert isinstance(declared, Study)
        sweep = Path(existing_folder(widths_from) if widths_from else f"results/{declared.name}")
        print(run_single(declared, only, sweep, folder if out else None, size.measure_config()))
        return 0
    return _run_study(declared, folder, size, part, all_epochs, per_seed, cluster, workers)


def _check_options(
    declared: Study | DrawStudy, only: str | None, widths_from: str | None, all_epochs: bool, per_seed: bool
) -> None:
    from relu_study.runner.kinds import DRAWING, kind_of

    if widths_from is not None and only is None:
        raise UserError("--widths-from requires --only RUN_ID. It names the sweep that sets the tile width of that run.")
    if per_seed and only is not None:
        raise UserError("--per-seed does not apply to --only RUN_ID, which writes no TensorBoard. Use one of them.")
    if kind_of(declared) is DRAWING and (only is not None or per_seed or all_epochs):
        raise UserError(f"{declared.name} is a draw study: --only, --per-seed and --all-epochs do not apply. Omit them.")


def _run_study(
    declared: Study | DrawStudy,
    folder: Path,
    size: SizeOptions,
    part: Shard | None,
    all_epochs: bool,
    per_seed: bool,
    cluster: str | None,
    workers: int | None,
) -> int:
    """Run a study with a progress bar, then print its summary; the exit status."""
    from relu_study.cli.progress import Progress
    from relu_study.cli.summary import crashed_line, summary
    from relu_study.runner.devices import use_devices
    from relu_study.runner.execute import execute
    from relu_study.runner.kinds import kind_of

    def stored() -> str:
        kind = kind_of(declared)
        return f"{kind.count(kind.stored(folder, [])):,} {kind.stored_noun} are kept in {folder}"

    command = as_typed(["relu-study", *sys.argv[1:]])
    with Progress(folder) as progress:
        try:
            use_devices()
            info = {"command": command, "preset": size.preset}
            options: dict[str, Any] = {"all_epochs": all_epochs, "per_seed": per_seed, "shard": part}
            execute(declared, folder, size.measure_config(), progress, info, **options, cluster=cluster, workers=workers)
        except KeyboardInterrupt as stop:
            progress.on_message(f"interrupted: {stored()}; resume with: {command}")
            return _status(stop)
        except WriteError as error:
            raise UserError(f"{error}: {command}; {stored()}") from error
    if part:
        whole = shlex.join(["relu-study", *strip_shard(sys.argv[1:])])
        print(f"when all {part.of} shards are done, write the report with: {whole}")
    else:
        print("\n".join(summary(folder, progress.counts)))
        if crashed := crashed_line(folder):
            print(f"relu-study: {crashed}", file=sys.stderr)
            return CRASHED
    return 0


def rebuild(folder: Folder, all_epochs: bool = False, per_seed: bool = False) -> None:
    """Rebuild the derived files of a results folder from its raw tiles.

    Args:
        all_epochs: Write every epoch to summary.csv, not only the report epochs.
        per_seed: Add a TensorBoard run for each seed (at most 500); without it, existing single-seed runs are removed.
    """
    from relu_study.report.report import report

    for line in report(existing_folder(folder), all_epochs, per_seed):
        print(line)
    print(f"{folder}/report.md")


def replay_run(
    folder: Folder,
    run: Annotated[str, arg(metavar="RUN_ID")],
    around: Annotated[str, arg(metavar="EPOCH|onset|death")] = "death",
    window: Annotated[float, arg(metavar="X")] = 1.0,
    study: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None,
    out: Annotated[str | None, arg(metavar="DIR", help_behavior_hint="(default: DIR/replays/RUN_ID/MOMENT)")] = None,
) -> None:
    """Train one run of a results folder again, and measure every step around a moment of it.

    Names the step, the batch and its rows at which a unit died or revived, its pre-activations before and after, and the
    gradient and optimizer step. The run repeats bit for bit; its final row is compared with the stored one.

    Args:
        run: The run_id in runs.csv.
        around: The moment: an epoch; "onset" for that of the run's first finding; or "death" for the first death of a unit
            (without one: the first nonfinite epoch).
        window: Epochs to measure before and after the moment.
        study: Python file of the study, which a run with own components needs. It is executed.
        out: Folder for events.csv, steps.csv, arrays.npz, replay.json and the figure.
    """
    from relu_study.runner.replay_request import replay_request

    request = replay_request(existing_folder(folder), run, around, window)
    from relu_study.cli.replay_summary import replay_summary
    from relu_study.runner.replay import run_replay
    from relu_study.runner.replay_result import FILES

    place = Path(out).expanduser() if out else request.run.folder / REPLAYS / run / request.name
    replayed = run_replay(request, study, place)
    print("\n".join([*replay_summary(replayed.about, replayed.events), *(str(place / name) for name in FILES)]))


COMMANDS: dict[str, Callable[..., Any]] = {
    "list": list_studies,
    "plan": show_plan,
    "run": run,
    "report": rebuild,
    "replay": replay_run,
    "diagnose": diagnose_runs,
    "table": make_table,
    "compare": make_comparison,
    "figure": draw_figure,
    "view": view,
    "export": export_results,
}
EXAMPLES = {
    "list": "relu-study list",
    "plan": "relu-study plan article --preset full",
    "run": "relu-study run article --seeds 4 --out out/article",
    "report": "relu-study report results/article --all-epochs",
    "replay": "relu-study replay out/article --run 0f3a6c2b9d41 --around onset",
    "diagnose": "relu-study diagnose results/article --check",
    "table": "relu-study table results/article --rows arm --cols target --metric dead_fraction val_loss",
    "compare": "relu-study compare results/article --metric dead_fraction --baseline baseline",
    "figure": "relu-study figure results/article --kind curves --metric dead_fraction --out dead.png",
    "view": "relu-study view results/article --port 6007",
    "export": "relu-study export results/article --to wandb --offline",
}


def _print_example(words: list[str]) -> None:
    """Print the example of a subcommand below its help."""
    if {"-h", "--help"} & set(words) and words[0] in EXAMPLES:
        print(f"Example:\n  {EXAMPLES[words[0]]}")


def _number_settings(words: list[str]) -> contextlib.AbstractContextManager[None]:
    """Return NumPy's default settings for a command. Help needs no NumPy, which takes half of its time."""
    if {"-h", "--help"} & set(words):
        return contextlib.nullcontext()
    from relu_study.stats.numpy_defaults import numpy_defaults

    return numpy_defaults()


def _status(stop: KeyboardInterrupt) -> int:
    return stop.status if isinstance(stop, StopSignal) else INTERRUPTED


def main() -> None:
    """Entry point of `relu-study`. A user error or system error is one line on stderr and exit status 2.

    `--traceback`, anywhere before `--`, prints the Python traceback before that line.
    """
    use_utf8()
    write_plainly()
    quiet()
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    with_traceback = "--traceback" in sys.argv[:end]
    logging.getLogger("jax._src.callback").disabled = not with_traceback  # its tracebacks repeat the error
    sys.argv[:end] = [word for word in sys.argv[:end] if word != "--traceback"]
    try:
        with handle_signals(), _number_settings(sys.argv[1:end]):
            status = tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="relu-study",
                description="Train thousands of small networks at once and count every dead unit. "
                "Every command takes --traceback to print the full traceback of an error.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except UserError as error:
        if with_traceback:
            traceback.print_exception(error)
        print(f"relu-study: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"relu-study: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        again = "nothing was written; run again" if sys.argv[1:2] == ["replay"] else "resume with"
        print(f"relu-study: interrupted; {again}: {shlex.join(['relu-study', *sys.argv[1:]])}", file=sys.stderr)
        sys.exit(_status(stop))
    except SystemExit as stop:
        if stop.code in (None, 0):
            _print_example(sys.argv[1:end])
        raise
    sys.exit(status or 0)
