"""Resuming a results folder: its stored and corrupt files, and whether a study may continue it. No JAX."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.storage import atomic_write, block_files, checksums, locks, tile_files
from relu_study.storage.atomic_write import wrap_os_errors
from relu_study.storage.checksums import CorruptFileError, refuse_escaping_links, sentence
from relu_study.storage.manifest import read_manifest
from relu_study.storage.provenance import differences

DERIVED = (*checksums.CHECKSUMMED, checksums.SUMS, "report.md", "report.html")


@dataclass(frozen=True)
class FolderState:
    """Stored results of a folder that a study continues, and the corrupt files in it."""

    stored: Mapping[Any, dict[str, Any]] = field(default_factory=dict)  # runs or blocks -> provenance
    widths: Mapping[str, int] = field(default_factory=dict)  # cohort -> tile width
    timing: Mapping[str, float] = field(default_factory=dict)  # seconds spent so far
    damaged: Sequence[CorruptFileError] = ()


def read_folder_state(
    study: str,
    folder: Path | None,
    provenance: dict[str, Any],
    read_stored: Callable[[Path, list[CorruptFileError]], Mapping[Any, dict[str, Any]]],
    requested: Collection[Any],
    hint: str,
    derived: Collection[str] = (),
) -> FolderState:
    """Read the state of a results folder that a study continues.

    Corrupt raw files count as missing. A lost or corrupt manifest is rebuilt if the raw files contain at least one requested
    run, agree with each other, and have the current provenance.

    Args:
        study: The name of the study.
        folder: The results folder (None: results are not stored).
        provenance: The provenance that new raw files will have.
        read_stored: Reads the provenance of all stored runs or blocks, and appends corrupt files to its list.
        requested: The requested runs or blocks.
        hint: The action to suggest if the folder cannot be continued.
        derived: Declared metrics that are not measured under their own name.

    Raises:
        UserError: the folder cannot be continued.
    """
    if folder is None or not folder.exists():
        return FolderState()
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder with --out.")
    if locks.is_fresh(folder):
        return FolderState()
    refuse_escaping_links(folder)
    damaged: list[CorruptFileError] = []
    error_without_manifest = UserError(f"{folder} is not empty and has no manifest.json. {sentence(hint)}")
    manifest: dict[str, Any] = {"study": study, "provenance": provenance, "widths": {}}
    try:
        if has_manifest := (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
    except CorruptFileError as error:
        has_manifest, error_without_manifest = False, error
        damaged.append(error)
    if manifest["study"] != study:
        raise UserError(f"{folder} contains the study {manifest['study']!r}, not {study!r}. {sentence(hint)}")
    stored = read_stored(folder, damaged)
    if not has_manifest and not set(requested) & set(stored):
        raise error_without_manifest
    _same_metrics(folder, provenance, manifest, hint, derived) if stored else None
    if not same_provenance(folder, provenance, manifest["provenance"], stored.values(), hint):
        return FolderState(damaged=damaged)
    widths = _widths(folder, manifest["widths"], stored.values(), hint)
    return FolderState(stored, widths, manifest.get("timing", {}), damaged)


def _same_metrics(
    folder: Path, provenance: dict[str, Any], manifest: dict[str, Any], hint: str, derived: Collection[str]
) -> None:
    """Raise UserError if a folder of an earlier version has other metrics: its tiles cannot be combined with new ones."""
    declared = (manifest.get("declaration") or {}).get("metrics")
    if "measured" in manifest["provenance"] or declared is None:
        return
    if added := [name for name in provenance.get("measured", ()) if name not in declared]:
        raise UserError(f"{folder} does not contain the metric {', '.join(added)}. Remove the metric, or {hint}.")
    if removed := [name for name in declared if name not in {*provenance.get("measured", declared), *derived}]:
        raise UserError(f"{folder} contains the metric {', '.join(removed)}. Register it again, or {hint}.")


def _widths(folder: Path, declared: Mapping[str, int], stored: Iterable[dict[str, Any]], hint: str) -> dict[str, int]:
    """Return cohort -> tile width, from the manifest and the raw files. Raises UserError if they disagree."""
    widths = dict(declared)
    for cohort, width in {(provenance["cohort"], provenance["width"]) for provenance in stored if "cohort" in provenance}:
        if widths.setdefault(cohort, width) != width:
            raise UserError(
                f"{folder} has raw files of cohort {cohort} with width {width}, but other files or manifest.json have width "
                f"{widths[cohort]}. Restore the changed files, or {hint}."
            )
    return widths


def same_provenance(
    folder: Path, current: dict[str, Any], first: dict[str, Any], stored: Iterable[dict[str, Any]], hint: str
) -> bool:
    """Whether the provenance of the manifest (`first`) and of the raw files (`stored`) matches `current`.

    Raises:
        UserError: there are raw files and one provenance does not match, or cannot be compared.
    """
    stored = list(stored)
    opaque = {name: parts["unverifiable"] for name, parts in current.get("own", {}).items() if "unverifiable" in parts}
    for name, reason in opaque.items() if stored else ():
        raise UserError(
            f"{folder} cannot be continued: {name} cannot be compared with the stored one ({reason}). {sentence(hint)}"
        )
    for provenance in [first, *stored]:
        differing = differences(current, provenance)
        if differing and stored:
            path = folder / "raw" / provenance["file"] if provenance is not first else folder
            raise UserError(
                f"{path} has a different provenance ({'; '.join(differing)}) and cannot be combined with new results. "
                f"{sentence(hint)}"
            )
        if differing:
            return False
    return True


def doubts(own: Mapping[str, Any], folder: Path) -> list[str]:
    """Return lines about custom components whose changes cannot be detected, since an object has no fingerprint."""
    unverified = {name: parts["unverified"] for name, parts in own.items() if "unverified" in parts}
    lines = [
        f"{name} cannot be compared with a later one ({parts['unverifiable']}): {folder} cannot be continued"
        for name, parts in own.items()
        if "unverifiable" in parts
    ]
    if unverified:
        objects = "; ".join(f"{kinds} of {name}" for name, kinds in unverified.items())
        lines.append(f"not verified: {objects}. A change of their state is not noticed when {folder} is continued")
    return lines


def move_damaged(folder: Path, damaged: Iterable[CorruptFileError], say: Callable[[str], None]) -> None:
    """Move corrupt files into damaged/ and report each with `say`. Their contents are computed again."""
    for error in damaged:
        if error.path.exists():  # otherwise another shard moved it
            target = checksums.quarantine(folder, error.path)
            say(f"{error.path} is corrupt ({error.reason}). It was moved to {target}, and its results are computed again.")
    if tile_files.tile_paths(folder) + block_files.block_paths(folder) and not (folder / "manifest.json").exists():
        say(f"{folder} has no manifest.json. It is rebuilt from the raw files.")


def archive_derived(folder: Path, say: Callable[[str], None]) -> None:
    """Move derived files without raw files (as in a clone) into `earlier-N`, so that nothing is overwritten silently.

    The manifest moves last. An archive without a manifest is therefore unfinished after a kill, and is continued.
    """
    archives = (folder / f"earlier-{i}" for i in range(1, 10**6))
    archive = next(path for path in archives if not (path / "manifest.json").exists())
    derived = archive.exists() or any((folder / name).exists() for name in DERIVED)
    stored = tile_files.tile_paths(folder) or block_files.block_paths(folder)
    if not (folder / "manifest.json").exists() or not derived or stored:
        return
    with wrap_os_errors(archive):
        archive.mkdir(exist_ok=True)
        for name in (*DERIVED, *atomic_write.DERIVED, atomic_write.REPLAYS, "manifest.json"):
            if (folder / name).exists():
                shutil.move(folder / name, archive / name)
    say(f"{folder} had results without raw tiles. They were moved to {archive}.")
