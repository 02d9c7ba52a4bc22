"""Preparation of a study: validation, declaration, plan of the missing tiles, and manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from relu_study.components.entry_errors import entry_errors
from relu_study.engine.draw_plan import Block, DrawPlan
from relu_study.engine.jax_settings import pinned
from relu_study.engine.plan import Plan, Tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner.kinds import Kind, kind_of
from relu_study.runner.machine import Machine, local_machine, precision, software
from relu_study.runner.provenance import with_digest
from relu_study.storage import block_files, locks, tile_files
from relu_study.storage.manifest import FORMAT, read_manifest, write_manifest
from relu_study.storage.provenance import differences
from relu_study.storage.resume import FolderState, archive_derived, doubts, move_damaged, read_folder_state
from relu_study.study.draw_study import DrawStudy
from relu_study.study.shard import Shard
from relu_study.study.study import Study

S = TypeVar("S", bound=Study | DrawStudy)
P = TypeVar("P", bound=Plan | DrawPlan)
Planned = tuple[P, dict[str, int], int]  # plan of the missing tiles, tile width of each cohort, number of stored runs or draws


@dataclass(frozen=True)
class Request(Generic[P]):
    """A validated study: its declaration, its provenance, and a function that plans the missing tiles."""

    declaration: dict[str, Any]
    provenance: dict[str, Any]  # without the digest
    ids: Collection[Any]  # all runs or blocks
    plan: Callable[[FolderState, Shard | None], Planned[P]]  # needs the stored files
    undecidable_rows: str  # a message, or empty
    measure_config: MeasureConfig = MeasureConfig()
    derived: Collection[str] = ()  # declared metrics outside the metric registry: task metrics and revivals


@dataclass(frozen=True)
class Job(Generic[S, P]):
    """A sized study with its plan, its stored files, and the provenance of its numbers."""

    study: S
    kind: Kind[S, P, Any]
    measure_config: MeasureConfig  # draw studies ignore it
    provenance: dict[str, Any]
    widths: dict[str, int]  # of the tiles of each cohort, without provisional widths
    plan: P  # of the missing tiles
    stored: int  # number of stored runs or draws
    declaration: dict[str, Any]
    ids: Collection[Any]  # all runs or blocks of the study, including other shards
    folder_state: FolderState
    machine: Machine
    undecidable_rows: str = ""  # a message about claims that the seeds cannot decide
    shard: Shard | None = None

    def tile_provenance(self, tile: Tile | Block) -> dict[str, Any]:
        """Return the provenance of a tile: the job's provenance with the cohort and its width."""
        return {**self.provenance, "cohort": tile.cohort, "width": tile.width}


@entry_errors()
@pinned()
def prepare(
    study: S,
    folder: Path | None,
    measure_config: MeasureConfig = MeasureConfig(),
    hint: str = "name another folder with --out",
    shard: Shard | None = None,
    machine: Machine | None = None,
) -> Job[S, Any]:
    """Check every run or cell of a study, and plan the tiles that are missing in `folder`.

    Compiles no program of the study, and writes nothing. A `shard` plans and counts only its own part.
    Raises UserError if a run or cell is invalid, or if the folder cannot be continued. `hint` is the suggested action for the
    folder. `machine` computes the tiles (default: this one).
    """
    kind, machine = kind_of(study), machine or local_machine()
    request = kind.request(study, folder, measure_config, machine)
    # Only stored files need the digest, which trains a tiny network.
    needs_digest = folder is not None and _has_raw_files(folder)
    provenance = with_digest(request.provenance, machine.digest) if needs_digest else request.provenance
    state = read_folder_state(study.name, folder, provenance, kind.stored, request.ids, hint, request.derived)
    plan, widths, stored = request.plan(state, shard)
    return Job(
        study,
        kind,
        request.measure_config,
        provenance,
        widths,
        plan,
        stored,
        request.declaration,
        request.ids,
        state,
        machine,
        request.undecidable_rows,
        shard,
    )


@entry_errors()
@pinned()
def check_study(study: Study | DrawStudy, folder: Path | None, measure_config: MeasureConfig = MeasureConfig()) -> None:
    """Check every run or cell of a study, before the machine that computes it is known.

    Raises UserError if a run or cell is invalid.
    """
    unknown = Machine("cpu", "cpu", 1, {**software(), **precision()}, {}, None, lambda: None)
    kind_of(study).request(study, folder, measure_config, unknown)


def manifest_of(job: Job[Any, Any], command_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a job: declaration, provenance, tile widths and device."""
    declaration_text = json.dumps(job.declaration, sort_keys=True)
    return {
        "format": FORMAT,
        "study": job.study.name,
        **command_info,
        **({"seeds": job.declaration["seeds"]} if "seeds" in job.declaration else {}),
        "provenance": job.provenance,
        "widths": dict(sorted(job.widths.items())),
        "device": {
            "platform": job.plan.platform,
            "kind": job.machine.kind,
            "devices": job.plan.devices,
            **job.machine.processor,
        },
        "declaration_hash": hashlib.sha256(declaration_text.encode()).hexdigest()[:12],
        "declaration": job.declaration,
    }


def begin(job: Job[Any, Any], folder: Path, on_message: Callable[[str], None], command_info: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the manifest of a job, with the recorded time of earlier sessions.

    Corrupt files and derived files without raw files are moved first. `on_message` receives a line for each.
    Raises UserError if another shard writes the folder with a different declaration, provenance or widths, or has stored results
    of a different provenance since the job was prepared.
    """
    manifest = {**manifest_of(job, command_info), "timing": {}, "counts": {}}
    for line in doubts(job.provenance["own"], folder):
        on_message(line)
    with locks.manifest_mutex(folder):
        move_damaged(folder, job.folder_state.damaged, on_message)
        archive_derived(folder, on_message)
        other_writers = locks.other_writers(folder, job.shard)
        if (job.folder_state.stored or other_writers or _has_raw_files(folder)) and (folder / "manifest.json").exists():
            existing = read_manifest(folder)
            manifest["timing"] = existing["timing"]
            if other_writers or not job.folder_state.stored:  # shards may have measured widths since this job was prepared
                manifest["widths"] = dict(sorted({**existing["widths"], **manifest["widths"]}.items()))
            _refuse_unlike_shards(folder, existing, manifest, other_writers)
        write_manifest(folder, manifest)
    return manifest


def _refuse_unlike_shards(
    folder: Path, existing: Mapping[str, Any], manifest: Mapping[str, Any], other_writers: Sequence[locks.Writer]
) -> None:
    """Raise UserError if the results of running shards, or of shards that ended meanwhile, cannot be combined with new ones."""
    why = _unlike(existing, manifest)
    for name in ("declaration_hash", "provenance", "widths") if other_writers else ():
        if existing[name] != manifest[name]:
            raise UserError(
                f"{folder} is being written by {other_writers[0]} with a different {name}{why}. Wait until it ends, or start all "
                "shards with the same study, size and version on the same kind of processor."
            )
    if why:
        raise UserError(
            f"{folder} has results of a shard that ended meanwhile, with a different provenance{why}. Start all shards on "
            "the same kind of processor, or name another folder with --out."
        )


def _has_raw_files(folder: Path) -> bool:
    return bool(tile_files.tile_paths(folder) or block_files.block_paths(folder))


def stored_digest(folder: Path | None) -> str | None:
    """The digest of the machines that computed the results of a folder; None without results, or if it is unknown."""
    if folder is not None and _has_raw_files(folder):
        with contextlib.suppress(UserError):
            digest: str | None = read_manifest(folder)["provenance"].get("digest")
            return digest
    return None


def _unlike(existing: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Return the differences of two manifests' provenances and, for unlike arithmetic, the two processors; empty if equal."""
    differing = differences(manifest["provenance"], existing["provenance"])
    if any(text.startswith("digest: ") for text in differing):
        there, here = (
            " with ".join(filter(None, [about.get("processor", "unknown"), about.get("instructions")]))
            for about in (existing.get("device", {}), manifest["device"])
        )
        differing.append(f"processor: {there} there, {here} here")
    return f" ({'; '.join(differing)})" if differing else ""
