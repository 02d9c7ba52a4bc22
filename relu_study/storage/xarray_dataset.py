"""Results of a study as an xarray Dataset: configuration x seed x epoch x site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError
from relu_study.storage.declaration import StudyManifest
from relu_study.storage.quantities import DeclaredMetric
from relu_study.storage.results import Results
from relu_study.storage.schema import REASON
from relu_study.storage.statuses import STORED

if TYPE_CHECKING:
    import xarray

DIMS = ("config", "seed", "epoch", "site")
NOT_REQUESTED = "not requested"  # status of a seed that a configuration does not have
RUN_TEXTS = ("run_id", "status", REASON)
Coordinates = dict[str, tuple[Any, Any]]


def dataset(results: Results) -> xarray.Dataset:
    """Return the Dataset of `Results.to_xarray`."""
    try:
        import xarray
    except ModuleNotFoundError:
        raise UserError("to_xarray needs the package xarray. Install it with: pip install 'relu_study[xarray]'") from None
    manifest, runs = results.manifest, results.runs
    if manifest is None:
        raise UserError("to_xarray needs the results of a study. Read its folder with relu_study.load.")
    ids, num_seeds = pd.Index(dict.fromkeys(runs["config_id"])), int(runs["seed"].max()) + 1
    every = results.read_curves is not None
    table = results.read_curves if results.read_curves is not None else last_values(runs)
    metrics, epochs, sites = _metrics(table, ids, num_seeds, manifest.declaration.metrics)
    coordinates = _coordinates(runs, ids, manifest)
    coordinates |= {"seed": ("seed", np.arange(num_seeds)), "epoch": ("epoch", epochs)}
    if sites:
        coordinates["site"] = ("site", np.array(sites, str))
    variables = _runs(runs, ids, num_seeds)
    if taken := sorted(metrics.keys() & {*coordinates, *variables, "config"}):
        raise UserError(f"the metric {taken[0]} has the name of a coordinate or variable of the Dataset. Rename the metric.")
    attributes = {
        "title": manifest.declaration.title,
        "study": manifest.study,
        "command": manifest.command,
        "epochs": "every measured epoch" if every else "the last epoch of each run, since raw/ is missing",
    }
    return xarray.Dataset({**variables, **metrics}, coordinates, attributes).set_xindex("config_id")


def last_values(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of runs.csv as `curves`: one row per stored run, metric and site, at the last epoch of the run."""
    stored = runs[runs["status"].isin(STORED)]
    names = [name for name in runs.columns if "/" in name]
    table = stored.melt(["config_id", "seed", "epochs"], names, "name", "value").rename(columns={"epochs": "epoch"})
    parts = {name: name.partition("/") for name in names}
    series = table.pop("name")
    return table.assign(metric=[parts[name][0] for name in series], site=[parts[name][2] for name in series])


def _metrics(
    table: pd.DataFrame, ids: pd.Index[Any], num_seeds: int, declared: Mapping[str, DeclaredMetric]
) -> tuple[dict[str, tuple[Any, ...]], np.ndarray, list[str]]:
    """Return the variable of each metric, the epochs and the sites. A metric of the whole network has no sites."""
    measured = np.unique(table["epoch"])
    epochs = np.array([float(str(epoch)) for epoch in measured])  # the shortest decimals of float32
    of_metric = table["metric"].astype(str).to_numpy()
    found = set(table["site"].unique())
    sites = sorted(found, key=lambda site: (site != "all", len(site), site)) if found - {"all"} else []
    codes = [ids.get_indexer(pd.Index(table["config_id"].astype(str))), table["seed"].to_numpy(np.int64)]
    codes.append(np.searchsorted(measured, table["epoch"]))
    at_site = pd.Index(sites or ["all"]).get_indexer(pd.Index(table["site"].astype(str)))
    values = table["value"].to_numpy()
    variables: dict[str, tuple[Any, ...]] = {}
    for metric in [*(name for name in declared if name in set(of_metric)), *sorted(set(of_metric) - declared.keys())]:
        rows = np.flatnonzero(of_metric == metric)
        has_sites = bool(sites) and bool((table["site"].to_numpy()[rows] != "all").any())
        cube = np.full((len(ids), num_seeds, len(epochs), *([len(sites)] if has_sites else [])), np.nan, values.dtype)
        cube[tuple(code[rows] for code in (*codes, *([at_site] if has_sites else [])))] = values[rows]
        variables[metric] = DIMS[: cube.ndim], cube, _attributes(metric, declared.get(metric, DeclaredMetric()))
    return variables, epochs, sites


def _attributes(name: str, about: DeclaredMetric) -> dict[str, Any]:
    """Return the attributes of a metric, by the CF conventions where these have a name."""
    entries = {
        "long_name": name.replace("_", " "),
        "units": about.unit,
        "valid_min": about.low,
        "valid_max": about.high,
        "direction": about.direction,
        "definition": about.text,
        "source": about.source,
    }
    return {key: value for key, value in entries.items() if value not in (None, "")}


def _coordinates(runs: pd.DataFrame, ids: pd.Index[Any], manifest: StudyManifest) -> Coordinates:
    """Return the coordinates of configurations: id, experiments, arms, target, varied factors, options, probe examples."""
    declaration = manifest.declaration
    firsts = runs.drop_duplicates("config_id").set_index("config_id").loc[ids]
    entries = {name: [entry for entry in declaration.configurations if entry.config_id == name] for name in ids}
    texts = {
        "config_id": list(ids),
        "experiment": [_joined(entry.experiment for entry in entries[name]) for name in ids],
        "arm": [_joined(entry.arm for entry in entries[name]) for name in ids],
    }
    factors = dict.fromkeys(["target", *declaration.factors, *declaration.options])
    columns = {name: _plain(firsts[name]) for name in factors if name in firsts and name not in (*DIMS, *texts)}
    probes = runs.groupby("config_id", sort=False)["probe_examples"].first().loc[ids]
    found = {**{name: np.array(values, str) for name, values in texts.items()}, **columns, "probe_examples": _plain(probes)}
    return {name: ("config", values) for name, values in found.items()}


def _joined(names: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(names))


def _plain(column: pd.Series) -> np.ndarray:
    """Return a column as a NumPy array of numbers or texts. A missing number is NaN."""
    if pd.api.types.is_numeric_dtype(column):  # also of booleans
        return column.to_numpy(float, na_value=np.nan) if column.isna().any() else np.array(column.tolist())
    return column.astype(str).to_numpy(str)


def _runs(runs: pd.DataFrame, ids: pd.Index[Any], num_seeds: int) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    """Return the variables of single runs: id, status, reason of crashed runs, first nonfinite epoch."""
    place = ids.get_indexer(pd.Index(runs["config_id"])), runs["seed"].to_numpy()
    shape = len(ids), num_seeds
    variables: dict[str, tuple[Sequence[str], np.ndarray]] = {}
    for name in (name for name in RUN_TEXTS if name in runs):
        texts = np.full(shape, NOT_REQUESTED if name == "status" else "", object)
        texts[place] = runs[name].to_numpy(object)
        variables[name] = DIMS[:2], texts.astype(str)
    bad = np.full(shape, np.nan)
    bad[place] = runs["first_bad_epoch"].to_numpy(float)
    return {**variables, "first_bad_epoch": (DIMS[:2], bad)}
