"""What a tile must be: its runs those of its specs, its name that of its runs, its arrays as many and as large as they say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from relu_study.stats.histogram_bins import BINS, KINDS, bounded
from relu_study.storage.checksums import strict_json
from relu_study.storage.provenance import is_provenance
from relu_study.study.run_spec import id_of

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
        if id_of(strict_json(spec)) != run:
            raise ValueError(f"its run {run} is not that of its spec")
    if name != (own := tile_name(runs)) or len(set(runs.tolist())) < len(runs):
        raise ValueError(f"it is another tile: its runs are those of {own}")


def check_arrays(tile: Mapping[str, np.ndarray], runs: int, epochs: np.ndarray) -> None:
    """ValueError where an array of a tile of so many runs is not as large as it must be, or of another kind."""
    if epochs.ndim != 1 or not len(epochs) or epochs.dtype.kind != "f" or not np.isfinite(epochs).all():
        raise ValueError("it has no epochs")
    # A tile from before the entry has single precision; one that was read in part does not say.
    made = strict_json(str(tile["provenance"])) if "provenance" in tile else {}
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
            fits = kind != "provenance" or is_provenance(strict_json(str(values)))
        if not fits:
            raise ValueError(f"its {name} cannot be that of {runs} runs over {len(epochs)} epochs")


def number_type(made: Mapping[str, Any]) -> type[np.floating[Any]]:
    """The type of the metrics of a provenance: double precision where JAX ran with it."""
    return np.float64 if made.get("precision") == "float64" else np.float32


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
