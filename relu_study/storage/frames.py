"""DataFrames behind the CSV files of a results folder.

They are built from the arrays of whole configurations, without appending rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.stats import intervals, survival
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import CONFIG_FIELDS, DTYPES, option_dtypes, read_runs, read_summary
from relu_study.storage.declaration import Declaration, StudyManifest, read_declared
from relu_study.storage.manifest import is_monitored
from relu_study.storage.monitor_results import load_monitor
from relu_study.storage.results import Results
from relu_study.storage.schema import COLUMNS, REASON
from relu_study.storage.statuses import STORED, listed, reasons_text
from relu_study.storage.tile_files import tile_paths
from relu_study.storage.tile_identity import number_type
from relu_study.study.epochs import epoch_number
from relu_study.study.outputs import Table

BINARY_METRICS = ("collapsed", "constant", "trained", "val_trained")  # 0 or 1 per run: a Wilson interval, not a t interval


@numpy_defaults()
def load(folder: str | Path) -> Results:
    """Read a results folder as DataFrames: `Results` of a study, `MonitorResults` of a monitored training.

    Raises:
        UserError: manifest.json, runs.csv or summary.csv is missing or corrupt.
    """
    folder = Path(folder).expanduser()
    if is_monitored(folder):
        return load_monitor(folder)
    manifest = read_declared(folder)
    stored = curves(collect(folder, manifest)) if tile_paths(folder) else None
    return Results(folder, read_runs(folder, manifest), read_summary(folder, manifest), stored, manifest=manifest)


def frames(
    configurations: dict[str, Configuration], manifest: StudyManifest, all_epochs: bool = False
) -> dict[str, pd.DataFrame]:
    """Return the frames of runs.csv, experiments.csv, summary.csv, units.csv and survival.csv, by name."""
    pairs = dict.fromkeys((entry.experiment, entry.config_id) for entry in manifest.declaration.configurations)
    return {
        "runs": runs_frame(configurations, manifest),
        "experiments": pd.DataFrame(list(pairs), columns=["experiment", "config_id"]),
        "summary": summary_frame(configurations, manifest, None if all_epochs else report_epochs(manifest.declaration)),
        "units": units_frame(configurations),
        "survival": survival_frame(configurations),
    }


def runs_frame(configurations: dict[str, Configuration], manifest: StudyManifest, epoch: float | None = None) -> pd.DataFrame:
    """Return one row per declared run, seeds innermost, with its metrics at `epoch` (None: its last).

    The status of a missing run is `oom` or `crashed` if the manifest lists it so, else `interrupted`. The column `reason` exists
    only if a run crashed.
    """
    seeds, specs = manifest.declaration.seeds_of, manifest.declaration.specs
    stored = _ordered({name for c in configurations.values() for name in c.values}, manifest.declaration.metrics)
    names = list(dict.fromkeys([*manifest.declaration.columns, *stored]))
    column = {name: i for i, name in enumerate(names)}
    runs = [(config_id, seed) for config_id in specs for seed in range(seeds[config_id])]
    first = dict(zip(specs, np.cumsum([0, *(seeds[config_id] for config_id in specs)]).tolist(), strict=False))
    status = np.full(len(runs), "interrupted", dtype=object)
    bad_epoch, num_probe = np.full((2, len(runs)), np.nan)
    numbers = np.full((len(runs), len(names)), np.nan, number_type(manifest.provenance))
    for config_id in specs:
        if (c := configurations.get(config_id)) is None:
            continue
        rows = first[config_id] + c.seeds
        status[rows], bad_epoch[rows], num_probe[rows] = c.status, c.first_bad_epoch, c.probe_examples
        is_epoch = c.epochs == (c.epochs[-1] if epoch is None else epoch)
        for name, values in c.values.items() if is_epoch.any() else ():
            numbers[rows, column[name]] = values[:, is_epoch.argmax()]
    fields = _spec_columns(specs, [config_id for config_id, _ in runs], option_dtypes(manifest.declaration))
    fields.insert(len(CONFIG_FIELDS) + 1, "seed", [seed for _, seed in runs])
    fields.insert(0, "run_id", [run_id for config_id in specs for run_id in manifest.declaration.run_ids(config_id)])
    missing, unstored = status == "interrupted", listed(vars(manifest))
    status[missing] = [unstored.get(run_id, "interrupted") for run_id in fields["run_id"][missing]]
    fields = fields.assign(status=status)
    if (status == "crashed").any():
        fields[REASON] = _reasons(fields["run_id"], status, manifest.crashed)
    fields = fields.assign(first_bad_epoch=bad_epoch, probe_examples=pd.array(num_probe, "Int64"))
    metrics = pd.DataFrame(numbers, columns=names)
    return pd.concat([fields, metrics], axis=1)


def _reasons(run_ids: pd.Series, status: np.ndarray, crashed: Mapping[str, str]) -> list[str]:
    """Return the reason of each crashed run in one line, and an empty text for the others."""
    pairs = zip(run_ids, status, strict=True)
    return [reasons_text([crashed[run_id]]) if state == "crashed" else "" for run_id, state in pairs]


def report_epochs(declaration: Declaration) -> set[float]:
    """Return the epochs in summary.csv besides each last one: the study's, and those of claims, tables and maps."""
    named: list[Any] = [*declaration.report_epochs]
    for claim in declaration.claims:
        named += [claim.epoch, claim.against_epoch]
    for table in declaration.tables:
        if isinstance(table, Table):
            named.append(table.epoch)
        metrics = table.metrics if isinstance(table, Table) else itertools.chain(*table.events.values())
        named += [metric.partition("@")[2] for metric in metrics]
    named += [epoch for figure in declaration.figures if figure.kind == "map" for epoch in figure.epochs]
    return {number for epoch in named if (number := epoch_number(epoch)) is not None}


def summary_frame(
    configurations: dict[str, Configuration], manifest: StudyManifest, epochs: set[float] | None = None
) -> pd.DataFrame:
    """Return one row per configuration, metric, site and epoch: the mean over runs, its 95 % interval, and their spread.

    n counts the requested runs, n_finite those with a value. `epochs` selects epochs besides the last (None: all).
    """
    parts = [_summarised(c, manifest.declaration.metrics) for c in configurations.values()]
    specs = {config_id: c.spec for config_id, c in configurations.items()}
    sizes = [len(part["n"]) for part in parts]
    cells = _stacked(parts, ["metric", "site", "epoch", "probe_examples", "n", "n_finite", *intervals.MOMENTS])
    columns = _spec_columns(specs, np.repeat(list(specs), sizes), option_dtypes(manifest.declaration))
    summary = pd.concat([columns, cells], axis=1)
    return summary if epochs is None else at_epochs(summary, epochs)


def at_epochs(summary: pd.DataFrame, epochs: set[float]) -> pd.DataFrame:
    """Return the rows at the given epochs and at each configuration's last epoch."""
    last = summary.groupby("config_id", sort=False)["epoch"].transform("max")
    return summary[summary["epoch"].isin(epochs) | (summary["epoch"] == last)].reset_index(drop=True)


def units_frame(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """Return one row per configuration and site: counts of units that were born dead, died, revived, and ended dead.

    Counts cover all runs; counts at the end cover finite runs only. The fraction is of the units of finite runs, with an
    interval over runs (`intervals.ratio_interval`). `certified_revived` counts units that were certified dead and later not;
    it is empty for sites without certified metrics.
    """
    counts = ("born_dead", "died", "revived")
    parts = []
    for c in configurations.values():
        for site, dead in c.dead.items():
            histories = survival.unit_histories(dead, c.epochs, c.first_bad_epoch)
            row: dict[str, Any] = {"config_id": c.config_id, "site": site, "probe_examples": c.probe_examples}
            row |= {"runs": len(dead), "units": dead[:, 0].size}
            row |= {name: int(getattr(histories, name).sum()) for name in counts}
            at_end = np.where(histories.censored, 0, histories.dead_at_end)
            units = np.where(histories.censored, 0, dead.shape[2])
            row["dead_at_end"] = int(at_end.sum())
            row["dead_at_end_fraction"] = at_end.sum() / units.sum() if units.any() else np.nan
            row["ci_lo"], row["ci_hi"] = intervals.ratio_interval(at_end, units, intervals.generator(f"{c.config_id}/{site}"))
            if (certified := c.certified_dead.get(site)) is not None:
                row["certified_revived"] = int(survival.unit_histories(certified, c.epochs, c.first_bad_epoch).revived.sum())
            parts.append(row)
    return pd.DataFrame(parts, columns=list(COLUMNS["units"])).astype({"certified_revived": "Int64"})


def survival_frame(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """Return one row per configuration, site and epoch: the Kaplan-Meier survival of the units born alive."""
    parts = []
    for c in configurations.values():
        for site, dead in c.dead.items():
            curve = survival.survival(dead, c.epochs, c.first_bad_epoch, intervals.generator(f"{c.config_id}/{site}"))
            size = len(c.epochs)
            head: dict[str, Any] = {"config_id": c.config_id, "site": site, "epoch": c.epochs, "probe_examples": c.probe_examples}
            parts.append({name: np.broadcast_to(value, size) for name, value in (head | dict(curve)).items()})
    return _stacked(parts, list(COLUMNS["survival"]))


def curves(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """Return one row per stored run, metric, site and epoch, with categorical names: about 20 bytes per row."""
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
    for name, categories in {"run_id": runs, "config_id": list(configurations), "metric": metrics, "site": sites}.items():
        frame[name] = pd.Categorical.from_codes(frame[name].to_numpy(), pd.Index(categories, dtype="str"))
    return frame


def configurations_from_runs_csv(runs: pd.DataFrame) -> dict[str, Configuration]:
    """Return the runs of runs.csv by configuration, with the metrics of their last epoch only."""
    configurations = {}
    columns = [name for name in runs.columns if "/" in name]
    options = [name for name in runs.columns if name not in (*COLUMNS["runs"], REASON) and "/" not in name]
    for config_id, rows in runs.groupby("config_id", sort=False):
        stored = rows[rows["status"].isin(STORED)]
        if len(stored):
            configurations[str(config_id)] = Configuration(
                config_id=str(config_id),
                spec={name: stored[name].iloc[0] for name in CONFIG_FIELDS} | _set_options(stored[options].iloc[0]),
                num_requested=len(rows),
                run_ids=list(stored["run_id"]),
                seeds=stored["seed"].to_numpy(),
                epochs=stored["epochs"].to_numpy(float)[:1],
                status=stored["status"].to_numpy(str),
                first_bad_epoch=stored["first_bad_epoch"].to_numpy(float),
                probe_examples=int(stored["probe_examples"].iloc[0]),
                values={name: stored[name].to_numpy()[:, None] for name in columns},
            )
    return configurations


def _summarised(c: Configuration, metrics: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the summary columns of one configuration, series outermost, computed in one call."""
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


def _set_options(values: pd.Series) -> dict[str, Any]:
    """Return the options of a row of runs.csv without the blank ones."""
    return {str(name): value for name, value in values.items() if not pd.isna(value) and value != ""}


def _spec_columns(specs: Mapping[str, Mapping[str, Any]], config_ids: Iterable[str], options: Mapping[str, str]) -> pd.DataFrame:
    """Return config_id, every RunSpec field but the seed, and the options, one row per entry of `config_ids`.

    `options` maps each option to its dtype. An option that a configuration lacks is blank.
    """
    columns = ["config_id", *CONFIG_FIELDS, *options]
    frame = pd.DataFrame([{"config_id": c, **spec} for c, spec in specs.items()], columns=columns)
    frame = frame.astype({name: DTYPES[name] for name in CONFIG_FIELDS})
    for name, dtype in options.items():
        texts = ["" if pd.isna(value) else str(value) for value in frame[name]] if dtype == "str" else frame[name]
        frame[name] = pd.array(texts, dtype=dtype)  # type: ignore[call-overload]
    return frame.iloc[pd.Index(frame["config_id"]).get_indexer(list(config_ids))].reset_index(drop=True)


def _stacked(parts: list[dict[str, np.ndarray]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) if parts else [] for name in columns})


def _ordered(names: Iterable[str], metrics: Iterable[str]) -> list[str]:
    """Return `metric/site` names in declared order of metrics, `all` first and site_10 after site_9."""
    rank = {metric: i for i, metric in enumerate(metrics)}
    split = sorted((name.split("/") for name in names), key=lambda s: (rank.get(s[0], len(rank)), s[0], *_site_order(s[1])))
    return ["/".join(pair) for pair in split]


def _site_order(site: str) -> tuple[bool, int, str]:
    return site != "all", len(site), site
