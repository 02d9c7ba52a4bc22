"""Replay of a stored run: train it again bit for bit, and measure every step in a window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from relu_study.components.entry_errors import entry_errors
from relu_study.components.networks import initializer_of, network_of
from relu_study.components.registry import activations, initializers, metrics, networks, optimizers, tasks
from relu_study.engine import cohorts, train_tile
from relu_study.engine.jax_settings import pinned
from relu_study.engine.replay_window import Recorder, Window, is_finite, steps_of
from relu_study.engine.state import DEFAULT_EXAMPLES, MeasureConfig
from relu_study.errors import UserError
from relu_study.runner.provenance import provenance, with_digest
from relu_study.runner.replay_request import DEATH, ONSET, ReplayRequest, replay_request
from relu_study.runner.replay_result import Replay, check_replay_folder, replay_result
from relu_study.runner.run import use_devices
from relu_study.stats import histogram_bins
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.atomic_write import check_creatable
from relu_study.storage.provenance import EARLIER, UNKNOWN, differences
from relu_study.storage.stored_run import StoredRun, dead_masks
from relu_study.study.loading import load_study


def replay(
    folder: str | Path,
    run_id: str,
    around: str | float = DEATH,
    *,
    window: float = 1.0,
    out: str | Path | None = None,
    study: str | Path | None = None,
) -> Replay:
    """Train a stored run again, and measure every step around a moment: each death, its batch, gradient and step.

    The run has the tile width of its sweep, so it repeats bit for bit. Its last metrics, and with raw/ all its measurements and
    dead masks, are compared with the stored ones. Configures JAX first: devices and compilation cache.

    Args:
        folder: Results folder of the sweep.
        run_id: The run.
        around: "death" (the first death of a unit, or else the first nonfinite epoch), "onset" (that of the run's first finding),
            or an epoch.
        window: Epochs measured before and after the moment. The window of a death or an onset begins at the last measurement
            before it.
        out: Folder for events.csv, steps.csv, arrays.npz, replay.json and the figure; None writes nothing.
        study: File of the study, if the run has components that this process has not registered.

    Returns:
        Events and steps as DataFrames, all arrays, and the figure.

    Raises:
        UserError: an argument is not valid, the provenance differs from that of this process, or a number differs from the
            stored one. Nothing is written then.
    """
    return run_replay(replay_request(folder, run_id, around, window), study, None if out is None else Path(out).expanduser())


@pinned()
@numpy_defaults()
def run_replay(request: ReplayRequest, study: str | Path | None = None, out: Path | None = None) -> Replay:
    """Run a checked request. Raises UserError like `replay`."""
    use_devices()
    run = request.run
    if out is not None:
        check_replay_folder(out, run.run_id)
        check_creatable(out)
    if study is not None:
        _load(Path(study).expanduser(), run)
    _check_registered(run)
    with entry_errors():
        measure_config = _measure_config(run)
        cohorts.check(run.spec, measure_config)
        _check_provenance(run, measure_config)
        width = _width(run, measure_config)
        earlier = _train(run, width, measure_config, None) if request.needs_numbers else None
        window = Window.between(run.spec, *request.span(earlier))
        recorder = Recorder(run.spec, measure_config, window, jax.devices()[0])
        numbers = _train(run, width, measure_config, recorder)
    _check_masks(recorder, numbers)
    per_epoch, total = steps_of(run.spec)
    finding = request.finding(earlier) if request.around == ONSET else None
    about = {
        **({} if finding is None else {"finding": f"{finding.problem}: {finding.evidence}"}),
        **{"first_step": window.first, "last_step": window.stop, "steps_per_epoch": per_epoch, "total_steps": total},
        **{"tile_width": width, "probe_examples": int(numbers["probe_examples"]), "status": str(numbers["status"][0])},
        "nonfinite_at_start": not is_finite(recorder.records[0]),
        **{"equal_row": run.row is not None, "equal_measurements": 0 if run.tile is None else len(run.tile["epoch"])},
    }
    replayed = replay_result(request, recorder.records, recorder.events, about)
    if out is not None:
        replayed.write(out)
    return replayed


def _train(run: StoredRun, width: int, measure_config: MeasureConfig, recorder: Recorder | None) -> dict[str, np.ndarray]:
    """Train a run in a padded tile, as `run --only` does, and compare its numbers with the stored ones."""
    numbers = train_tile.train_tile([run.spec], width, measure_config=measure_config, num_datasets=1, observer=recorder)
    run.check_equal(numbers)
    return numbers


def _load(path: Path, run: StoredRun) -> None:
    """Load the study file, which registers its components."""
    if not path.is_file():
        raise UserError(f"There is no study file {path}. Name the Python file of study {run.manifest.study!r}.")
    if (name := load_study(path).name) != run.manifest.study:
        raise UserError(f"{path} declares the study {name!r}, and {run.folder} contains {run.manifest.study!r}. Name its file.")


def _check_registered(run: StoredRun) -> None:
    """Raise UserError if a component of the run is not registered."""
    spec = run.spec
    named = [(networks, spec.network), (activations, spec.activation), (activations, spec.output)]
    named += [(optimizers, spec.optimizer), (tasks, spec.task)]
    named += [(metrics, name) for name in run.provenance.get("measured", ())]
    if spec.network in networks and network_of(spec).sized:
        named.append((initializers, initializer_of(spec)))
    for registry, name in named:
        if name not in registry:
            raise UserError(
                f"run {run.run_id} has the {registry.kind} {name!r}, which is not registered here. Name the file of study "
                f"{run.manifest.study!r} with --study (study= in Python)."
            )


def _measure_config(run: StoredRun) -> MeasureConfig:
    """The measurement settings of a stored run, from its provenance."""
    stored: Mapping[str, Any] = {**EARLIER, **run.provenance}
    chosen = stored.get("metrics")
    probe = stored["probe_examples"]
    histograms, every = stored["histograms"], stored["measured_every"]
    return MeasureConfig(
        probe_examples=None if probe == DEFAULT_EXAMPLES else probe,
        val_examples=stored["val_examples"],
        histograms=chosen is None if histograms is UNKNOWN else histograms,
        metrics=None if chosen is None else tuple(chosen.split(", ")),
        measure_every=tuple(every) if isinstance(every, list) else every,
        linear_bins=stored["histogram_bins"] == histogram_bins.LINEAR,
    )


def _check_provenance(run: StoredRun, measure_config: MeasureConfig) -> None:
    """Raise UserError if the versions, device, settings or own components of this process are not those of the stored run."""
    shown = run.spec.replace(initializer=initializer_of(run.spec))
    if differing := differences(with_digest(provenance(measure_config, [shown])), run.provenance):
        raise UserError(
            f"run {run.run_id} of {run.folder} has a different provenance ({'; '.join(differing)}) and does not repeat here. "
            "Use the stored versions, device and settings, or run the study again into a new folder."
        )


def _width(run: StoredRun, measure_config: MeasureConfig) -> int:
    """The tile width of a stored run."""
    cohort = cohorts.cost_of(run.spec, measure_config).cohort
    width = run.provenance.get("width", run.manifest.widths.get(cohort))
    if width is None:
        raise UserError(
            f"{run.folder / 'manifest.json'} has no tile width of cohort {cohort}, so run {run.run_id} cannot repeat. "
            "Run the study again into a new folder."
        )
    return int(width)


def _check_masks(recorder: Recorder, numbers: dict[str, np.ndarray]) -> None:
    """Raise UserError if a dead mask of the window differs from the measured mask of the same epoch."""
    per_epoch, total = steps_of(recorder.spec)
    ends = {min(round(epoch * per_epoch), total): i for i, epoch in enumerate(numbers["epoch"].tolist())}
    finite = ~(numbers["epoch"] >= float(numbers["first_bad_epoch"][0]))
    for record in recorder.records:
        i = ends.get(record.number)
        if i is None or not finite[i] or (record.number and not len(record.rows)):  # the start of a phase has other data
            continue
        for site, mask in dead_masks(numbers).items():
            if not np.array_equal(mask[i], record.seen.sites[site].dead):
                raise UserError(
                    f"the dead units of {site} after step {record.number} differ from those of epoch {numbers['epoch'][i]:g}. "
                    "A pre-activation is within rounding of 0: choose another probe set."
                )
