"""Properties of declared metrics and quantities, as the manifest stores them."""

from __future__ import annotations

from dataclasses import dataclass

Values = float | tuple[float | None, ...] | None  # of a scalar, or of a quantity along a factor


@dataclass(frozen=True)
class MetricInfo:
    """Properties of a metric: its better direction, whether it has sites, its unit and its possible range."""

    direction: str = "none"
    sites: bool = False
    unit: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class DeclaredMetric(MetricInfo):
    """Properties of a study's metric, with its definition in words and its source."""

    text: str = ""
    source: str = ""


@dataclass(frozen=True)
class QuantityInfo:
    """Properties of a quantity: whether it is a share, the factor along it (or empty), and the range of its histogram."""

    share: bool
    along: str
    spread: tuple[float, float] | None
    text: str = ""


@dataclass(frozen=True)
class Theory:
    """The theoretical value of a quantity, its standard error, and proven bounds."""

    value: Values = None
    error: Values = None
    lower: Values = None
    upper: Values = None
