"""Factors of a study: their order, their values as text, and those held fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from relu_study.errors import UserError
from relu_study.study.run_spec import FIELDS

LABELS = ("experiment", "arm")  # what the study calls a configuration; it may have several of each


def hold_fixed(entries: Sequence[dict[str, Any]], free: Collection[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
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
            some = ", ".join(format_value(value) for value in tied)
            raise UserError(
                f"{name} varies too, and {some} are equally common; choose one with --where {name}={format_value(first)}, "
                f"or put {name} among the rows or columns"
            )
        found[name] = first
    return [entry for entry in entries if all(entry["spec"][name] == value for name, value in found.items())], found


def factor(entry: Mapping[str, Any], name: str) -> Any:
    """The value of a factor, or the label, of a declared configuration."""
    return entry[name] if name in LABELS else entry["spec"][name]


def sorted_values(found: Sequence[Any]) -> list[Any]:
    """The values that there are, each once: numbers in rising order, names as they come."""
    values = list(dict.fromkeys(found))
    return values if any(isinstance(value, str) for value in values) else sorted(values)


def format_value(value: Any) -> str:
    """A factor's value as it is printed: short, and never like another value."""
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    exact = f"{int(value)}" if float(value).is_integer() and abs(value) < 1e15 else repr(value)
    return short if float(short) == value and "e+" not in short else exact
