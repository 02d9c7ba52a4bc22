"""A metric is one decorated function of a snapshot; `measure` takes them all.

    @probe("dead_fraction", per="unit", unit="fraction", low=0, high=1, needs=("slope",), source="...")
    def dead(site: SiteView) -> Bool[Array, "U"]:
        '''phi'(pre) = 0 on every probe example.'''
        return jnp.all(site.slope == 0, axis=0)

What the function takes and gives follows from `per`:

- "unit": a site in, True for each unit that is so; None where the question makes no sense. `measure` makes fractions of it.
- "site": the snapshot in, one number for each site and `all` out.
- "network": the snapshot in, one number out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import metrics
from relu_study.errors import nearest

PER = ("unit", "site", "network")
DIRECTIONS = ("lower", "higher", "none")


@dataclass(frozen=True)
class Metric:
    """One metric: what it says, and the function that reads it off a snapshot."""

    name: str
    unit: str
    direction: str  # which is better: lower | higher | none
    low: float | None  # its range; None: unbounded
    high: float | None
    per: str
    needs: tuple[str, ...]  # fields of the SiteView (per unit) or Snapshot; where one is None the metric is empty
    keep: bool  # store which units, not only how many
    text: str
    source: str
    function: Callable[..., Any]

    @property
    def sites(self) -> bool:
        """Has it a number for each site, or for `all` only?"""
        return self.per != "network"

    @property
    def units(self) -> str:
        """What its units are called: dead for dead_fraction."""
        return self.name.removesuffix("_fraction")

    def masks(self, snapshot: Snapshot) -> dict[str, Bool[Array, "U"]]:
        """The units that are so, for each site where the metric is not empty."""
        found = {name: self.function(site) for name, site in snapshot.named().items() if self._has_needs(site)}
        return {name: mask for name, mask in found.items() if mask is not None}

    def read(self, snapshot: Snapshot) -> dict[str, Array]:
        """Its numbers by site, `all` among them; a site that is missing is empty."""
        if self.per == "unit":
            return _fractions(self.masks(snapshot))
        if not self._has_needs(snapshot):
            return {}
        reading = self.function(snapshot)
        return reading if self.per == "site" else {"all": reading}

    def _has_needs(self, holder: SiteView | Snapshot) -> bool:
        return all(getattr(holder, name) is not None for name in self.needs)


def metric(
    name: str,
    *,
    per: str,
    unit: str,
    direction: str = "lower",
    low: float | None = None,
    high: float | None = None,
    needs: tuple[str, ...] = (),
    keep: bool = False,
    source: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the metric `name`; the first paragraph of its docstring is the metric's text."""
    holder = SiteView if per == "unit" else Snapshot
    words = [(per, PER, "per"), (direction, DIRECTIONS, "direction"), *((need, holder._fields, "need") for need in needs)]
    for value, known, kind in words:
        if value not in known:
            raise nearest(value, known, f"{kind} of metric {name}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        text = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        metrics.add(name, Metric(name, unit, direction, low, high, per, needs, keep, text, source, function))
        return function

    return register


def measure(
    snapshot: Snapshot, only: tuple[str, ...] | None = None
) -> tuple[dict[str, Float[Array, ""]], dict[str, Bool[Array, "U"]]]:
    """Every metric of one run, or `only` those named, as "metric/site", and the units behind those kept as "dead:site_1".

    Metrics in name order, each for `all`, site_1, site_2, ...; NaN where empty. Masks are absent where empty.
    """
    values: dict[str, Array] = {}
    masks: dict[str, Array] = {}
    dtype = jnp.result_type(float)
    for name in metrics if only is None else only:
        metric: Metric = metrics[name]
        reading = metric.read(snapshot)
        for site in ("all", *(snapshot.named() if metric.sites else ())):
            values[f"{name}/{site}"] = jnp.asarray(reading.get(site, jnp.nan), dtype)
        if metric.keep:
            masks |= {f"{metric.units}:{site}": mask for site, mask in metric.masks(snapshot).items()}
    return values, masks


def declared() -> dict[str, dict[str, Any]]:
    """Every metric as plain data for the manifest, in name order."""
    fields = ("unit", "direction", "low", "high", "sites", "text", "source")
    return {name: {field: getattr(metrics[name], field) for field in fields} for name in metrics}


def _fractions(masks: dict[str, Bool[Array, "U"]]) -> dict[str, Float[Array, ""]]:
    if not masks:
        return {}
    pooled = jnp.concatenate(list(masks.values()))
    return {name: jnp.mean(mask, dtype=float) for name, mask in (("all", pooled), *masks.items())}
