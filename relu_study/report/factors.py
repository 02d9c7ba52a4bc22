"""Factors of a study: their order, their values as text, and those held fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from relu_study.errors import UserError
from relu_study.storage.declaration import DeclaredConfiguration
from relu_study.study.run_spec import FIELDS

LABELS = ("experiment", "arm")  # names of a configuration in the study; it may have several


def hold_fixed(
    entries: Sequence[DeclaredConfiguration], free: Collection[str]
) -> tuple[list[DeclaredConfiguration], dict[str, Any]]:
    """Return the configurations that differ only in the `free` factors, and the fixed value of each other varying factor.

    A factor is fixed at its most common value among the distinct configurations. If `arm` is free, only factors that vary within
    an arm are fixed. A fixed option keeps the configurations without it.

    Raises:
        UserError: two values are equally common.
    """
    # The default of a network or a task comes with it, and is no separate factor.
    specs = {entry.config_id: {k: v for k, v in entry.spec.items() if k not in entry.unset} for entry in entries}
    options = sorted({name for spec in specs.values() for name in spec} - {*FIELDS})
    varied = [name for name in (*FIELDS, *options) if name != "seed" and len(_values(name, specs.values())) > 1]
    if "arm" in free:
        by_arm: dict[str, list[Mapping[str, Any]]] = {}
        for entry in entries:
            by_arm.setdefault(entry.arm, []).append(specs[entry.config_id])
        varied = [name for name in varied if any(len(_values(name, arm)) > 1 for arm in by_arm.values())]
    fixed: dict[str, Any] = {}
    for name in varied:
        if name in free:
            continue
        (first, most), *others = Counter(spec[name] for spec in specs.values() if name in spec).most_common()
        tied = [first, *(value for value, count in others if count == most)]
        if len(tied) > 1:
            some = ", ".join(format_value(value) for value in tied)
            raise UserError(
                f"{name} varies too, and {some} are equally common. Choose one with --where {name}={format_value(first)}, "
                f"or put {name} among the rows or columns."
            )
        fixed[name] = first
    kept = [entry for entry in entries if all(specs[entry.config_id].get(k, value) == value for k, value in fixed.items())]
    return kept, fixed


def _values(name: str, specs: Iterable[Mapping[str, Any]]) -> set[Any]:
    return {spec[name] for spec in specs if name in spec}


def factor(entry: DeclaredConfiguration, name: str) -> Any:
    """Return the value of a factor or label of a declared configuration. None: an option that its components do not declare."""
    return getattr(entry, name) if name in LABELS else entry.spec.get(name)


def sorted_values(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values: numbers in rising order, names in the given order, None last."""
    distinct = [value for value in dict.fromkeys(values) if value is not None]
    ordered = distinct if any(isinstance(value, str) for value in distinct) else sorted(distinct)
    return [*ordered, *([None] if None in values else [])]


def format_value(value: Any) -> str:
    """Return a factor's value as text: short, but different for different values. A missing option is "-"."""
    if value is None:
        return "-"
    if isinstance(value, (str, bool)):
        return str(value)
    short = f"{value:g}"
    exact = f"{int(value)}" if float(value).is_integer() and abs(value) < 1e15 else repr(value)
    return short if float(short) == value and "e+" not in short else exact
