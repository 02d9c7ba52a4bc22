"""Which runs are meant: conditions on factors and metrics, as `--where` takes them."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from relu_study.registry import UserError, nearest
from relu_study.spec import FIELDS

LABELS = ("experiment", "arm")  # what the study calls a configuration; it may have several of each
OF_A_RUN = ("seed", "status")
COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*([\w/]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """`name` compared with one of `values` (several only for = and !=); `metric`: name is one, as `metric/site`."""

    name: str
    compared: str
    values: tuple[Any, ...]
    metric: bool

    @property
    def of_configurations(self) -> bool:
        """Is it the same for all runs of a configuration?"""
        return not self.metric and self.name not in OF_A_RUN


def parse(where: Sequence[str], declaration: Mapping[str, Any]) -> list[Condition]:
    """Conditions from text: `activation=relu,selu`, `learning_rate>=0.01`, `arm!=baseline`, `dead_fraction/site_1<0.5`.

    Names are RunSpec fields, `experiment`, `arm`, `seed`, `status` (ok | nonfinite | oom | interrupted) and metrics of the
    study, by their value at the end of a run. An unknown one, or a value that nothing in the study has, is refused.
    """
    return [_parsed(text, declaration) for text in where]


def _parsed(text: str, declaration: Mapping[str, Any]) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None or not found[3]:
        raise UserError(f"cannot read the condition {text!r}; write NAME=VALUE with = != < <= > or >=, e.g. activation=relu,selu")
    name, compared = found[1], found[2]
    values = [value.strip() for value in found[3].split(",")]
    metric, _, site = name.partition("/")
    if metric in declaration["metrics"]:
        column = f"{metric}/{site or 'all'}"
        if column not in declaration["columns"]:
            raise nearest(column, declaration["columns"], "column")
        wanted: tuple[Any, ...] = tuple(_as_number(value, text) for value in values)
        is_metric, name = True, column
    elif name in (*FIELDS, *LABELS, *OF_A_RUN):
        wanted, is_metric = tuple(_values(name, values, declaration, text, compared)), False
    else:
        raise nearest(name, [*FIELDS, *LABELS, *OF_A_RUN, *declaration["metrics"]], "factor or metric")
    if len(wanted) > 1 and compared not in ("=", "!="):
        raise UserError(f"the condition {text!r} compares with several values; only = and != take a list")
    return Condition(name, compared, wanted, is_metric)


def _values(name: str, values: Sequence[str], declaration: Mapping[str, Any], text: str, compared: str) -> list[Any]:
    if name == "seed":
        return [_as_number(value, text) for value in values]
    if name == "status":
        known: list[Any] = ["ok", "nonfinite", "oom", "interrupted"]
    else:
        known = list(dict.fromkeys(factor(entry, name) for entry in declaration["configurations"]))
    if not isinstance(known[0], str):
        numbers = [_as_number(value, text) for value in values]
        for number in numbers if compared in ("=", "!=") else ():
            if number not in known:
                raise nearest(f"{number:g}", [f"{value:g}" for value in known], f"value of {name}")
        return numbers
    if compared not in ("=", "!="):
        raise UserError(f"the condition {text!r} orders {name}, which is a name; use = or !=")
    return _labels(values, known, name)


def _labels(parts: Sequence[str], known: Sequence[str], name: str) -> list[str]:
    """The values that comma-separated text names, though a label may hold a comma itself: of those that fit, the longest."""
    plain = {re.sub(r"\s*,\s*", ",", label): label for label in known}
    found, start = [], 0
    while start < len(parts):
        ends = [end for end in range(len(parts), start, -1) if ",".join(parts[start:end]) in plain]
        if not ends:
            raise nearest(parts[start], known, f"value of {name}")
        found.append(plain[",".join(parts[start : ends[0]])])
        start = ends[0]
    return found


def _as_number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"the condition {text!r} compares with {value!r}, which is no number") from None
    if math.isnan(number):
        raise UserError(f"the condition {text!r} compares with NaN, which equals nothing; use status=nonfinite")
    return number


def configurations(conditions: Sequence[Condition], declaration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared configurations (one entry an experiment, arm and target) that meet every condition on configurations."""
    asked = [condition for condition in conditions if condition.of_configurations]
    return [e for e in declaration["configurations"] if all(_meets(factor(e, c.name), c) for c in asked)]


def runs(conditions: Sequence[Condition], frame: pd.DataFrame, declaration: Mapping[str, Any]) -> Bool[np.ndarray, " R"]:
    """Which rows of runs.csv meet every condition; a metric that is empty or nonfinite meets none."""
    configs = {entry["config_id"] for entry in configurations(conditions, declaration)}
    kept = frame["config_id"].isin(configs).to_numpy(bool, copy=True)
    for condition in conditions:
        if not condition.of_configurations:
            kept &= _meets(frame[condition.name].to_numpy(), condition)
            if condition.metric:
                kept &= np.isfinite(frame[condition.name].to_numpy(float))
    return kept


def _meets(value: Any, condition: Condition) -> Any:
    compare = COMPARED[condition.compared]
    if len(condition.values) == 1:
        return compare(value, condition.values[0])
    found = np.isin(value, condition.values) if isinstance(value, np.ndarray) else value in condition.values
    return found if condition.compared == "=" else np.logical_not(found)


def held(entries: Sequence[dict[str, Any]], free: Collection[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The configurations that differ in the `free` factors alone, and the value at which every other factor is held.

    Each factor that varies and is not free is held at its most common value among the distinct configurations; if `arm` is free,
    only the factors that vary within an arm are. Of two values that are equally common neither is chosen: that is refused.
    """
    specs = {entry["config_id"]: entry["spec"] for entry in entries}
    varied = [name for name in FIELDS if name != "seed" and len({spec[name] for spec in specs.values()}) > 1]
    if "arm" in free:
        by_arm: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            by_arm.setdefault(entry["arm"], []).append(entry["spec"])
        varied = [name for name in varied if any(len({spec[name] for spec in arm}) > 1 for arm in by_arm.values())]
    found: dict[str, Any] = {}
    for name in varied:
        if name in free:
            continue
        (first, most), *others = Counter(spec[name] for spec in specs.values()).most_common()
        tied = [first, *(value for value, count in others if count == most)]
        if len(tied) > 1:
            some = ", ".join(shown(value) for value in tied)
            raise UserError(
                f"{name} varies too, and {some} are equally common; choose one with --where {name}={shown(first)}, "
                f"or put {name} among the rows or columns"
            )
        found[name] = first
    return [entry for entry in entries if all(entry["spec"][name] == value for name, value in found.items())], found


def factor(entry: Mapping[str, Any], name: str) -> Any:
    """The value of a factor, or the label, of a declared configuration."""
    return entry[name] if name in LABELS else entry["spec"][name]


def in_order(found: Sequence[Any]) -> list[Any]:
    """The values that there are, each once: numbers in rising order, names as they come."""
    values = list(dict.fromkeys(found))
    return values if any(isinstance(value, str) for value in values) else sorted(values)


def shown(value: Any) -> str:
    """A factor's value as it is printed: short, and never like another value."""
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    exact = f"{int(value)}" if float(value).is_integer() and abs(value) < 1e15 else repr(value)
    return short if float(short) == value and "e+" not in short else exact
