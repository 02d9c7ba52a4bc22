"""Which runs are meant: conditions on factors and metrics, as `--where` takes them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from relu_study.errors import UserError, nearest
from relu_study.report.factors import LABELS, factor
from relu_study.study.run_spec import FIELDS

OF_A_RUN = ("seed", "status")
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
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
    compare = OPERATORS[condition.compared]
    if len(condition.values) == 1:
        return compare(value, condition.values[0])
    found = np.isin(value, condition.values) if isinstance(value, np.ndarray) else value in condition.values
    return found if condition.compared == "=" else np.logical_not(found)
