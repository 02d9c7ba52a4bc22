"""The results as DataFrames, and the CSV files they become: one row a run, a configuration, a cell, a site.

Everything is formed from arrays of whole configurations; no row is ever appended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError
from relu_study.stats import intervals, survival
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import CONFIG_FIELDS, DTYPES, csv_text, read_csv, read_runs
from relu_study.storage.manifest import seeds_of
from relu_study.storage.schema import COLUMNS, read_whole_manifest
from relu_study.storage.tile_files import tile_paths
from relu_study.storage.tile_identity import STORED, number_type
from relu_study.study.run_spec import RunSpec

BINARY_METRICS = ("collapsed", "constant", "trained")  # 0 or 1 a run: a Wilson interval, not a t interval


@dataclass
class Results:
    """A results folder in memory: `runs` (one row a run), `summary` (one row a configuration, metric, site and epoch).

    `params` holds final parameters by run_id, where the call that trained them kept them.
    """

    folder: Path
    runs: pd.DataFrame
    summary: pd.DataFrame
    read_curves: pd.DataFrame | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def curves(self) -> pd.DataFrame:
        """Columns run_id, config_id, seed, metric, site, epoch, value.

        Values are float32, or float64 where JAX ran so; NaN: empty or nonfinite.
        """
        if self.read_curves is None:
            raise UserError(
                f"curves need {self.folder / 'raw'}, which is not there (a clone has only the CSVs); run the study again"
            )
        return self.read_curves


@numpy_defaults()
def load(folder: str | Path) -> Results:
    """A results folder as DataFrames; a folder without manifest.json, runs.csv or summary.csv is refused by name."""
    folder = Path(folder).expanduser()
    manifest = read_whole_manifest(folder)
    stored = curves(collect(folder, manifest)) if tile_paths(folder) else None
    return Results(folder, read_runs(folder, manifest), read_csv(folder / "summary.csv"), stored)


def frames(
    configurations: dict[str, Configuration], manifest: dict[str, Any], all_epochs: bool = False
) -> dict[str, pd.DataFrame]:
    """The frames behind runs.csv, experiments.csv, summary.csv, units.csv and survival.csv, by name."""
    declared = manifest["declaration"]["configurations"]
    pairs = dict.fromkeys((entry["experiment"], entry["config_id"]) for entry in declared)
    return {
        "runs": runs_frame(configurations, manifest),
        "experiments": pd.DataFrame(list(pairs), columns=["experiment", "config_id"]),
        "summary": summary_frame(configurations, manifest, None if all_epochs else report_epochs(manifest["declaration"])),
        "units": units_frame(configurations),
        "survival": survival_frame(configurations),
    }


def runs_frame(configurations: dict[str, Configuration], manifest: dict[str, Any], epoch: float | None = None) -> pd.DataFrame:
    """Each wanted run once, seeds innermost, with its metrics at an epoch (None: its last).

    One that is not stored is `interrupted`, or `oom` where the manifest says that it did not fit in memory.
    """
    seeds = seeds_of(manifest["declaration"])
    specs = {entry["config_id"]: entry["spec"] for entry in manifest["declaration"]["configurations"]}
    found = _ordered({name for c in configurations.values() for name in c.values}, manifest["declaration"]["metrics"])
    names = list(dict.fromkeys([*manifest["declaration"]["columns"], *found]))
    column = {name: i for i, name in enumerate(names)}
    runs = [(config_id, seed) for config_id in specs for seed in range(seeds[config_id])]
    first = dict(zip(specs, np.cumsum([0, *(seeds[config_id] for config_id in specs)]).tolist(), strict=False))
    status = np.full(len(runs), "interrupted", dtype=object)
    unfit = set(manifest.get("oom", ()))
    bad, probed = np.full((2, len(runs)), np.nan)
    numbers = np.full((len(runs), len(names)), np.nan, number_type(manifest["provenance"]))
    for config_id in specs:
        if (c := configurations.get(config_id)) is None:
            continue
        rows = first[config_id] + c.seeds
        status[rows], bad[rows], probed[rows] = c.status, c.first_bad_epoch, c.probe_examples
        at = c.epochs == (c.epochs[-1] if epoch is None else epoch)
        for name, values in c.values.items() if at.any() else ():
            numbers[rows, column[name]] = values[:, at.argmax()]
    fields = _spec_columns(specs, [config_id for config_id, _ in runs]).assign(seed=[seed for _, seed in runs])
    fields.insert(0, "run_id", [RunSpec(**specs[config_id], seed=seed).run_id for config_id, seed in runs])
    status[(status == "interrupted") & fields["run_id"].isin(unfit).to_numpy()] = "oom"
    fields = fields.assign(status=status, first_bad_epoch=bad, probe_examples=pd.array(probed, "Int64"))
    metrics = pd.DataFrame(numbers, columns=names)
    return pd.concat([fields, metrics], axis=1)


def report_epochs(declaration: dict[str, Any]) -> set[float]:
    """The epochs that summary.csv holds besides each run's last: the study's, and each that a claim, table or map names."""
    named = list(declaration["report_epochs"])
    for claim in declaration["claims"]:
        named += [claim["epoch"], claim["against_epoch"]]
    for table in declaration["tables"]:
        metrics = [m for event in table["events"].values() for m in event] if "events" in table else table["metrics"]
        named += [table.get("epoch"), *(metric.partition("@")[2] for metric in metrics)]
    named += [figure["epoch"] for figure in declaration["figures"] if figure["kind"] == "map"]
    return {float(epoch) for epoch in named if epoch is not None and re.fullmatch(r"\d+(\.\d*)?", str(epoch))}


def summary_frame(
    configurations: dict[str, Configuration], manifest: dict[str, Any], epochs: set[float] | None = None
) -> pd.DataFrame:
    """One row a configuration, metric, site and epoch: the runs' mean with its 95 % interval, and their spread.

    n counts the runs wanted, n_finite those with a value. `epochs` None keeps all, else these and the last.
    """
    parts = [_summarised(c, manifest["declaration"]["metrics"]) for c in configurations.values()]
    specs = {config_id: c.spec for config_id, c in configurations.items()}
    sizes = [len(part["n"]) for part in parts]
    cells = _stacked(parts, ["metric", "site", "epoch", "probe_examples", "n", "n_finite", *intervals.MOMENTS])
    summary = pd.concat([_spec_columns(specs, np.repeat(list(specs), sizes)), cells], axis=1)
    return summary if epochs is None else at_epochs(summary, epochs)


def at_epochs(summary: pd.DataFrame, epochs: set[float]) -> pd.DataFrame:
    """The rows at some epochs and at each configuration's last."""
    last = summary.groupby("config_id", sort=False)["epoch"].transform("max")
    return summary[summary["epoch"].isin(epochs) | (summary["epoch"] == last)].reset_index(drop=True)


def units_frame(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """One row a configuration and site: how many units were born dead, died, revived and are dead at the end.

    Counts are over all runs, those at the end over the runs that stayed finite; the fraction is of their units, its interval
    over runs (`stats.over_runs`). `certified_revived`: certified dead and later no longer (empty where nothing can be certified).
    """
    counts = ("born_dead", "died", "revived")
    parts = []
    for c in configurations.values():
        for site, dead in c.dead.items():
            lived = survival.unit_histories(dead, c.epochs, c.first_bad_epoch)
            row: dict[str, Any] = {"config_id": c.config_id, "site": site, "probe_examples": c.probe_examples}
            row |= {"runs": len(dead), "units": dead[:, 0].size}
            row |= {name: int(getattr(lived, name).sum()) for name in counts}
            at_end, units = np.where(lived.censored, 0, lived.dead_at_end), np.where(lived.censored, 0, dead.shape[2])
            row["dead_at_end"] = int(at_end.sum())
            row["dead_at_end_fraction"] = at_end.sum() / units.sum() if units.any() else np.nan
            row["ci_lo"], row["ci_hi"] = intervals.ratio_interval(at_end, units, intervals.generator(f"{c.config_id}/{site}"))
            if (certified := c.certified_dead.get(site)) is not None:
                row["certified_revived"] = int(survival.unit_histories(certified, c.epochs, c.first_bad_epoch).revived.sum())
            parts.append(row)
    return pd.DataFrame(parts, columns=list(COLUMNS["units"])).astype({"certified_revived": "Int64"})


def survival_frame(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """One row a configuration, site and epoch: the share of the units born alive that has not died (Kaplan-Meier)."""
    parts = []
    for c in configurations.values():
        for site, dead in c.dead.items():
            curve = survival.survival(dead, c.epochs, c.first_bad_epoch, intervals.generator(f"{c.config_id}/{site}"))
            size = len(c.epochs)
            head: dict[str, Any] = {"config_id": c.config_id, "site": site, "epoch": c.epochs, "probe_examples": c.probe_examples}
            parts.append({name: np.broadcast_to(value, size) for name, value in (head | dict(curve)).items()})
    return _stacked(parts, list(COLUMNS["survival"]))


def curves(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """One row a stored run, metric, site and epoch, the names as categories: about 20 bytes a row."""
    names = {name for c in configurations.values() for name in c.values}
    metrics, sites = sorted({n.split("/")[0] for n in names}), sorted({n.split("/")[1] for n in names}, key=_site_order)
    parts, first = [], 0
    for number, c in enumerate(configurations.values()):
        split = [name.split("/") for name in c.values]
        cells: dict[str, np.ndarray] = {
            "run_id": np.arange(first, first + len(c.seeds), dtype=np.int32)[:, None, None],
            "config_id": np.array(number, np.int16),
            "seed": c.seeds.astype(np.uint32)[:, None, None],
            "metric": np.array([metrics.index(m) for m, _ in split], np.int16)[:, None],
            "site": np.array([sites.index(s) for _, s in split], np.int16)[:, None],
            "epoch": c.epochs.astype(np.float32),
            "value": np.stack(list(c.values.values()), axis=1),
        }
        shape, first = cells["value"].shape, first + len(c.seeds)
        parts.append({name: np.broadcast_to(v, shape).ravel() for name, v in cells.items()})
    frame = _stacked(parts, ["run_id", "config_id", "seed", "metric", "site", "epoch", "value"])
    runs = [run for c in configurations.values() for run in c.run_ids]
    for name, known in {"run_id": runs, "config_id": list(configurations), "metric": metrics, "site": sites}.items():
        frame[name] = pd.Categorical.from_codes(frame[name].to_numpy(), pd.Index(known, dtype="str"))
    return frame


def configurations_from_runs_csv(runs: pd.DataFrame) -> dict[str, Configuration]:
    """The runs of runs.csv by configuration, with their metrics at their last epoch and nothing of the epochs before."""
    found = {}
    columns = [name for name in runs.columns if "/" in name]
    for config_id, rows in runs.groupby("config_id", sort=False):
        stored = rows[rows["status"].isin(STORED)]
        if len(stored):
            found[str(config_id)] = Configuration(
                config_id=str(config_id),
                spec={name: stored[name].iloc[0] for name in CONFIG_FIELDS},
                num_requested=len(rows),
                run_ids=list(stored["run_id"]),
                seeds=stored["seed"].to_numpy(),
                epochs=stored["epochs"].to_numpy(float)[:1],
                status=stored["status"].to_numpy(str),
                first_bad_epoch=stored["first_bad_epoch"].to_numpy(float),
                probe_examples=int(stored["probe_examples"].iloc[0]),
                values={name: stored[name].to_numpy()[:, None] for name in columns},
            )
    return found


def runs_csv(configurations: dict[str, Configuration], manifest: dict[str, Any]) -> str:
    """The text of runs.csv."""
    return csv_text(runs_frame(configurations, manifest))


def _summarised(c: Configuration, metrics: Iterable[str]) -> dict[str, np.ndarray]:
    """The cells of one configuration, series outermost: all its series are summarised in one call."""
    names = _ordered(c.values, metrics)
    values = np.stack([c.values[name] for name in names], axis=1).astype(float)  # runs x series x epochs
    cells = intervals.summarise(values)
    for i, name in enumerate(names):
        if name.split("/")[0] in BINARY_METRICS:
            cells["ci_lo"][i], cells["ci_hi"][i] = intervals.wilson(np.nansum(values[:, i], axis=0), cells["n_finite"][i])
    shape = values.shape[1:]
    metric, site = np.array([name.split("/") for name in names]).T[:, :, None]
    cells |= {
        "metric": metric,
        "site": site,
        "epoch": c.epochs,
        "probe_examples": np.array(c.probe_examples),
        "n": np.array(c.num_requested),
    }
    return {name: np.broadcast_to(cell, shape).ravel() for name, cell in cells.items()}


def _spec_columns(specs: dict[str, dict[str, Any]], config_ids: Iterable[str]) -> pd.DataFrame:
    """config_id and every RunSpec field but the seed, one row for each of `config_ids`."""
    frame = pd.DataFrame([{"config_id": c, **spec} for c, spec in specs.items()], columns=["config_id", *CONFIG_FIELDS])
    frame = frame.astype({name: DTYPES[name] for name in CONFIG_FIELDS})
    return frame.iloc[pd.Index(frame["config_id"]).get_indexer(list(config_ids))].reset_index(drop=True)


def _stacked(parts: list[dict[str, np.ndarray]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) if parts else [] for name in columns})


def _ordered(names: Iterable[str], metrics: Iterable[str]) -> list[str]:
    """`metric/site` names in the order the metrics are declared, `all` first and site_10 after site_9."""
    place = {metric: i for i, metric in enumerate(metrics)}
    split = sorted((name.split("/") for name in names), key=lambda s: (place.get(s[0], len(place)), s[0], *_site_order(s[1])))
    return ["/".join(pair) for pair in split]


def _site_order(site: str) -> tuple[bool, int, str]:
    return site != "all", len(site), site
