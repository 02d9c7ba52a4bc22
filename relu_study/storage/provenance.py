"""Comparison of provenances: stored results continue only with equal provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relu_study.errors import UserError
from relu_study.stats.histogram_bins import POWERS
from relu_study.storage.checksums import one_line


def is_provenance(made: Any) -> bool:
    """Is this what the numbers of a raw file depend on?"""
    kinds = {"own": dict, "cohort": str, "width": int}
    if not isinstance(made, dict) or ("cohort" in made and "width" not in made):
        return False
    return all(isinstance(made[name], kind) for name, kind in kinds.items() if name in made)


UNKNOWN = object()  # an earlier version did not store it: nothing can be compared
# The value of each newer key in a provenance without it, so that earlier folders stay valid.
EARLIER = {
    "measured_every": 1,
    "histogram_bins": POWERS,
    "matmul_precision": None,
    "measured": UNKNOWN,
    "histograms": UNKNOWN,
    "digest": UNKNOWN,
}


def differences(made: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """In words, where the provenance `there` is not that with which numbers are `made`; without any the numbers mix.

    Their `width` and `cohort` apart, which differ from tile to tile. An entry of a study's own that is new moves no old number.
    """
    there = {**EARLIER, **there}
    made = {"histogram_bins": POWERS, **made}
    differs = [
        _metrics(there[name], value) if name == "measured" else f"{name}: {there.get(name)} there, {value} here"
        for name, value in made.items()
        if name != "own" and there.get(name) is not UNKNOWN and there.get(name) != value
    ]
    own = there.get("own", {})
    found = {name: changed(own[name], source) for name, source in made.get("own", {}).items() if name in own}
    return differs + [f"{name} has changed{f' ({parts})' if parts else ''}" for name, parts in found.items() if parts is not None]


def _metrics(there: Sequence[str], here: Sequence[str]) -> str:
    new, gone = ([name for name in one if name not in other] for one, other in ((here, there), (there, here)))
    said = [f"{', '.join(names)} {what}" for names, what in ((new, "only here"), (gone, "only there")) if names]
    return f"metrics: {'; '.join(said) or 'in another order'}"


def changed(there: Any, here: Any) -> str | None:
    """The changed parts of an entry, None for the same entry; the hash of an earlier version is that of the source text."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        now = here.get("source") if isinstance(here, dict) else here
        return None if there == now or (isinstance(there, dict) and there.get("source") == here) else ""
    if there.get("whole") == here.get("whole"):
        return None
    apart = ("whole", "source", "unverified")
    parts = [name for name in {**there, **here} if name not in apart and there.get(name) != here.get(name)]
    inner = [name for name in parts if name != "entry"]
    return ", ".join(inner[:6]) + (f" and {len(inner) - 6} more" if len(inner) > 6 else "") or "its declaration"


def check_made(path: Path, made: Mapping[str, Any], cohort: str, manifest: Mapping[str, Any]) -> None:
    """Refuse a raw file that was made otherwise than a manifest says, or at another width than its cohort has there."""
    differs = differences(manifest["provenance"], made)
    width = manifest["widths"].get(cohort, made.get("width"))
    differs += [f"width: {made.get('width')} there, {width} here"] if made.get("width") != width else []
    if differs:
        raise UserError(
            f"{path} was made otherwise than manifest.json says ({one_line('; '.join(differs))}) and does not mix; "
            "move it away, or run the study into a new folder"
        )
