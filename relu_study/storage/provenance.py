"""Comparison of provenances: stored results continue only with equal provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.stats.histogram_bins import POWERS
from relu_study.storage.checksums import one_line
from relu_study.storage.declaration import CellManifest, StudyManifest


def is_provenance(value: Any) -> bool:
    """Whether a value has the form of a raw file's provenance."""
    kinds = {"own": dict, "cohort": str, "width": int}
    if not isinstance(value, dict) or ("cohort" in value and "width" not in value):
        return False
    return all(isinstance(value[name], kind) for name, kind in kinds.items() if name in value)


UNKNOWN = object()  # earlier versions did not store it, so it is not compared
UNLIKE = " (the arithmetic differs: another processor, instruction set or XLA flag)"
# The value of each newer key for a provenance without it: folders of earlier versions stay valid.
EARLIER = {
    "measured_every": 1,
    "histogram_bins": POWERS,
    "matmul_precision": None,
    "measured": UNKNOWN,
    "histograms": UNKNOWN,
    "digest": UNKNOWN,
}


def differences(current: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Return the differences of a stored provenance from the current one, as text. Numbers combine only if there are none.

    `width` and `cohort` vary between tiles and are not compared. A custom component that is only in `current` affects no stored
    number and is not a difference.
    """
    stored = {**EARLIER, **stored}
    current = {"histogram_bins": POWERS, **current}
    differing = [
        _metrics(stored[name], value)
        if name == "measured"
        else f"{name}: {stored.get(name)} there, {value} here{UNLIKE if name == 'digest' else ''}"
        for name, value in current.items()
        if name != "own" and stored.get(name) is not UNKNOWN and stored.get(name) != value
    ]
    own = stored.get("own", {})
    sources = {name: changed(own[name], source) for name, source in current.get("own", {}).items() if name in own}
    return differing + [
        f"{name} has changed{f' ({parts})' if parts else ''}" for name, parts in sources.items() if parts is not None
    ]


def _metrics(stored: Sequence[str], current: Sequence[str]) -> str:
    added, removed = ([name for name in one if name not in other] for one, other in ((current, stored), (stored, current)))
    parts = [f"{', '.join(names)} {where}" for names, where in ((added, "only here"), (removed, "only there")) if names]
    return f"metrics: {'; '.join(parts) or 'in another order'}"


def changed(stored: Any, current: Any) -> str | None:
    """Return the changed parts of a custom component, or None if it is unchanged. Earlier versions hash the source text only."""
    if not isinstance(current, dict) or not isinstance(stored, dict):
        source = current.get("source") if isinstance(current, dict) else current
        return None if stored == source or (isinstance(stored, dict) and stored.get("source") == current) else ""
    if stored.get("whole") == current.get("whole"):
        return None
    ignored = ("whole", "source", "unverified")
    parts = [name for name in {**stored, **current} if name not in ignored and stored.get(name) != current.get(name)]
    inner = [name for name in parts if name != "entry"]
    return ", ".join(inner[:6]) + (f" and {len(inner) - 6} more" if len(inner) > 6 else "") or "its declaration"


def check_provenance(path: Path, provenance: Mapping[str, Any], cohort: str, manifest: StudyManifest | CellManifest) -> None:
    """Raise UserError if the provenance or the tile width of a raw file differs from the manifest's."""
    differing = differences(manifest.provenance, provenance)
    width = manifest.widths.get(cohort, provenance.get("width"))
    differing += [f"width: {provenance.get('width')} there, {width} here"] if provenance.get("width") != width else []
    if differing:
        raise UserError(
            f"{path} has a different provenance than manifest.json ({one_line('; '.join(differing))}) and cannot be combined "
            "with it. Move it away, or run the study into a new folder."
        )
