"""Registered entries from outside the package that a study names: the workers of a cluster need their sources."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from relu_study.components.registry import REGISTRIES, function_of, metrics, ours, statistics
from relu_study.errors import UserError
from relu_study.study.draw_study import DrawStudy
from relu_study.study.study import Study
from relu_study.study.travelling_sources import of_package


def own_entries(study: Study | DrawStudy) -> dict[str, Any]:
    """Return the entries that a study names and the package does not define, by kind and name: "activation swish".

    All own metrics count, since a study may measure every registered metric.
    """
    names = set(_names_of_draws(study) if isinstance(study, DrawStudy) else _names_of_runs(study))
    found: dict[str, Any] = {}
    for registry in REGISTRIES:
        registry.load()
        for name, entry in sorted(registry.registered().items()):
            if not ours(entry) and (registry is metrics or name in names):
                found[f"{registry.kind} {name}"] = entry
    return found


def registered_entries(names: Iterable[str]) -> dict[str, Any]:
    """Return the registered entries of these kinds and names. Raises UserError if one is not registered."""
    kinds = {registry.kind: registry for registry in REGISTRIES}
    split = {name: name.partition(" ") for name in names}
    return {name: kinds[kind][entry] for name, (kind, _, entry) in split.items()}


def packed_entries(entries: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the entries that a function of the package made from user's arrays, as bytes: they have no source file."""
    packed = {}
    for name, entry in entries.items():
        if of_package(function_of(entry)):
            try:
                packed[name] = pickle.dumps(entry)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                raise UserError(f"{name} cannot be sent to the workers of a cluster: {error}") from None
    return packed


def register_packed(packed: Mapping[str, bytes]) -> None:
    """Register packed entries that no loaded source file has registered."""
    kinds = {registry.kind: registry for registry in REGISTRIES}
    for name, content in packed.items():
        kind, _, entry = name.partition(" ")
        if entry not in kinds[kind]:
            kinds[kind].add(entry, pickle.loads(content))


def _names_of_runs(study: Study) -> Iterator[str]:
    for run in {run.replace(seed=0): None for run in study.runs()}:
        yield from (value for value in vars(run).values() if isinstance(value, str))


def _names_of_draws(study: DrawStudy) -> Iterator[str]:
    for experiment in study.experiments:
        yield experiment.statistic
        for cell in experiment.cells.values():
            with contextlib.suppress(UserError):  # `prepare` names the invalid cell
                cell = statistics[experiment.statistic].cell(**cell)
            yield from (value for value in cell.values() if isinstance(value, str))
