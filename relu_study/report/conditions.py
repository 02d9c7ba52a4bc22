"""Conditions that select runs or cells, in the syntax of `--where`: NAME=VALUE with = != < <= > or >=."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from relu_study.errors import UserError, nearest
from relu_study.report.factors import LABELS, factor, format_value
from relu_study.storage.declaration import Declaration, DeclaredConfiguration
from relu_study.storage.statuses import STATUSES
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
EQUALITIES = ("=", "!=")
_CONDITION = re.compile(r"\s*([\w/]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A comparison of `name` with `values` (more than one only for = and !=). `metric`: whether `name` is a `metric/site`."""

    name: str
    compared: str
    values: tuple[Any, ...]
    metric: bool

    @property
    def of_configurations(self) -> bool:
        """Whether the condition has the same result for all runs of a configuration."""
        return not self.metric and self.name not in OF_A_RUN


def parse(where: Sequence[str], declaration: Declaration) -> list[Condition]:
    """Parse conditions: `activation=relu,selu`, `learning_rate>=0.01`, `arm!=baseline`, `dead_fraction/site_1<0.5`.

    Names are RunSpec fields, options, `experiment`, `arm`, `seed`, `status` (ok | nonfinite | oom | crashed | interrupted), and
    metrics of the study at the end of a run. A configuration without an option meets no condition on it but !=.

    Raises:
        UserError: a condition is malformed, or its name or value does not occur in the study.
    """
    return [_parsed(text, declaration) for text in where]


def _parsed(text: str, declaration: Declaration) -> Condition:
    name, compared, values = split_condition(text)
    metric, _, site = name.partition("/")
    if metric in declaration.metrics:
        column = f"{metric}/{site or 'all'}"
        if column not in declaration.columns:
            raise nearest(column, declaration.columns, "column")
        return Condition(column, compared, tuple(_as_number(value, text) for value in values), True)
    if name not in (valid := (*FIELDS, *declaration.options, *LABELS, *OF_A_RUN)):
        raise nearest(name, [*valid, *declaration.metrics], "factor or metric")
    return Condition(name, compared, tuple(_values(name, compared, values, declaration, text)), False)


def split_condition(text: str) -> tuple[str, str, list[str]]:
    """Return the name, the operator and the values of a condition."""
    parts = _CONDITION.fullmatch(text)
    if parts is None or not parts[3]:
        raise UserError(f"cannot read the condition {text!r}. Write NAME=VALUE with = != < <= > or >=, e.g. depth=2,3.")
    values = [value.strip() for value in parts[3].split(",")]
    if len(values) > 1 and parts[2] not in EQUALITIES:
        raise UserError(f"the condition {text!r} compares with several values. Only = and != take a list.")
    return parts[1], parts[2], values


def _values(name: str, compared: str, values: Sequence[str], declaration: Declaration, text: str) -> Sequence[Any]:
    if name == "seed":
        return [_as_number(value, text) for value in values]
    if name == "status":
        known: list[Any] = list(STATUSES)
    else:
        found = dict.fromkeys(factor(entry, name) for entry in declaration.configurations)
        known = [value for value in found if value is not None]
    if any(isinstance(value, (str, bool)) for value in known):
        _refuse_order(name, compared, text)
        labels = {format_value(value): value for value in known}
        return [labels[label] for label in _labels(values, list(labels), name)]
    numbers = [_as_number(value, text) for value in values]
    for number in numbers if compared in EQUALITIES else ():
        if number not in known:
            raise nearest(f"{number:g}", [f"{value:g}" for value in known], f"value of {name}")
    return numbers


def _refuse_order(name: str, compared: str, text: str) -> None:
    if compared not in EQUALITIES:
        raise UserError(f"the condition {text!r} orders {name}, whose values are names. Use = or !=.")


def _labels(parts: Sequence[str], known: Sequence[str], name: str) -> list[str]:
    """Return the labels in comma-separated text. Labels may contain commas, so the longest match wins."""
    plain = {re.sub(r"\s*,\s*", ",", label): label for label in known}
    labels, start = [], 0
    while start < len(parts):
        ends = [end for end in range(len(parts), start, -1) if ",".join(parts[start:end]) in plain]
        if not ends:
            raise nearest(parts[start], known, f"value of {name}")
        labels.append(plain[",".join(parts[start : ends[0]])])
        start = ends[0]
    return labels


def _as_number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"the condition {text!r} compares with {value!r}, which is not a number. Give a number.") from None
    if math.isnan(number):
        raise UserError(f"the condition {text!r} compares with NaN, which equals nothing. Use status=nonfinite.")
    return number


def configurations(conditions: Sequence[Condition], declaration: Declaration) -> list[DeclaredConfiguration]:
    """Return the declared configurations (one entry per experiment, arm and target) that meet all conditions on them."""
    relevant = [condition for condition in conditions if condition.of_configurations]
    return [e for e in declaration.configurations if all(_met_by(factor(e, c.name), c) for c in relevant)]


def runs(conditions: Sequence[Condition], frame: pd.DataFrame, declaration: Declaration) -> Bool[np.ndarray, " R"]:
    """Return whether each row of runs.csv meets every condition. An empty or nonfinite metric meets none."""
    configs = {entry.config_id for entry in configurations(conditions, declaration)}
    kept = frame["config_id"].isin(configs).to_numpy(bool, copy=True)
    for condition in conditions:
        if not condition.of_configurations:
            kept &= _meets(frame[condition.name].to_numpy(), condition)
            if condition.metric:
                kept &= np.isfinite(frame[condition.name].to_numpy(float))
    return kept


def _met_by(value: Any, condition: Condition) -> Any:
    return condition.compared == "!=" if value is None else _meets(value, condition)


def _meets(value: Any, condition: Condition) -> Any:
    compare = OPERATORS[condition.compared]
    if len(condition.values) == 1:
        return compare(value, condition.values[0])
    is_listed = np.isin(value, condition.values) if isinstance(value, np.ndarray) else value in condition.values
    return is_listed if condition.compared == "=" else np.logical_not(is_listed)


def select(frame: pd.DataFrame, where: Sequence[str]) -> pd.DataFrame:
    """Return the rows of cells.csv that meet every condition on its columns: `width=2,3`, `layers<=10`, `number=born_dead`.

    Raises:
        UserError: a condition is malformed, or its column or value does not fit.
    """
    for text in where:
        name, compared, values = split_condition(text)
        if name not in frame:
            raise nearest(name, frame.columns, "column of cells.csv")
        wanted: Sequence[Any] = values
        if pd.api.types.is_numeric_dtype(frame[name]):
            wanted = [_as_number(value, text) for value in values]
        else:
            _refuse_order(name, compared, text)
        frame = frame[_meets(frame[name].to_numpy(), Condition(name, compared, tuple(wanted), False))]
    return frame
