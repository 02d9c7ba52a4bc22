"""Typed manifest of a results folder: the declaration of a study, parsed once from its JSON.

Typed objects are never written back. Hashes and copied values come from the JSON itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from relu_study.errors import UserError, nearest
from relu_study.storage.checksums import one_line
from relu_study.storage.manifest import read_manifest
from relu_study.storage.quantities import DeclaredMetric, QuantityInfo, Theory
from relu_study.study.claims import CellClaim, Claim, Target
from relu_study.study.measurement_times import Every, checked_every
from relu_study.study.outputs import CellFigure, CellTable, EventTable, Figure, Section, Table
from relu_study.study.run_spec import FIELDS, FIRST_INITIALIZER, RunSpec

MAX_RUNS, MAX_DRAWS = 10**7, 2**32  # limits of a study and of a cell: a larger declaration would exhaust memory


@dataclass(frozen=True)
class DeclaredConfiguration:
    """One arm of an experiment on one target, with every RunSpec field but the seed, and its number of seeds.

    `spec` also has the options. An option that the study does not set has the default of its component. `unset` are the names in
    `spec` that the study does not set. It is empty if the id of `spec` is the same without them.
    """

    experiment: str
    arm: str
    config_id: str
    spec: Mapping[str, Any]
    seeds: Annotated[int, Meta(ge=1)] = 0  # earlier versions declare one number for all configurations
    unset: tuple[str, ...] = ()

    @property
    def run_spec(self) -> RunSpec:
        """The RunSpec of the study, with seed 0."""
        return RunSpec.from_dict({name: value for name, value in self.spec.items() if name not in self.unset})

    @property
    def target(self) -> str:
        return str(self.spec["target"])


@dataclass(frozen=True, kw_only=True)
class _Common:
    """Entries of every declaration."""

    title: str
    text: str
    sections: tuple[Section, ...]
    factors: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _WithoutTables(_Common):
    """A training study's declaration but for its tables, since msgspec reads no union of two dataclasses."""

    configurations: Annotated[tuple[DeclaredConfiguration, ...], Meta(min_length=1)]
    targets: tuple[Target, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    columns: tuple[str, ...]
    report_epochs: tuple[float, ...]
    seeds: Annotated[int, Meta(ge=1)]
    metrics: Mapping[str, DeclaredMetric]
    every: Every = 1  # that of earlier versions
    skip: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # set in some configuration, in name order


@dataclass(frozen=True, kw_only=True)
class Declaration(_WithoutTables):
    """The declaration of a training study."""

    tables: tuple[Table | EventTable, ...]

    @cached_property
    def seeds_of(self) -> dict[str, int]:
        """config_id -> number of seeds."""
        return {entry.config_id: entry.seeds for entry in self.configurations}

    @cached_property
    def specs(self) -> dict[str, Mapping[str, Any]]:
        """config_id -> its RunSpec fields without the seed, and its options."""
        return {entry.config_id: entry.spec for entry in self.configurations}

    @cached_property
    def _run_specs(self) -> dict[str, RunSpec]:
        return {entry.config_id: entry.run_spec for entry in self.configurations}

    def run_ids(self, config_id: str) -> list[str]:
        """Return the run_ids of a configuration, in seed order."""
        spec = self._run_specs[config_id]
        return [spec.replace(seed=seed).run_id for seed in range(self.seeds_of[config_id])]


@dataclass(frozen=True)
class DeclaredExperiment:
    """An experiment of a draw study. Its `theory` is another experiment with the estimates to compare, or empty."""

    name: str
    statistic: str
    theory: str


@dataclass(frozen=True)
class DeclaredCell:
    """One cell of an experiment: its factors, its number of draws, and its theory by quantity."""

    experiment: str
    label: str
    statistic: str
    cell_id: str
    factors: Mapping[str, str | bool | int | float | None]
    draws: Annotated[int, Meta(ge=1, le=MAX_DRAWS)]
    along: Mapping[str, tuple[int | float, ...]]
    theory: Mapping[str, Theory]

    def size(self, number: QuantityInfo) -> int:
        """The number of values of a quantity."""
        return len(self.along[number.along]) if number.along else 1


@dataclass(frozen=True, kw_only=True)
class CellDeclaration(_Common):
    """The declaration of a draw study. `numbers` has the quantities of each statistic."""

    experiments: tuple[DeclaredExperiment, ...]
    cells: Annotated[tuple[DeclaredCell, ...], Meta(min_length=1)]
    numbers: Mapping[str, Mapping[str, QuantityInfo]]
    claims: tuple[CellClaim, ...]
    tables: tuple[CellTable, ...]
    figures: tuple[CellFigure, ...]


AnyDeclaration = TypeVar("AnyDeclaration", Declaration, CellDeclaration)


@dataclass(frozen=True)
class Manifest(Generic[AnyDeclaration]):
    """The manifest of a results folder, as far as reports need it."""

    study: str
    provenance: Mapping[str, Any]
    widths: Mapping[str, int]
    declaration: AnyDeclaration
    command: str = ""
    preset: str = "default"
    oom: Sequence[str] = ()  # run_ids or cell_ids that did not fit in memory
    crashed: Mapping[str, str] = field(default_factory=dict)  # run_ids or cell_ids whose workers died -> the reason


StudyManifest = Manifest[Declaration]
CellManifest = Manifest[CellDeclaration]


def read_declared(folder: Path) -> StudyManifest:
    """Read the manifest of a training study.

    Raises:
        UserError: the declaration is invalid or of another version, or it is a draw study.
    """
    manifest = read_manifest(folder)
    if is_of_draws(manifest):
        raise UserError(f"{folder} is a draw study and has no runs. Read its cells.csv with relu_study.load_cells.")
    return _checked(folder, manifest, parse_declaration)


def read_declared_cells(folder: Path) -> CellManifest:
    """Read the manifest of a draw study. Raises UserError like `read_declared`."""
    manifest = read_manifest(folder)
    if not is_of_draws(manifest):
        raise UserError(f"{folder} is a training study and has no draws. Read it with relu_study.load.")
    return _checked(folder, manifest, parse_cell_declaration)


def is_of_draws(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is of a draw study."""
    return "cells" in (manifest["declaration"] or {})


def _checked(folder: Path, manifest: dict[str, Any], parse: Callable[[Any], AnyDeclaration]) -> Manifest[AnyDeclaration]:
    try:
        return _manifest(manifest, parse(manifest["declaration"]))
    except UserError as error:
        raise UserError(
            f"{folder / 'manifest.json'} has an invalid declaration ({one_line(error).rstrip('.')}): it is corrupt or of another "
            "relu-study version. Restore it, or run the study into a new folder."
        ) from None


def parse_manifest(manifest: Mapping[str, Any]) -> StudyManifest:
    """Parse the JSON of a training study's manifest. Raises UserError for an invalid entry."""
    return _manifest(manifest, parse_declaration(manifest["declaration"]))


def _manifest(manifest: Mapping[str, Any], declaration: AnyDeclaration) -> Manifest[AnyDeclaration]:
    unstored: dict[str, Any] = {"oom": tuple[str, ...], "crashed": dict[str, str]}
    kinds: dict[str, Any] = {"widths": dict[str, int], "command": str, "preset": str, **unstored}
    found = {name: _convert(manifest[name], kind, f"$.{name}") for name, kind in kinds.items() if name in manifest}
    return Manifest(manifest["study"], manifest["provenance"], declaration=declaration, **found)


def parse_declaration(plain: Any) -> Declaration:
    """Parse the JSON of a training study's declaration.

    Raises:
        UserError: an entry is missing or invalid. The message has its path.
    """
    read = _convert(plain, _WithoutTables)
    # msgspec leaves an absent entry to the class
    found = {**vars(read), "options": read.options, "every": checked_every(read.every, "`$.every`")}
    pairs = enumerate(_convert(plain.get("tables"), list[dict[str, Any]], "$.tables"))
    tables = tuple(_convert(table, EventTable if "events" in table else Table, f"$.tables[{i}]") for i, table in pairs)
    entries = tuple(_completed(entry, found, i) for i, entry in enumerate(found["configurations"]))
    declared = {name for entry in entries for name in entry.spec} - {*FIELDS}
    if tuple(sorted(declared)) != found["options"]:
        raise UserError("`$.options` differs from the options of the configurations")
    if (runs := sum(entry.seeds for entry in entries)) > MAX_RUNS:
        raise UserError(f"{runs:,} runs are more than {MAX_RUNS:,}")
    declaration = Declaration(**{**found, "configurations": entries}, tables=tables)
    check_names(declaration)
    return declaration


def parse_cell_declaration(plain: Any) -> CellDeclaration:
    """Parse the JSON of a draw study's declaration. Raises UserError like `parse_declaration`."""
    declaration = _convert(plain, CellDeclaration)
    names = [experiment.name for experiment in declaration.experiments]
    for experiment in declaration.experiments:
        _known(experiment.theory or experiment.name, names, f"experiment as theory of {experiment.name}")
        _known(experiment.statistic, declaration.numbers, f"statistic of {experiment.name}")
    for name, number in ((name, number) for numbers in declaration.numbers.values() for name, number in numbers.items()):
        if number.spread is not None and number.spread[0] >= number.spread[1]:
            raise UserError(f"the spread of {name} is empty")
    for cell in declaration.cells:
        _check_cell(cell, declaration)
    outputs = (*declaration.tables, *declaration.figures)
    for name in (
        *(claim.experiment for claim in declaration.claims),
        *(cell.experiment for cell in declaration.cells),
        *(name for item in outputs for name in item.experiments),
    ):
        _known(name, names, "experiment")
    check_names(declaration)
    return declaration


def check_names(declaration: Declaration | CellDeclaration) -> None:
    """Raise UserError for a table or figure whose name is not a valid file name, or is declared twice."""
    for kind, names in output_names(declaration).items():
        for name in names:
            if not re.fullmatch(r"[\w+=-][\w+=.-]{,99}", name):
                raise UserError(f"{name!r} of {kind} cannot be a file name. Use letters, digits and - _ + = .")
            if names.count(name) > 1:
                raise UserError(f"{kind}: {name!r} is declared twice. Choose another name.")


def check_sections(declaration: Declaration | CellDeclaration) -> None:
    """Raise UserError for a section with an undeclared claim, table or figure."""
    for kind, declared in {**output_names(declaration), "claims": [claim.claim for claim in declaration.claims]}.items():
        for section in declaration.sections:
            for name in getattr(section, kind):
                _known(name, declared, f"name among the {kind} of {section.title!r}")


def output_names(declaration: Declaration | CellDeclaration) -> dict[str, list[str]]:
    """Return the names of the declared tables and figures."""
    return {"tables": [t.name for t in declaration.tables], "figures": [f.name for f in declaration.figures]}


def _known(name: str, names: Collection[str], kind: str) -> None:
    if name not in names:
        raise nearest(name, names, kind)


def _convert(value: Any, kind: Any, path: str = "$") -> Any:
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.ValidationError as error:
        what, at, where = str(error).partition(" - at `$")
        raise UserError(f"{what[:1].lower()}{what[1:]} at `{path}{where if at else '`'}") from None


def _completed(entry: DeclaredConfiguration, declared: Mapping[str, Any], i: int) -> DeclaredConfiguration:
    """Add the defaults that earlier versions lack to one configuration, and check its id."""
    if unknown := [name for name in entry.spec if name not in (*FIELDS, *declared["options"])]:
        raise UserError(f"unknown field `{unknown[0]}` at `$.configurations[{i}].spec`, which this version does not know")
    entry = replace(entry, spec={"initializer": FIRST_INITIALIZER, **entry.spec})
    if entry.config_id != entry.run_spec.config_id and entry.spec["initializer"] == FIRST_INITIALIZER and not entry.unset:
        entry = replace(entry, unset=("initializer",))  # earlier versions write the default of every network
    if entry.config_id != entry.run_spec.config_id:
        raise UserError(f"the spec at `$.configurations[{i}]` has another id than {entry.config_id}")
    spec = RunSpec.from_dict(entry.spec).as_dict()
    spec.pop("seed")
    return replace(entry, seeds=entry.seeds or declared["seeds"], spec=spec)


def _check_cell(cell: DeclaredCell, declaration: CellDeclaration) -> None:
    where = f"of cell {cell.label}"
    for factor in sorted({*cell.factors, *cell.along}):
        _known(factor, declaration.factors, f"factor {where}")
    _known(cell.statistic, declaration.numbers, f"statistic {where}")
    for name, number in declaration.numbers[cell.statistic].items():
        if number.along and not cell.along.get(number.along):
            raise UserError(f"the {where[3:]} has no {number.along}, the factor of {name}")
        for values in vars(cell.theory.get(name, Theory())).values():
            if isinstance(values, tuple) and len(values) != cell.size(number):
                raise UserError(f"the theory of {name} {where} has {len(values)} of {cell.size(number)} values")
