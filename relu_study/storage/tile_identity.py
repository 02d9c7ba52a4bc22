"""Validation of tiles: their run ids, file name, array shapes and dtypes, and their agreement with other tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from relu_study.stats.histogram_bins import BINS, KINDS, bounded
from relu_study.storage.checksums import strict_json
from relu_study.storage.provenance import is_provenance
from relu_study.storage.statuses import STORED
from relu_study.study.run_spec import id_of

LOSSES = ("train_loss", "val_loss")  # metrics of every run at every epoch: NaN means that the run went nonfinite


def tile_name(runs: Iterable[str]) -> str:
    """Return the file name of a tile: a hash of its sorted run_ids."""
    return f"tile-{hashlib.sha256(''.join(sorted(map(str, runs))).encode()).hexdigest()[:12]}.npz"


def check_identity(name: str, runs: np.ndarray, specs: np.ndarray) -> None:
    """Raise ValueError if the file name does not match the runs, or a run_id does not match its spec."""
    is_text = runs.dtype.kind == specs.dtype.kind == "U"
    if runs.ndim != 1 or not len(runs) or runs.shape != specs.shape or not is_text:
        raise ValueError("its run ids are invalid")
    for run, spec in zip(runs.tolist(), specs.tolist(), strict=True):
        if id_of(strict_json(spec)) != run:
            raise ValueError(f"its run {run} does not match its spec")
    is_repeated = len(set(runs.tolist())) < len(runs)
    if name != (expected := tile_name(runs)) or is_repeated:
        raise ValueError(f"its runs belong to {expected}")


def check_arrays(tile: Mapping[str, np.ndarray], runs: int, epochs: np.ndarray) -> None:
    """Raise ValueError if an array of a tile has the wrong shape, dtype or values for this number of runs."""
    if epochs.ndim != 1 or not len(epochs) or epochs.dtype.kind != "f" or not np.isfinite(epochs).all():
        raise ValueError("its epochs are invalid")
    # Tiles of earlier versions have no precision entry and single precision; a partial read has no provenance.
    provenance = strict_json(str(tile["provenance"])) if "provenance" in tile else {}
    precision = number_type(provenance) if isinstance(provenance, dict) else np.float32
    for name, values in tile.items():
        if not _fits(name, values, tile, (runs, len(epochs)), precision):
            raise ValueError(f"its {name} does not fit {runs} runs over {len(epochs)} epochs")


def _fits(
    name: str, values: np.ndarray, tile: Mapping[str, np.ndarray], shape: tuple[int, int], precision: type[np.floating[Any]]
) -> bool:
    """Whether an array has the layout of its name. `shape` is the number of runs and of epochs."""
    kind, _, rest = name.partition(":")
    if kind in ("dead", "certified_dead"):
        num_bytes = -(-int(tile[f"units:{rest}"]) // 8)  # one bit per unit, rounded up
        return values.dtype == np.uint8 and values.shape == (*shape, num_bytes)
    if kind == "metric":
        return rest.count("/") == 1 and values.dtype == precision and values.shape == shape
    if kind == "histogram":
        return values.dtype.kind in "iu" and values.shape == (*shape, BINS)
    if kind == "bins":
        is_range = values.dtype == np.float64 and values.shape == (2,)
        return rest.partition(":")[0] in KINDS and is_range and bounded((values[0], values[1])) is not None
    if kind in ("units", "probe_examples"):
        return values.dtype.kind in "iu" and values.shape == () and 1 <= int(values) < 2**31
    if kind == "status":
        return values.shape == shape[:1] and set(values.tolist()) <= set(STORED)
    if kind == "first_bad_epoch":
        return values.shape == shape[:1] and values.dtype.kind == "f"
    return kind != "provenance" or is_provenance(strict_json(str(values)))


def number_type(provenance: Mapping[str, Any]) -> type[np.floating[Any]]:
    """Return the dtype of the metrics: float64 if JAX ran in double precision, else float32."""
    return np.float64 if provenance.get("precision") == "float64" else np.float32


def check_alike(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if two tiles of one configuration differ in epochs, metrics, sites or bins."""
    series = ("metric:", "dead:", "certified_dead:", "units:", "bins:")
    names = [sorted(name for name in tile if name.startswith(series)) for tile in (one, other)]
    same = [name for name in one if name in ("epoch", "probe_examples") or name.startswith(("units:", "bins:"))]
    if names[0] != names[1] or not all(np.array_equal(one[name], other[name]) for name in same):
        raise ValueError("another tile of its configuration has different epochs, metrics, sites or bins")


def same_run(one: Mapping[str, np.ndarray], row: int, other: Mapping[str, np.ndarray], other_row: int) -> bool:
    """Whether two tiles have equal numbers of a run, in row `row` of one and row `other_row` of the other."""
    series = ("metric:", "dead:", "certified_dead:")
    names = [name for name in one if name.startswith(series) or name in ("status", "first_bad_epoch")]
    return one.keys() == other.keys() and all(_same(one[name][row], other[name][other_row]) for name in names)


def _same(one: Any, other: Any) -> bool:
    """Whether two arrays are equal, NaN included."""
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")
