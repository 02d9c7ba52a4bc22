"""Columns of the CSV files of a results folder."""

from __future__ import annotations

from relu_study.stats.intervals import MOMENTS
from relu_study.study.run_spec import FIELDS

REASON = "reason"  # of crashed runs: a column of runs.csv after `status`, only if a run crashed

CELL_COLUMNS = (  # of cells.csv, without the factors, which follow `cell_id`
    *("experiment", "cell", "statistic", "cell_id"),
    *("number", "draws", "n", "estimate", "ci_lo", "ci_hi", "std", "q05", "q25", "median", "q75", "q95"),
    *("theory", "theory_se", "lower", "upper", "z"),
)

COLUMNS: dict[str, tuple[str, ...]] = {  # of each CSV file, without the metric columns
    "runs": ("run_id", "config_id", *FIELDS, "status", "first_bad_epoch", "probe_examples"),
    "experiments": ("experiment", "config_id"),
    "summary": (
        "config_id",
        *(name for name in FIELDS if name != "seed"),
        "metric",
        "site",
        "epoch",
        "probe_examples",
        "n",
        "n_finite",
        *MOMENTS,
    ),
    "units": (
        *("config_id", "site", "probe_examples", "runs", "units", "born_dead", "died", "revived"),
        *("dead_at_end", "dead_at_end_fraction", "ci_lo", "ci_hi", "certified_revived"),
    ),
    "survival": (
        *("config_id", "site", "epoch", "probe_examples", "runs", "at_risk", "died", "censored", "survival", "lo", "hi"),
    ),
    "health": (
        *("config_id", "problem", "detector", "n", "n_scored", "n_sick", "share", "ci_lo", "ci_hi"),
        *("onset", "site", "units", "site_units", "score", "threshold"),
    ),
    "verdicts": (
        *("claim", "statement", "contrast", "target", "metric", "site", "epoch", "direction", "margin"),
        *("effect", "ci_lo", "ci_hi", "n", "p", "p_corrected", "verdict", "reason"),
    ),
}
