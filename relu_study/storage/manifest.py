"""The manifest of a results folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.storage import locks
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.checksums import (
    CorruptFileError,
    refuse_escaping_links,
    strict_json,
    with_checksum,
    without_checksum,
)

FORMAT = 2  # of manifest.json; 1 had no checksum
MONITOR = "monitor"  # the kind in the manifest of a monitored training
KINDS: tuple[tuple[str, Any], ...] = (("study", str), ("provenance", dict), ("widths", dict), ("declaration", (dict, type(None))))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` with its checksum, keys in the given order, and create its folder. All numbers must be finite."""
    try:
        entries = with_checksum(manifest)
    except ValueError as error:
        raise UserError(
            f"study {manifest['study']} declares a value that JSON cannot represent ({error}). Declare finite plain data."
        ) from None
    make_dirs(folder)
    write_atomically(folder / "manifest.json", (json.dumps(entries, indent=1) + "\n").encode())


def amend_manifest(folder: Path, seconds: Mapping[str, float], **entries: Any) -> None:
    """Add `seconds` to the timing of the current manifest and replace `entries`, under the manifest mutex."""
    with locks.manifest_mutex(folder):
        manifest = read_manifest(folder)
        spent = manifest["timing"] | {name: round(manifest["timing"].get(name, 0.0) + more, 2) for name, more in seconds.items()}
        write_manifest(folder, {**manifest, "timing": spent, **entries})


def fix_width(folder: Path, cohort: str, width: int) -> int:
    """Return the tile width of a cohort in the manifest. If it has none, add `width`, under the manifest mutex."""
    with locks.manifest_mutex(folder):
        manifest = read_manifest(folder)
        widths = {cohort: width} | manifest["widths"]
        if widths != manifest["widths"]:
            write_manifest(folder, {**manifest, "widths": dict(sorted(widths.items()))})
        return int(widths[cohort])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a results folder, without its checksum. Format 1 has no checksum.

    Raises:
        UserError: the folder has no manifest.json or a link out of it, or the format is unknown.
        CorruptFileError: the manifest differs from the written one.
    """
    path = folder / "manifest.json"
    if folder.is_dir():
        refuse_escaping_links(folder)
    if not path.is_file():
        raise UserError(
            f"{folder} is not a results folder: it has no manifest.json. Create one with 'relu-study run STUDY --out {folder}'."
        )
    try:
        manifest = strict_json(path.read_bytes())
        if not isinstance(manifest["format"], int):
            raise ValueError("its format is invalid")
        if manifest["format"] not in (1, FORMAT):
            raise UserError(
                f"{path} has format {manifest['format']}, and this relu-study reads formats up to {FORMAT}. "
                "Use the version that wrote it."
            )
        manifest = without_checksum(manifest, needed=manifest["format"] > 1)
        if manifest.get("kind") == MONITOR:
            raise UserError(f"{folder} is the folder of a monitor. Read it with relu_study.load or 'relu-study table {folder}'.")
        for name, kind in KINDS:
            if not isinstance(manifest[name], kind):
                raise ValueError(f"its {name} is invalid")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        hint = "restore it, run the study into a new folder, or run it into this one to rebuild the manifest from raw/"
        raise CorruptFileError(path, "is corrupt", reason, hint) from None
    return dict(manifest)


def is_monitored(folder: Path) -> bool:
    """Whether a folder was written by a monitor. False without a readable manifest."""
    try:
        return kind_of(folder) == MONITOR
    except CorruptFileError:
        return False


def kind_of(folder: Path) -> str:
    """Return the kind in a manifest; empty for a study. Raises CorruptFileError."""
    path = folder / "manifest.json"
    try:
        return str(strict_json(path.read_bytes()).get("kind", ""))
    except (OSError, ValueError, AttributeError) as error:
        raise CorruptFileError(path, "is corrupt", error, "restore it, or name another folder") from None


def seeds_of(declaration: Mapping[str, Any]) -> dict[str, int]:
    """Return config_id -> number of seeds. Earlier versions declare one number for all."""
    return {entry["config_id"]: entry.get("seeds", declaration["seeds"]) for entry in declaration["configurations"]}
