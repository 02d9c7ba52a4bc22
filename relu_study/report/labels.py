"""Axis labels of figures: metrics, sites, units, N."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from typing import Any

from relu_study.storage.frames import BINARY_METRICS
from relu_study.storage.quantities import MetricInfo

ALONG = 25  # characters per line along the height of a panel
FACTOR_UNITS = {"depth": "hidden layers", "width": "units", "batch_size": "examples", "rows": "examples", "epochs": "epochs"}
HISTOGRAMS = {
    "pre": "pre, {} (a unit's input)",
    "post": "post, {} (a unit's output)",
    "gradient": "gradient, {} (loss per parameter)",
}
WHICH_END = {"lower": "lower is better", "higher": "higher is better", "none": "neither end is better"}


def words(name: str) -> str:
    """Return the name of a metric or factor with spaces."""
    return name.replace("_", " ")


def is_share(metric: str) -> bool:
    """Whether a metric is a share of units or runs, which depends on the probe set."""
    return metric.endswith("_fraction") or metric in BINARY_METRICS


def unit(metric: str, about: MetricInfo, before: str = " ") -> str:
    """Return the unit in parentheses, unless the metric's name contains it (as for a loss)."""
    of = "share of runs" if metric in BINARY_METRICS else about.unit
    return f"{before}({of})" if of and of not in metric else ""


def stacked(text: str) -> str:
    """Return a label wrapped to the height of a panel."""
    if len(text) <= ALONG:
        return text
    whole = text.replace(", ", ",\n") if "(" not in text else text.replace(" (", "\n(")
    return "\n".join(textwrap.fill(part, ALONG) for part in whole.split("\n"))


def at_site(metric: str, site: str) -> str:
    """Return a metric with its site ("all sites" for a pooled fraction)."""
    where = site if site != "all" else "all sites" if metric.endswith("_fraction") else ""
    return ", ".join(filter(None, [words(metric), where]))


def probe_set(sizes: Collection[int]) -> str:
    """Return the number of probe examples as text."""
    span = f"{min(sizes):,}" if len(set(sizes)) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    return f"N = {span} probe examples"


def factor(name: str) -> str:
    """Return a factor with its unit, if any."""
    return words(name) + (f" ({FACTOR_UNITS[name]})" if name in FACTOR_UNITS else "")


def at_epoch(epoch: Any) -> str:
    """Return "last epoch" or, for example, "epoch 5"."""
    return "last epoch" if epoch == "last" else f"epoch {float(epoch):g}"


def count(finite: int, requested: int, not_run: int = 0, unmeasured: int = 0) -> str:
    """Return the number of runs behind a value, with reasons: "n=15/400 (1 nonfinite, 384 not run)". Empty for all runs.

    Runs without a value that are neither `not_run` nor `unmeasured` are nonfinite. "n=31/32": one run is nonfinite.
    """
    if finite >= requested:
        return ""
    reasons = {"nonfinite": requested - finite - not_run - unmeasured, "not run": not_run, "not measured": unmeasured}
    why = ", ".join(f"{runs} {reason}" for reason, runs in reasons.items() if runs)
    return f"n={finite}/{requested}" + (f" ({why})" if not_run or unmeasured else "")
