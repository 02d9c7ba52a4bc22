"""What a results folder holds that a study goes on from: what is stored, what is damaged, what is put away first. Files only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.storage import atomic_write, block_files, checksums, locks, tile_files
from relu_study.storage.atomic_write import wrap_os_errors
from relu_study.storage.checksums import CorruptFileError, refuse_escaping_links
from relu_study.storage.manifest import read_manifest
from relu_study.storage.provenance import differences

DERIVED = (*checksums.CHECKSUMMED, checksums.SUMS, "report.md", "report.html")


@dataclass(frozen=True)
class FolderState:
    """What a results folder holds that a study goes on from, and what in it is damaged."""

    stored: Mapping[Any, dict[str, Any]] = field(default_factory=dict)  # runs or blocks -> provenance
    widths: Mapping[str, int] = field(default_factory=dict)  # of its cohorts
    timing: Mapping[str, float] = field(default_factory=dict)  # what it took so far
    damaged: Sequence[CorruptFileError] = ()


def read_folder_state(
    study: str,
    folder: Path | None,
    made: dict[str, Any],
    stored: Callable[[Path, list[CorruptFileError]], Mapping[Any, dict[str, Any]]],
    asked: Collection[Any],
    hint: str,
    derived: Collection[str] = (),
) -> FolderState:
    """What a study goes on from in a results folder; a folder that cannot be continued is refused.

    Raw files that cannot be believed hold nothing. Where the manifest is lost or garbled, raw files that hold some of what is
    `asked` for, agree with each other and were made as they would be now say all that it said of them: it is made anew.
    `derived`: metrics that are in a declaration without being among those measured by name.
    """
    if folder is None or not folder.exists():
        return FolderState()
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    if locks.is_fresh(folder):
        return FolderState()
    refuse_escaping_links(folder)
    damaged: list[CorruptFileError] = []
    lost = UserError(f"{folder} is not empty and holds no manifest.json; {hint}")
    manifest: dict[str, Any] = {"study": study, "provenance": made, "widths": {}}
    try:
        if found := (folder / "manifest.json").exists():
            manifest = read_manifest(folder)
    except CorruptFileError as error:
        found, lost = False, error
        damaged.append(error)
    if manifest["study"] != study:
        raise UserError(f"{folder} holds the study {manifest['study']!r}, not {study!r}; {hint}")
    known = stored(folder, damaged)
    if not found and not set(asked) & set(known):
        raise lost
    _same_metrics(folder, made, manifest, hint, derived) if known else None
    if not same_provenance(folder, made, manifest["provenance"], known.values(), hint):
        return FolderState(damaged=damaged)
    return FolderState(known, _widths(folder, manifest["widths"], known.values(), hint), manifest.get("timing", {}), damaged)


def _same_metrics(folder: Path, made: dict[str, Any], manifest: dict[str, Any], hint: str, derived: Collection[str]) -> None:
    """Refuse other metrics than a folder of an earlier version has; its tiles and new ones would not go together."""
    declared = (manifest.get("declaration") or {}).get("metrics")
    if "measured" in manifest["provenance"] or declared is None:
        return
    if new := [name for name in made.get("measured", ()) if name not in declared]:
        raise UserError(f"{folder} was made without the metric {', '.join(new)}; remove it, or {hint}")
    if gone := [name for name in declared if name not in {*made.get("measured", declared), *derived}]:
        raise UserError(f"{folder} was made with the metric {', '.join(gone)}; register it again, or {hint}")


def _widths(folder: Path, said: Mapping[str, int], stored: Iterable[dict[str, Any]], hint: str) -> dict[str, int]:
    """The width of every cohort as the manifest and the raw files say; where they say different ones they are refused."""
    widths = dict(said)
    for cohort, width in {(made["cohort"], made["width"]) for made in stored if "cohort" in made}:
        if widths.setdefault(cohort, width) != width:
            raise UserError(
                f"{folder} has raw files of cohort {cohort} of width {width}, and others or manifest.json say {widths[cohort]}; "
                f"restore what was changed, or {hint}"
            )
    return widths


def same_provenance(
    folder: Path, made: dict[str, Any], first: dict[str, Any], stored: Iterable[dict[str, Any]], hint: str
) -> bool:
    """Were a folder's manifest (`first`) and raw files made as they would be now? Refused where raw files were not."""
    stored = list(stored)
    doubtful = {name: parts["unverifiable"] for name, parts in made.get("own", {}).items() if "unverifiable" in parts}
    for name, reason in doubtful.items() if stored else ():
        raise UserError(f"{folder} cannot be continued: {name} cannot be compared with the stored one ({reason}); {hint}")
    for there in [first, *stored]:
        differs = differences(made, there)
        if differs and stored:
            what = folder / "raw" / there["file"] if there is not first else folder
            raise UserError(f"{what} was made otherwise ({'; '.join(differs)}) and would not mix; {hint}")
        if differs:
            return False
    return True


def doubts(own: Mapping[str, Any], folder: Path) -> list[str]:
    """Lines on entries of a study whose changes cannot be seen: objects without a fingerprint, and entries without one."""
    unseen = {name: parts["unverified"] for name, parts in own.items() if "unverified" in parts}
    lines = [
        f"{name} cannot be compared with a later one ({parts['unverifiable']}): {folder} cannot be continued"
        for name, parts in own.items()
        if "unverifiable" in parts
    ]
    if unseen:
        objects = "; ".join(f"{kinds} of {name}" for name, kinds in unseen.items())
        lines.append(f"not verified: {objects}. A change of their state is not noticed when {folder} is continued")
    return lines


def move_damaged(folder: Path, damaged: Iterable[CorruptFileError], say: Callable[[str], None]) -> None:
    """Move what is damaged into damaged/, and say so: what it held is made anew."""
    for error in damaged:
        if error.path.exists():  # else another shard has moved it
            away = checksums.quarantine(folder, error.path)
            say(f"{error.path} is damaged ({error.reason}): it is kept as {away}, and what it held is made again")
    if tile_files.tile_paths(folder) + block_files.block_paths(folder) and not (folder / "manifest.json").exists():
        say(f"{folder} has no manifest.json: a new one is made, with what its raw files say")


def archive_derived(folder: Path, say: Callable[[str], None]) -> None:
    """Move derived files whose tiles are not here (a clone's) into `earlier-N`: nothing is overwritten silently.

    The manifest goes last: a folder that has none of its own was being filled when its process was killed, and is filled on.
    """
    away = next(there for i in range(1, 10**6) if not ((there := folder / f"earlier-{i}") / "manifest.json").exists())
    derived = away.exists() or any((folder / name).exists() for name in DERIVED)
    stored = tile_files.tile_paths(folder) or block_files.block_paths(folder)
    if not (folder / "manifest.json").exists() or not derived or stored:
        return
    with wrap_os_errors(away):
        away.mkdir(exist_ok=True)
        for name in (*DERIVED, *atomic_write.DERIVED, "manifest.json"):
            if (folder / name).exists():
                shutil.move(folder / name, away / name)
    say(f"{folder} held results without their raw tiles; they are kept in {away}")
