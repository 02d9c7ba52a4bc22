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
    with_archive_checksum,
    without_checksum,
)

FORMAT = 2  # of manifest.json; 1 had no checksum
KINDS: tuple[tuple[str, Any], ...] = (("study", str), ("provenance", dict), ("widths", dict), ("declaration", (dict, type(None))))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json` with its checksum, keys in the order given, and make its folder; it holds finite numbers alone."""
    try:
        said = with_archive_checksum(manifest)
    except ValueError as error:
        raise UserError(f"study {manifest['study']} declares what manifest.json cannot hold: {error}") from None
    make_dirs(folder)
    write_atomically(folder / "manifest.json", (json.dumps(said, indent=1) + "\n").encode())


def amend_manifest(folder: Path, seconds: Mapping[str, float], **entries: Any) -> None:
    """Add time to the manifest as it stands by now, whoever else has written it meanwhile, and replace some of its entries."""
    with locks.manifest_mutex(folder):
        manifest = read_manifest(folder)
        spent = manifest["timing"] | {name: round(manifest["timing"].get(name, 0.0) + more, 2) for name, more in seconds.items()}
        write_manifest(folder, {**manifest, "timing": spent, **entries})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a results folder without its checksum; a folder without one is refused, and one that links lead out of.

    A manifest that is not what was written is Damaged; one of format 1 has no checksum.
    """
    path = folder / "manifest.json"
    if folder.is_dir():
        refuse_escaping_links(folder)
    if not path.is_file():
        raise UserError(
            f"{folder} is no results folder: it has no manifest.json; make one with 'relu-study run STUDY --out {folder}'"
        )
    try:
        manifest = strict_json(path.read_bytes())
        if manifest["format"] not in (1, FORMAT):
            raise UserError(
                f"{path} has format {manifest['format']!r}, this relu-study reads format {FORMAT} and those before it"
            )
        manifest = without_checksum(manifest, needed=manifest["format"] > 1)
        for name, kind in KINDS:
            if not isinstance(manifest[name], kind):
                raise ValueError(f"its {name} cannot be read")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        hint = "restore it or run the study into a new folder, or again into this one, whose raw/ may tell what is lost"
        raise CorruptFileError(path, "is garbled", reason, hint) from None
    return dict(manifest)


def seeds_of(declaration: Mapping[str, Any]) -> dict[str, int]:
    """config_id -> its seeds; an earlier version declared one number for all of them."""
    return {entry["config_id"]: entry.get("seeds", declaration["seeds"]) for entry in declaration["configurations"]}
