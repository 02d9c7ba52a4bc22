"""What a tile must be: its runs those of its specs, its name that of its runs, its arrays as many and as large as they say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relu_study.bins import BINS, KINDS, POWERS, bounded
from relu_study.registry import UserError
from relu_study.seals import one_line, parsed
from relu_study.spec import id_of

STORED = ("ok", "nonfinite")  # the statuses of runs that have numbers
LOSSES = ("train_loss", "val_loss")  # metrics of every run that is finite: one without a number went nonfinite


def tile_name(runs: Iterable[str]) -> str:
    """The name of the file of a tile, after the run_ids that it holds."""
    return f"tile-{hashlib.sha256(''.join(sorted(map(str, runs))).encode()).hexdigest()[:12]}.npz"


def check_identity(name: str, runs: np.ndarray, specs: np.ndarray) -> None:
    """ValueError where a file of this name does not hold these runs, or a run is not that of its spec."""
    if runs.ndim != 1 or not len(runs) or runs.shape != specs.shape or {runs.dtype.kind, specs.dtype.kind} != {"U"}:
        raise ValueError("it names no runs")
    for run, spec in zip(runs.tolist(), specs.tolist(), strict=True):
        if id_of(parsed(spec)) != run:
            raise ValueError(f"its run {run} is not that of its spec")
    if name != (own := tile_name(runs)) or len(set(runs.tolist())) < len(runs):
        raise ValueError(f"it is another tile: its runs are those of {own}")


def check_arrays(tile: Mapping[str, np.ndarray], runs: int, epochs: np.ndarray) -> None:
    """ValueError where an array of a tile of so many runs is not as large as it must be, or of another kind."""
    if epochs.ndim != 1 or not len(epochs) or epochs.dtype.kind != "f" or not np.isfinite(epochs).all():
        raise ValueError("it has no epochs")
    # A tile from before the entry has single precision; one that was read in part does not say.
    made = parsed(str(tile["provenance"])) if "provenance" in tile else {}
    precision = number_type(made) if isinstance(made, dict) else np.float32
    for name, values in tile.items():
        kind, _, rest = name.partition(":")
        if kind in ("dead", "certified_dead"):
            fits = values.dtype == np.uint8 and values.shape == (runs, len(epochs), -(-int(tile[f"units:{rest}"]) // 8))
        elif kind == "metric":
            fits = rest.count("/") == 1 and values.dtype == precision and values.shape == (runs, len(epochs))
        elif kind == "histogram":
            fits = values.dtype.kind in "iu" and values.shape == (runs, len(epochs), BINS)
        elif kind == "bins":
            fits = rest.partition(":")[0] in KINDS and values.dtype == np.float64 and values.shape == (2,)
            fits = fits and bounded((values[0], values[1])) is not None
        elif kind in ("units", "probe_examples"):
            fits = values.dtype.kind in "iu" and values.shape == () and 1 <= int(values) < 2**31
        elif kind == "status":
            fits = values.shape == (runs,) and set(values.tolist()) <= set(STORED)
        elif kind == "first_bad_epoch":
            fits = values.shape == (runs,) and values.dtype.kind == "f"
        else:
            fits = kind != "provenance" or is_provenance(parsed(str(values)))
        if not fits:
            raise ValueError(f"its {name} cannot be that of {runs} runs over {len(epochs)} epochs")


def number_type(made: Mapping[str, Any]) -> type[np.floating[Any]]:
    """The type of the metrics of a provenance: double precision where JAX ran with it."""
    return np.float64 if made.get("precision") == "float64" else np.float32


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


def check_alike(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """ValueError where two tiles with runs of one configuration have not the same epochs, metrics, sites and bins."""
    series = ("metric:", "dead:", "certified_dead:", "units:", "bins:")
    names = [sorted(name for name in tile if name.startswith(series)) for tile in (one, other)]
    same = [name for name in one if name in ("epoch", "probe_examples") or name.startswith(("units:", "bins:"))]
    if names[0] != names[1] or not all(np.array_equal(one[name], other[name]) for name in same):
        raise ValueError("another tile has other epochs, metrics, sites or bins of its runs")


def same_run(one: Mapping[str, np.ndarray], row: int, other: Mapping[str, np.ndarray], at: int) -> bool:
    """Have two tiles the same numbers of a run that both hold, in these rows?"""
    names = [
        name for name in one if name.startswith(("metric:", "dead:", "certified_dead:")) or name in ("status", "first_bad_epoch")
    ]
    return one.keys() == other.keys() and all(_same(one[name][row], other[name][at]) for name in names)


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
