"""Re-run of a single run of a sweep, which reproduces its numbers bit for bit."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

from relu_study.components.entry_errors import entry_errors
from relu_study.engine import cohorts, train_tile
from relu_study.engine.jax_settings import pinned
from relu_study.engine.plan import Tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError, nearest
from relu_study.runner.prepare import manifest_of, prepare
from relu_study.runner.provenance import with_digest
from relu_study.runner.run import use_devices
from relu_study.storage import configurations, locks
from relu_study.storage.atomic_write import check_writable, write_atomically
from relu_study.storage.csv_files import csv_text
from relu_study.storage.declaration import read_declared
from relu_study.storage.frames import runs_frame
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.study.study import Study


@pinned()
def run_single(study: Study, run_id: str, sweep: Path | None, out: Path | None, measure_config: MeasureConfig) -> str:
    """Train one run at the tile width of its cohort in the folder `sweep`; returns its row of `runs.csv`.

    With `out`, write the manifest, the tile and the row into this new folder.
    Raises UserError if the run id is unknown or `out` is not empty.
    """
    use_devices()
    if out is not None and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty. Give a new folder with --out (and the folder of the sweep with --widths-from).")
    runs = {run.run_id: run for run in study.runs()}
    if run_id not in runs:
        unknown = nearest(run_id, runs, f"run of study {study.name} at this size")
        raise UserError(f"{unknown} (--preset, --seeds and --epochs determine the runs)")
    job = prepare(study, sweep, measure_config, hint="name the folder of its sweep with --widths-from")
    job = replace(job, provenance=with_digest(job.provenance, job.machine.digest))
    if out is not None:
        check_writable(out)
    spec = runs[run_id]
    name = cohorts.cost_of(spec).cohort
    planned = {cohort.name: cohort.width for cohort in job.plan.cohorts}  # also provisional widths
    job = replace(job, widths={**planned, **job.widths})
    if sweep is not None and (sweep / "manifest.json").exists():  # also of an earlier version, whose tiles are not continued
        job = replace(job, widths={**job.widths, **read_manifest(sweep)["widths"]})
    tile = Tile(name, job.widths[name], (spec,), 0, num_datasets=1)
    with entry_errors():
        numbers = train_tile.train_tile([spec], tile.width, measure_config=job.measure_config, num_datasets=tile.num_datasets)
    command_info = {"command": f"relu-study run {study.name} --only {run_id}", "preset": "only"}
    manifest = {**manifest_of(job, command_info), "timing": {}, "counts": {}}
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(locks.writer_lock(folder))
        write_manifest(folder, manifest)
        job.kind.save(folder, tile, numbers, job.tile_provenance(tile))
        declared = read_declared(folder)
        text = csv_text(runs_frame(configurations.collect(folder), declared), declared.declaration.options)
        header, *rows = text.splitlines()
        row = next(row for row in rows if row.startswith(run_id))
        write_atomically(folder / "runs.csv", f"{header}\n{row}\n".encode())
        return row
