"""The results as DataFrames, and the CSV files they become: one row a run, a configuration, a cell, a site.

Everything is formed from arrays of whole configurations; no row is ever appended.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study import lives, stats
from relu_study.contract import COLUMNS, read_whole_manifest
from relu_study.identity import STORED, number_type
from relu_study.registry import UserError
from relu_study.seals import UNREADABLE, Damaged, check_sum
from relu_study.spec import FIELDS, RunSpec
from relu_study.store import Configuration, collect, seeds_of, tile_paths
from relu_study.streams import numpy_defaults

PROPORTIONS = ("collapsed", "constant", "trained")  # 0 or 1 a run: a Wilson interval, not a t interval
CONFIG_FIELDS = tuple(name for name in FIELDS if name != "seed")
_KIND = {f.name: {"str": "str", "int": "int64", "float": "float64"}[str(f.type)] for f in dataclasses.fields(RunSpec)}
_WORDS = ("run_id", "config_id", "status", "experiment", "metric", "site")


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
    cells = _stacked(parts, ["metric", "site", "epoch", "probe_examples", "n", "n_finite", *stats.MOMENTS])
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
            lived = lives.unit_lives(dead, c.epochs, c.first_bad_epoch)
            row: dict[str, Any] = {"config_id": c.config_id, "site": site, "probe_examples": c.probe_examples}
            row |= {"runs": len(dead), "units": dead[:, 0].size}
            row |= {name: int(getattr(lived, name).sum()) for name in counts}
            at_end, units = np.where(lived.censored, 0, lived.dead_at_end), np.where(lived.censored, 0, dead.shape[2])
            row["dead_at_end"] = int(at_end.sum())
            row["dead_at_end_fraction"] = at_end.sum() / units.sum() if units.any() else np.nan
            row["ci_lo"], row["ci_hi"] = stats.ratio_interval(at_end, units, stats.generator(f"{c.config_id}/{site}"))
            if (certified := c.certified_dead.get(site)) is not None:
                row["certified_revived"] = int(lives.unit_lives(certified, c.epochs, c.first_bad_epoch).revived.sum())
            parts.append(row)
    return pd.DataFrame(parts, columns=list(COLUMNS["units"])).astype({"certified_revived": "Int64"})


def survival_frame(configurations: dict[str, Configuration]) -> pd.DataFrame:
    """One row a configuration, site and epoch: the share of the units born alive that has not died (Kaplan-Meier)."""
    parts = []
    for c in configurations.values():
        for site, dead in c.dead.items():
            curve = lives.survival(dead, c.epochs, c.first_bad_epoch, stats.generator(f"{c.config_id}/{site}"))
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


def last_epochs(runs: pd.DataFrame) -> dict[str, Configuration]:
    """The runs of runs.csv by configuration, with their metrics at their last epoch and nothing of the epochs before."""
    found = {}
    columns = [name for name in runs.columns if "/" in name]
    for config_id, rows in runs.groupby("config_id", sort=False):
        stored = rows[rows["status"].isin(STORED)]
        if len(stored):
            found[str(config_id)] = Configuration(
                config_id=str(config_id),
                spec={name: stored[name].iloc[0] for name in CONFIG_FIELDS},
                wanted=len(rows),
                run_ids=list(stored["run_id"]),
                seeds=stored["seed"].to_numpy(),
                epochs=stored["epochs"].to_numpy(float)[:1],
                status=stored["status"].to_numpy(str),
                first_bad_epoch=stored["first_bad_epoch"].to_numpy(float),
                probe_examples=int(stored["probe_examples"].iloc[0]),
                values={name: stored[name].to_numpy()[:, None] for name in columns},
            )
    return found


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV: nine digits (a float32 survives), RunSpec fields and a run's doubles exact, NaN empty."""
    exact = {name: [_shortest(v) for v in frame[name]] for name in CONFIG_FIELDS if name in frame and _KIND[name] == "float64"}
    if "run_id" in frame:
        exact |= {
            name: [_shortest(v) for v in frame[name]]
            for name in map(str, frame)
            if "/" in name and frame[name].dtype == np.float64
        }
    return frame.assign(**exact).to_csv(index=False, float_format="%.9g", lineterminator="\n")


def runs_csv(configurations: dict[str, Configuration], manifest: dict[str, Any]) -> str:
    """The text of runs.csv."""
    return csv_text(runs_frame(configurations, manifest))


def read_runs(folder: Path, manifest: dict[str, Any]) -> pd.DataFrame:
    """runs.csv, refused where its runs or its metrics are not those that the manifest declares, or it was changed."""
    path, declaration = folder / "runs.csv", manifest["declaration"]
    frame, read = _parsed(path, numbers=number_type(manifest["provenance"]))
    seeds = seeds_of(declaration)
    wanted = sum(seeds.values())
    found = frame["seed"] < frame["config_id"].map(seeds).fillna(0)
    if len(frame) != wanted or not found.all() or frame.duplicated(["config_id", "seed"]).any():
        raise UserError(
            f"{path} has {int(found.sum()):,} of the {wanted:,} runs that manifest.json declares: it is cut off, or of another "
            f"time; restore it, or make it with 'relu-study report {folder}'"
        )
    _has(frame.columns, declaration["columns"], path)
    check_sum(path, read)
    return frame


def _has(found: Collection[str], needed: Iterable[str], path: Path) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]}: it is garbled, or another version wrote it; restore it, "
            f"or make it with 'relu-study report {path.parent}'"
        )


def read_csv(path: Path, words: Iterable[str] = (), numbers: Any = np.float32) -> pd.DataFrame:
    """A CSV file of a results folder, with the types it was written with; a missing or changed one is named, with the way out.

    `words` are columns of text besides those that every file has; `numbers` is the type of the metrics of runs.csv.
    """
    frame, read = _parsed(path, words, numbers)
    check_sum(path, read)
    return frame


def _parsed(path: Path, words: Iterable[str] = (), numbers: Any = np.float32) -> tuple[pd.DataFrame, bytes]:
    """A CSV file and the bytes it was read from. What is wrong with its form is said first: it says more than a checksum."""
    if not path.is_file():
        raise UserError(f"{path} is missing; make it with 'relu-study report {path.parent}', which needs {path.parent / 'raw'}")
    kinds: dict[str, Any] = {"epoch": "float64", "certified_revived": "Int64"} | _KIND | dict.fromkeys((*_WORDS, *words), "str")
    try:
        read = path.read_bytes()
        if not read.endswith(b"\n"):
            raise ValueError("its last line is cut off")
        header = pd.read_csv(io.BytesIO(read), nrows=0).columns
        if "run_id" in header:
            kinds |= {"probe_examples": "Int64"} | {name: numbers for name in header if "/" in name}
        kinds = {name: kind for name, kind in kinds.items() if name in header}
        with np.errstate(invalid="raise", over="raise"):  # a number too great for its column is not made another one
            frame = pd.read_csv(io.BytesIO(read), dtype=kinds, keep_default_na=False, na_values=[""])
        only_numbers(frame, [name for name, kind in kinds.items() if kind == "str"])
    except UNREADABLE as error:
        way_out = f"restore it, or make it with 'relu-study report {path.parent}'"
        raise Damaged(path, "is garbled", error, way_out) from None
    _has(frame.columns, COLUMNS.get(path.stem, words), path)
    words = [name for name, kind in kinds.items() if kind == "str"]
    return frame.assign(**{name: frame[name].fillna("") for name in words}), read


def only_numbers(frame: pd.DataFrame, words: Collection[str]) -> None:
    """ValueError where a column besides `words` holds what is no number; one without any rows holds nothing."""
    for name in frame if len(frame) else ():
        if name not in words and not pd.api.types.is_numeric_dtype(frame[name]):
            raise ValueError(f"its column {name} holds what is no number")


def _summarised(c: Configuration, metrics: Iterable[str]) -> dict[str, np.ndarray]:
    """The cells of one configuration, series outermost: all its series are summarised in one call."""
    names = _ordered(c.values, metrics)
    values = np.stack([c.values[name] for name in names], axis=1).astype(float)  # runs x series x epochs
    cells = stats.summarise(values)
    for i, name in enumerate(names):
        if name.split("/")[0] in PROPORTIONS:
            cells["ci_lo"][i], cells["ci_hi"][i] = stats.wilson(np.nansum(values[:, i], axis=0), cells["n_finite"][i])
    shape = values.shape[1:]
    metric, site = np.array([name.split("/") for name in names]).T[:, :, None]
    cells |= {
        "metric": metric,
        "site": site,
        "epoch": c.epochs,
        "probe_examples": np.array(c.probe_examples),
        "n": np.array(c.wanted),
    }
    return {name: np.broadcast_to(cell, shape).ravel() for name, cell in cells.items()}


def _spec_columns(specs: dict[str, dict[str, Any]], config_ids: Iterable[str]) -> pd.DataFrame:
    """config_id and every RunSpec field but the seed, one row for each of `config_ids`."""
    frame = pd.DataFrame([{"config_id": c, **spec} for c, spec in specs.items()], columns=["config_id", *CONFIG_FIELDS])
    frame = frame.astype({name: _KIND[name] for name in CONFIG_FIELDS})
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


def _shortest(value: Any) -> str:
    if isinstance(value, str) or math.isnan(value):
        return ""
    # Nine digits where they say it all; a field must come back as the number that its run_id was made from.
    return text if float(text := f"{value:.9g}") == value else repr(value)
