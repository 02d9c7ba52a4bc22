"""Metrics by name: decorated functions of a snapshot, evaluated by `measure`.

    @metric("dead_fraction", per="unit", unit="fraction", low=0, high=1, requires=("slope",), source="...")
    def dead(site: SiteView) -> Bool[Array, "U"]:
        '''phi'(pre) = 0 on every probe example.'''
        return jnp.all(site.slope == 0, axis=0)

`per` fixes the function's argument and result:

- "unit": SiteView -> a mask over its units, or None where the metric is undefined. `measure` turns masks into fractions.
- "site": Snapshot -> one number per site, and one for `all`.
- "network": Snapshot -> one number.

`default=False` makes a metric optional: only studies that name it in `Study.metrics` measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from relu_study.components.metrics.snapshot import SiteView, Snapshot
from relu_study.components.registry import metrics
from relu_study.errors import UserError, nearest
from relu_study.study.study import DEFAULT_METRICS

PER = ("unit", "site", "network")
DIRECTIONS = ("lower", "higher", "none")


@dataclass(frozen=True)
class Metric:
    """One registered metric: its function and its declared properties."""

    name: str
    unit: str
    direction: str  # which is better: lower | higher | none
    low: float | None  # its range; None: unbounded
    high: float | None
    per: str
    requires: tuple[str, ...]  # fields of the SiteView (per unit) or Snapshot; the metric is empty if one is None
    store_mask: bool  # store the mask of units, not only the fraction
    default: bool  # measured unless the study names other metrics
    text: str
    source: str
    function: Callable[..., Any]

    @property
    def sites(self) -> bool:
        """Whether the metric has a number per site, or only for `all`."""
        return self.per != "network"

    @property
    def units(self) -> str:
        """The name of its masks: dead for dead_fraction."""
        return self.name.removesuffix("_fraction")

    def masks(self, snapshot: Snapshot) -> dict[str, Bool[Array, "U"]]:
        """Return the mask of units for each site where the metric is defined."""
        masks = {name: self.function(site) for name, site in snapshot.named().items() if self._is_defined(site)}
        return {name: mask for name, mask in masks.items() if mask is not None}

    def read(self, snapshot: Snapshot) -> dict[str, Array]:
        """Return the metric's values by site, with `all`. Sites without a value are absent."""
        if self.per == "unit":
            return _fractions(self.masks(snapshot))
        if not self._is_defined(snapshot):
            return {}
        reading = self.function(snapshot)
        return reading if self.per == "site" else {"all": reading}

    def _is_defined(self, view: SiteView | Snapshot) -> bool:
        return all(getattr(view, name) is not None for name in self.requires)


def metric(
    name: str,
    *,
    per: str,
    unit: str,
    direction: str = "lower",
    low: float | None = None,
    high: float | None = None,
    requires: tuple[str, ...] = (),
    store_mask: bool = False,
    default: bool = True,
    source: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that registers a function as the metric `name`.

    The first paragraph of the function's docstring is the metric's text in manifests and reports.

    Args:
      per: "unit", "site" or "network".
      unit: unit of the value, e.g. "fraction".
      direction: the better direction, "lower", "higher" or "none".
      low, high: range of the value; None: unbounded.
      requires: fields of SiteView (per unit) or Snapshot without which the metric is empty.
      store_mask: store the mask of units too.
      default: whether a study that names no metrics measures it; if not, the metric is optional.
      source: reference of the definition.

    Raises:
      UserError: for an unknown `per`, direction or required field, or the reserved name "default".
    """
    if name == DEFAULT_METRICS:
        raise UserError(f"{name!r} stands for all default metrics, so no metric can have this name. Choose another.")
    view = SiteView if per == "unit" else Snapshot
    values: list[tuple[str, tuple[str, ...], str]] = [(per, PER, "per"), (direction, DIRECTIONS, "direction")]
    values += [(required, view._fields, "required field") for required in requires]
    for value, valid, kind in values:
        if value not in valid:
            raise nearest(value, valid, f"{kind} of metric {name}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        text = " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
        metrics.add(name, Metric(name, unit, direction, low, high, per, requires, store_mask, default, text, source, function))
        return function

    return register


def measure(
    snapshot: Snapshot, only: tuple[str, ...] | None = None
) -> tuple[dict[str, Float[Array, ""]], dict[str, Bool[Array, "U"]]]:
    """Evaluate every default metric, or `only` those named, on a snapshot of one run.

    Returns:
      Values by "metric/site": metrics in name order, each for `all`, site_1, site_2, ...; NaN where undefined.
      Masks by "dead:site_1" of the metrics with `store_mask`; absent where undefined.
    """
    values: dict[str, Array] = {}
    masks: dict[str, Array] = {}
    dtype = jnp.result_type(float)
    for name in default_metrics() if only is None else only:
        metric: Metric = metrics[name]
        reading = metric.read(snapshot)
        for site in ("all", *(snapshot.named() if metric.sites else ())):
            values[f"{name}/{site}"] = jnp.asarray(reading.get(site, jnp.nan), dtype)
        if metric.store_mask:
            masks |= {f"{metric.units}:{site}": mask for site, mask in metric.masks(snapshot).items()}
    return values, masks


def default_metrics() -> tuple[str, ...]:
    """Return the names of the default metrics, in name order. The other registered metrics are optional."""
    return tuple(name for name in metrics if metrics[name].default)


def declared(only: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the default metrics, or `only` those named, as plain data for the manifest, in name order."""
    fields = ("unit", "direction", "low", "high", "sites", "text", "source")
    chosen = default_metrics() if only is None else only
    return {name: {field: getattr(metrics[name], field) for field in fields} for name in metrics if name in chosen}


def _fractions(masks: dict[str, Bool[Array, "U"]]) -> dict[str, Float[Array, ""]]:
    if not masks:
        return {}
    pooled = jnp.concatenate(list(masks.values()))
    return {name: jnp.mean(mask, dtype=float) for name, mask in (("all", pooled), *masks.items())}
