"""Table entries: the runs of one configuration in one column, and the marks for best and tied entries."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from relu_study.report.labels import count
from relu_study.report.markup import BETTER, NEAR, WORSE, format_mean_ci
from relu_study.stats import intervals
from relu_study.stats.hypothesis_tests import holm, two_sided
from relu_study.storage.frames import BINARY_METRICS
from relu_study.storage.statuses import STORED
from relu_study.storage.tile_identity import LOSSES

SIGNIFICANT = 0.05
VERSUS = {"better": BETTER, "worse": WORSE}
UNDEFINED = {  # reasons why a finite run has no value
    "certified_dead_fraction": "no box, bound or flat piece",
    "certified_revived_fraction": "no box, bound or flat piece",
    "certified_always_on_fraction": "no box, bound or identity piece",
    "always_on_fraction": "no identity piece",
    "saturated_fraction": "no smooth activation",
    "grad_ratio": "no gradient at the last site",
    "update_ratio": "all weights are 0",
}


@dataclass(frozen=True)
class Entry:
    """The runs of one configuration in one column: `n` requested runs, `n_finite` with a value.

    `defined`: whether the metric can have a value. `values` has one number per seed, NaN without a value. It is None if only the
    summary is known, and the entry then cannot be compared. Of the runs without a value, `not_run` are missing and `unmeasured`
    are stored and finite; the others are nonfinite. `reason` explains an undefined entry or one without requested runs.
    """

    mean: float
    lo: float
    hi: float
    n: int
    n_finite: int
    defined: bool
    values: Float[np.ndarray, " seeds"] | None = None
    not_run: int = 0
    unmeasured: int = 0
    reason: str = ""

    @property
    def count(self) -> str:
        """The number of runs behind the mean, with reasons: "n=15/400 (1 nonfinite, 384 not run)". Empty for all runs."""
        return count(self.n_finite, self.n, self.not_run, self.unmeasured) if self.defined else ""

    @property
    def whole(self) -> bool:
        """Whether every requested run has a value."""
        return self.n_finite == self.n > 0


class RunLookup:
    """The runs of runs.csv by configuration and seed, restricted to the rows in `kept`.

    `epoch` is the epoch of the metrics in the frame (None: each run's last). `reasons`: whether empty entries give a reason.
    """

    def __init__(
        self, frame: pd.DataFrame, kept: np.ndarray | None = None, epoch: float | None = None, reasons: bool = True
    ) -> None:
        self.frame, self.reasons = frame, reasons
        codes, names = pd.factorize(frame["config_id"])
        self.row = {str(name): i for i, name in enumerate(names)}
        seeds = frame["seed"].to_numpy()
        self.place = codes, seeds
        self.shape = len(names), int(seeds.max(initial=-1)) + 1
        self.requested = self._by_seed(np.ones(len(frame)) if kept is None else kept.astype(float)) == 1
        metrics = [name for name in frame.columns if "/" in name]
        alive = frame[metrics].notna().any(axis=1).to_numpy()
        # A frame with metrics only has no status: its runs count as stored.
        status = frame["status"].isin(STORED).to_numpy(float) if "status" in frame else np.ones(len(frame))
        bad = frame["first_bad_epoch"].to_numpy(float) if "first_bad_epoch" in frame else np.full(len(frame), np.nan)
        self.stored, self.first_bad = self._by_seed(status) == 1, self._by_seed(bad)
        self.epoch = epoch
        self.alive = (self.requested & (self._by_seed(alive.astype(float)) == 1)).any(axis=1)
        self._read: dict[str, np.ndarray] = {}

    def _by_seed(self, column: np.ndarray) -> np.ndarray:
        table = np.full(self.shape, np.nan)
        table[self.place] = column
        return table

    def missing(self, config_id: str, metric: str, epoch: float | None, n_finite: int) -> tuple[int, int]:
        """Return the numbers of missing runs and of finite runs without a value at an epoch (None: the last).

        Every stored run has a loss, so a run without a loss is nonfinite. So is a run without a validation loss.
        """
        if config_id not in self.row:
            return 0, 0
        row = self.row[config_id]
        stored = self.stored[row] & self.requested[row]
        bad = stored & (np.isfinite(self.first_bad[row]) if epoch is None else self.first_bad[row] <= epoch)
        unmeasured = 0 if metric in LOSSES else max(int(stored.sum() - bad.sum()) - n_finite, 0)
        if unmeasured and f"{metric}/all" in self.frame and "val_loss/all" in self.frame:
            empty = np.isnan(self.values(config_id, f"{metric}/all")) & np.isnan(self.values(config_id, "val_loss/all"))
            unmeasured = max(unmeasured - int((stored & ~bad & empty).sum()), 0)
        return int(self.requested[row].sum() - stored.sum()), unmeasured

    def reason(self, config_id: str, metric: str, site: str, epoch: float | None) -> str:
        """Return why a configuration with finite runs has no value of a metric at a site and epoch."""
        if not self.reasons:
            return ""
        if config_id not in self.row:
            return "no such configuration"
        if not self.requested[self.row[config_id]].any():
            return "no such run"
        at_site = [name for name in self.frame.columns if name.endswith(f"/{site}")]
        if (
            site != "all"
            and self.alive[self.row[config_id]]
            and self.frame.loc[self.place[0] == self.row[config_id], at_site].isna().all(axis=None)
        ):
            return f"no {site}"
        at_sites = [name for name in self.frame.columns if "/site_" in name]
        rows = self.place[0] == self.row[config_id]
        if self.alive[self.row[config_id]] and self.frame.loc[rows, at_sites].isna().all(axis=None):
            return "no sites"
        if metric in ("update_norm", "update_ratio") and epoch == 0:
            return "no step yet"
        return UNDEFINED.get(metric, "not measured")

    def values(self, config_id: str, name: str) -> Float[np.ndarray, " seeds"]:
        """Return the last value of `metric/site` for each seed, NaN without one."""
        if config_id not in self.row:
            return np.full(self.shape[1], np.nan)
        if name not in self._read:
            column = self.frame[name].to_numpy(float) if name in self.frame.columns else np.full(len(self.frame), np.nan)
            values = self._by_seed(column)
            self._read[name] = np.where(self.requested & np.isfinite(values), values, np.nan)
        return self._read[name][self.row[config_id]]

    def cell(self, config_id: str, metric: str, site: str) -> Entry:
        """Return the entry of a configuration: the mean with its t interval, or Wilson's interval for a share of runs."""
        if config_id not in self.row:
            reason = self.reason(config_id, metric, site, self.epoch)
            return Entry(math.nan, math.nan, math.nan, 0, 0, False, np.full(self.shape[1], np.nan), reason=reason)
        row = self.row[config_id]
        values = self.values(config_id, f"{metric}/{site}")
        moments = intervals.summarise(values[self.requested[row]])
        k, lo, hi = int(moments["n_finite"]), moments["ci_lo"], moments["ci_hi"]
        if metric in BINARY_METRICS:
            lo, hi = intervals.wilson(int(np.nansum(values)), k)
        defined = k > 0 or not bool(self.alive[row]) or metric in LOSSES
        missing = self.missing(config_id, metric, self.epoch, k)
        n = int(self.requested[row].sum())
        reason = "" if defined and n else self.reason(config_id, metric, site, self.epoch)
        return Entry(float(moments["mean"]), float(lo), float(hi), n, k, defined, values, *missing, reason)


class SummaryLookup:
    """The rows of summary.csv by configuration, metric, site and epoch, restricted to `metrics`."""

    def __init__(self, frame: pd.DataFrame, metrics: Collection[str], seeds: Mapping[str, int]) -> None:
        by_config = frame.groupby("config_id")
        self.seeds, self.last = seeds, by_config["epoch"].max().to_dict()
        self.probe_examples: dict[Any, Any] = by_config["probe_examples"].first().to_dict()
        self.alive = frame.groupby(["config_id", "epoch"])["n_finite"].max().to_dict()
        rows = frame[frame["metric"].isin(metrics)]
        keys = zip(*(rows[name] for name in ("config_id", "metric", "site", "epoch")), strict=True)
        self.rows = dict(zip(keys, rows[["mean", "ci_lo", "ci_hi", "n", "n_finite"]].to_numpy(float).tolist(), strict=True))

    def cell(self, config_id: str, metric: str, site: str, epoch: float | None) -> Entry:
        """Return the entry of a configuration at an epoch (None: its last), without the values of single runs."""
        when = self.last.get(config_id) if epoch is None else epoch
        row = self.rows.get((config_id, metric, site, when))
        if row is None:  # no stored run, or no such site or epoch
            return Entry(math.nan, math.nan, math.nan, self.seeds.get(config_id, 0), 0, config_id not in self.last)
        mean, lo, hi, n, finite = row
        defined = finite > 0 or self.alive[config_id, when] == 0 or metric in LOSSES
        return Entry(mean, lo, hi, int(n), int(finite), defined)


@dataclass(frozen=True)
class Mark:
    """Marks of an entry: `best` of its group, `tied` with it, `better` or `worse` than the baseline (`versus`)."""

    best: bool = False
    tied: bool = False
    versus: str = ""


@dataclass(frozen=True)
class Group:
    """Entries that are compared with each other: one column on one target. `better` is lower, higher or none."""

    better: str
    cells: Sequence[Entry]
    baseline: int | None = None  # index of its entry


def rank_entries(groups: Sequence[Group]) -> list[list[Mark]]:
    """Return the marks of every entry of every group of a table.

    `best`: the best mean among entries with only finite runs, unless all means are equal. `tied`: such an entry whose difference
    from the best, paired by seed, has a two-sided sign-flip p of at least 0.05, Holm-corrected over all comparisons with a best
    in the table. `versus`: p against the baseline is below 0.05, Holm-corrected over all comparisons with a baseline.
    """
    best = [_best(group) for group in groups]
    p_best = _corrected([_against(group, found) for group, found in zip(groups, best, strict=True)])
    p_base = _corrected([_against(group, group.baseline) for group in groups])
    marked = []
    for group, first, near, other in zip(groups, best, p_best, p_base, strict=True):
        ends = {group.cells[first].mean} if first is not None else set()
        is_best = [cell.whole and cell.mean in ends for cell in group.cells]
        marked.append(
            [
                Mark(is_best[i], not is_best[i] and bool(cell.whole and near[i] >= SIGNIFICANT), _versus(group, i, other[i]))
                for i, cell in enumerate(group.cells)
            ]
        )
    return marked


def _best(group: Group) -> int | None:
    whole = [i for i, cell in enumerate(group.cells) if cell.whole]
    means = [group.cells[i].mean for i in whole]
    others = any(cell.defined and not cell.whole for cell in group.cells)
    if group.better == "none" or not means or (min(means) == max(means) and not (others and len(whole) == 1)):
        return None
    return whole[means.index(min(means) if group.better == "lower" else max(means))]


def _against(group: Group, index: int | None) -> list[float]:
    """Return p of each entry's difference from entry `index`, NaN if they cannot be compared."""
    if index is None or (reference := group.cells[index].values) is None:
        return [math.nan] * len(group.cells)
    p_values = []
    for i, cell in enumerate(group.cells):
        pairs = np.empty(0) if i == index or cell.values is None else cell.values - reference
        p_values.append(two_sided(pairs) if np.isfinite(pairs).any() else math.nan)
    return p_values


def _corrected(p_by_group: Sequence[Sequence[float]]) -> list[np.ndarray]:
    p = np.array([value for group in p_by_group for value in group])
    p[~np.isnan(p)] = holm(p[~np.isnan(p)])
    return np.split(p, np.cumsum([len(group) for group in p_by_group])[:-1])


def _versus(group: Group, i: int, p: float) -> str:
    if group.better == "none" or group.baseline is None or not p < SIGNIFICANT:
        return ""
    ours, theirs = group.cells[i].values, group.cells[group.baseline].values
    assert ours is not None and theirs is not None
    return "better" if (np.nanmean(ours - theirs) < 0) == (group.better == "lower") else "worse"


def format_entry(cell: Entry, metric: str, mark: Mark = Mark()) -> str:
    """Return an entry as text: mean and half width (or a share of runs with its interval), marks, and n for missing runs.

    An entry without a value is "-" with its reason.
    """
    missing = f" {cell.count}" if "(" in cell.count else f" ({cell.count})" if cell.count else ""
    if cell.n_finite == 0:
        return f"- ({cell.reason})" if cell.reason else f"-{missing}"
    signs = (NEAR if mark.tied else "") + VERSUS.get(mark.versus, "")
    signs = f" {signs}" if signs else ""
    if metric in BINARY_METRICS:
        return f"{cell.mean:.3g} [{cell.lo:.2g}, {cell.hi:.2g}]{signs}{missing}"
    return format_mean_ci(cell.mean, (cell.hi - cell.lo) / 2) + signs + missing


def format_seed_count(cells: Collection[Entry]) -> str:
    """Return the number of seeds of entries as text: "16 seeds", or "100 to 1000 seeds"."""
    counts = sorted({cell.n for cell in cells if cell.n}) or [0]
    return f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seed{'s' if counts != [1] else ''}"


def _counted(cells: Collection[Entry]) -> str:
    counts = [cell.count for cell in cells if cell.count]
    if any("(" in count for count in counts):
        return "n=k/m: k of m runs have a value, and why the others have none; they are nonfinite where no reason is given. " + (
            "Such cells are not ranked."
        )
    return "n=k/m: k of m runs are finite; such cells are not ranked." if counts else ""


def notes(marked: Collection[Mark], cells: Collection[Entry], metrics: Collection[str], over: str, per: str) -> list[str]:
    """Return the sentences of the note below a table: `over` explains n, `per` names a group."""
    events = [name.replace("_", " ") for name in BINARY_METRICS if name in metrics]
    sentences = [
        f"Mean ± half width of the 95 % interval {over}." if set(metrics) - set(BINARY_METRICS) else "",
        f"For {' and '.join(events)} the share of runs [95 % Wilson interval]." if events else "",
        _counted(cells),
        f"Bold: the best of its {per}, among those whose runs are all finite." if any(m.best for m in marked) else "",
        f"{NEAR}: not distinguishable from it." if any(m.tied for m in marked) else "",
    ]
    versus = [f"{sign} {word}" for word, sign in VERSUS.items() if any(m.versus == word for m in marked)]
    sentences.append(f"{', '.join(versus)} than the baseline." if versus else "")
    if versus or any(m.tied for m in marked):
        sentences.append("Tests: paired by seed, two-sided, by sign flips, at 0.05 after Holm's correction over the table.")
    return [sentence for sentence in sentences if sentence]
