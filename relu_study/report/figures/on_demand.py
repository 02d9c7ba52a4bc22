"""Figures on demand from a results folder: `relu-study figure DIR`, and `relu_study.figure` in Python."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from relu_study.errors import UserError, nearest
from relu_study.report import conditions as selection
from relu_study.report.conditions import Condition, configurations, parse
from relu_study.report.figures import canvas
from relu_study.report.figures.inputs import NEEDED, FigureData, missing_input, select_arms
from relu_study.report.figures.study_figures import build_figure, check
from relu_study.report.verdicts import TEXTS
from relu_study.stats.numpy_defaults import numpy_defaults
from relu_study.storage.atomic_write import make_dirs, write_atomically
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.csv_files import read_csv, read_runs, read_summary
from relu_study.storage.declaration import Declaration, StudyManifest, read_declared
from relu_study.storage.frames import configurations_from_runs_csv, runs_frame, summary_frame, survival_frame
from relu_study.storage.tile_files import tile_paths
from relu_study.study.epochs import epoch_number
from relu_study.study.outputs import FIGURE_KINDS, Figure

FORMATS = ("png", "svg", "pdf")
USUAL = {"depth": ("grad_norm",), "histograms": ("post/site_1", "gradient/site_1")}  # default metrics
Words = str | Sequence[str]


@numpy_defaults()
def figure(
    folder: str | Path,
    kind: str | None = None,
    *,
    name: str | None = None,
    metrics: Words = (),
    experiments: Words = (),
    arms: Words = (),
    rows: str | None = None,
    cols: str | None = None,
    epoch: str | float | Sequence[str | float] = "last",
    claims: Words = (),
    log: bool = False,
    where: Words = (),
    out: str | Path | Sequence[str | Path] = (),
) -> list[Path]:
    """Draw a declared figure (`name`) or a new one of a `kind` from a results folder. Returns the written paths.

    `Figure` documents the kinds and their arguments. Without `metrics`, `depth` shows grad_norm, and `histograms` the outputs and
    gradients of site_1. Without `claims`, a forest shows all. `where` are conditions as in `conditions.parse`; those on
    metrics, seed or status select single runs. The suffixes of `out` (.png, .svg, .pdf; default KIND.png in the current folder)
    select the formats.

    Raises:
        UserError: a name is unknown, an input is missing, or nothing is left to draw.
    """
    folder = Path(folder).expanduser()
    manifest = read_declared(folder)
    declaration = manifest.declaration
    given: dict[str, Any] = {"metrics": _several(metrics), "experiments": _several(experiments), "arms": _several(arms)}
    given |= {"claims": _several(claims), "rows": rows, "cols": cols, "epoch": _epochs(epoch), "log": log}
    request = _declared(name, kind, given, declaration) if name is not None else _of_kind(kind, given, declaration)
    paths = _files(_several(out) or (f"{request.name}.png",))
    conditions = parse(_several(where), declaration)
    some = replace(declaration, configurations=tuple(configurations(conditions, declaration)), figures=(request,))
    if not (entries := select_arms(request, some)):
        raise UserError(f"no configuration is left to draw{_filter(request, where)}. Leave a condition out.")
    check(some)
    ids = {entry.config_id for entry in entries}
    numbers = _numbers(folder, manifest, some, request, conditions, ids, where)
    picture = build_figure(request, some, numbers, f"where {', '.join(_several(where))}" if where else "")
    if picture is None:
        reason = f"{_empty(request, numbers)}{_filter(request, where)}"
        raise UserError(f"there is nothing to draw: {reason}. Choose other metrics, arms, epochs or conditions.")
    rendered = canvas.render(picture, list(dict.fromkeys(path.suffix[1:] for path in paths)))
    for path in paths:
        make_dirs(path.parent)
        write_atomically(path, rendered[path.suffix[1:]])
    return paths


# ------------------------------------------------------------------------------ arguments


def _several(words: Any) -> tuple[Any, ...]:
    return (words,) if isinstance(words, (str, Path, int, float)) else tuple(words)


def _epochs(epoch: Any) -> Any:
    """Return one epoch unchanged and several as a tuple, with numeric text as numbers."""
    numbers = [(one, epoch_number(one)) for one in _several(epoch)]
    epochs = tuple(one if number is None else number for one, number in numbers) or ("last",)
    return epochs[0] if len(epochs) == 1 else epochs


def _declared(name: str, kind: str | None, given: Mapping[str, Any], declaration: Declaration) -> Figure:
    declared = {figure.name: figure for figure in declaration.figures}
    if name not in declared:
        raise nearest(name, declared, "figure of this study")
    usual = {field.name: field.default for field in fields(Figure)}
    also = [word for word, value in {"kind": kind, **given}.items() if value != usual[word] and value is not None]
    if also:
        raise UserError(f"the figure {name} is drawn as declared. Leave out {also[0]}, or give a kind instead of its name.")
    return declared[name]


def _of_kind(kind: str | None, given: Mapping[str, Any], declaration: Declaration) -> Figure:
    names = ", ".join(figure.name for figure in declaration.figures)
    if kind is None:
        also = f", or the name of a declared one ({names})" if names else ""
        raise UserError(f"no figure is named. Give a kind ({', '.join(FIGURE_KINDS)}){also}")
    if kind not in FIGURE_KINDS:
        raise nearest(kind, FIGURE_KINDS, "kind of figure")
    singular = {"experiments": "experiment", "arms": "arm"}
    for word, label in singular.items():
        names_of = dict.fromkeys(getattr(entry, label) for entry in declaration.configurations)
        for value in given[word]:
            if value not in names_of:
                raise nearest(value, names_of, label)
    given = dict(given) | {"metrics": given["metrics"] or USUAL.get(kind, ())}
    for word in ("metrics", "log") if kind == "survival" else ():
        if given[word]:
            raise UserError(f"survival shows every site and takes no {word}. Use arms, experiments and conditions.")
    if kind == "forest":
        for word in ("metrics", *singular):
            if given[word]:
                raise UserError(f"a forest shows claims and takes no {word}. Use claims ({_claims(declaration)}).")
        given["claims"] = given["claims"] or tuple(dict.fromkeys(claim.claim for claim in declaration.claims))
        if not given["claims"]:
            raise UserError("this study has no claims, and so no forest. Choose another kind.")
    return Figure(kind, "", kind, **given)


def _claims(declaration: Declaration) -> str:
    return ", ".join(dict.fromkeys(claim.claim for claim in declaration.claims)) or "there are none"


def _files(out: Sequence[str | Path]) -> list[Path]:
    paths = [Path(path).expanduser() for path in out]
    for path in paths:
        if path.suffix[1:] not in FORMATS:
            raise UserError(f"{path} has an unknown format. End its name in .png, .svg or .pdf.")
        if path.is_dir():
            raise UserError(f"{path} is a folder. Name a file.")
    return paths


def _filter(request: Figure, where: Words) -> str:
    chosen = {"experiments": request.experiments, "arms": request.arms, "claims": request.claims}
    parts = [f"{word} {', '.join(names)}" for word, names in chosen.items() if names]
    parts += [f"where {', '.join(_several(where))}"] if where else []
    return f" (requested: {'; '.join(parts)})" if parts else ""


# ------------------------------------------------------------------------------ inputs


def _numbers(
    folder: Path,
    whole: StudyManifest,
    some: Declaration,
    asked: Figure,
    conditions: Sequence[Condition],
    ids: set[str],
    where: Words,
) -> FigureData:
    manifest = replace(whole, declaration=some)
    kind, of_runs = asked.kind, [c for c in conditions if not c.of_configurations]
    if kind == "forest":
        return _verdicts(folder, whole, manifest, conditions)
    raw = bool(tile_paths(folder))
    runs = None
    if of_runs:
        frame = runs_frame(collect(folder, manifest, only=ids), manifest) if raw else read_runs(folder, whole)
        frame = frame[frame["config_id"].isin(ids)]
        frame = frame[selection.runs(conditions, frame, manifest.declaration)]
        if not len(frame):
            raise UserError(f"no run is left to draw{_filter(asked, where)}. Leave a condition out.")
        runs = set(frame["run_id"])
    if raw:
        stored = collect(folder, manifest, only=ids, histograms=kind == "histograms", runs=runs)
        return _of_runs(stored, manifest, survival=kind == "survival")
    if runs is not None and kind in ("depth", "map") and _at_the_end(asked):
        return _of_runs(configurations_from_runs_csv(frame), manifest)
    if runs is not None:
        raise UserError(f"conditions on single runs need {folder / 'raw'} for {kind}, which is missing. Run the study again.")
    return _from_files(folder, whole, some, asked, ids)


def _at_the_end(request: Figure) -> bool:
    return all(epoch == "last" for epoch in request.epochs)


def _of_runs(stored: dict[str, Configuration], manifest: StudyManifest, survival: bool = False) -> FigureData:
    if not stored:
        raise UserError("none of the requested runs is stored yet. Run the study to its end.")
    lives = survival_frame(stored if survival else {})
    return FigureData(summary_frame(stored, manifest, None), lives, (), stored)


def _from_files(folder: Path, whole: StudyManifest, some: Declaration, asked: Figure, ids: Collection[str]) -> FigureData:
    manifest = replace(whole, declaration=some)
    needed = dict.fromkeys(NEEDED[asked.kind])
    if (folder / "runs.csv").is_file():  # separates missing runs from nonfinite ones
        needed["runs"] = None
    readers = {"runs": lambda: read_runs(folder, whole), "summary": lambda: read_summary(folder, whole)}
    read = {name: readers.get(name, lambda name=name: read_csv(folder / f"{name}.csv"))() for name in needed}
    found = {name: frame[frame["config_id"].isin(ids)] for name, frame in read.items()}
    if needs := missing_input(asked, found, folder):
        raise UserError(f"this figure needs {needs}, which is missing. Run the study again.")
    nothing: dict[str, Configuration] = {}
    return FigureData(
        found.get("summary", summary_frame(nothing, manifest)),
        found.get("survival", survival_frame(nothing)),
        (),
        configurations_from_runs_csv(found["runs"]) if "runs" in found else nothing,
    )


def _verdicts(folder: Path, whole: StudyManifest, manifest: StudyManifest, conditions: Sequence[Condition]) -> FigureData:
    for condition in conditions:
        if condition.name != "target":
            raise UserError(f"a forest shows verdicts on all runs, so {condition.name} cannot restrict it. Use target.")
    rows = read_csv(folder / "verdicts.csv", TEXTS)
    targets = {entry.target for entry in manifest.declaration.configurations}
    rows = rows[rows["target"].isin(targets) | (rows["target"] == "")]
    stored = configurations_from_runs_csv(read_runs(folder, whole)) if (folder / "runs.csv").is_file() else {}
    records = [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
    return FigureData(summary_frame({}, manifest), survival_frame({}), records, stored)


def _empty(request: Figure, numbers: FigureData) -> str:
    """Return the reason why nothing can be drawn."""
    if request.kind == "forest":
        return f"verdicts.csv has no row of {', '.join(request.claims)}"
    what = ", ".join(request.metrics) or "unit"
    epochs = pd.unique(np.sort(numbers.summary["epoch"]))
    if request.kind in ("depth", "map") and not _at_the_end(request):
        when = ", ".join(f"{epoch:g}" for epoch in request.epochs if epoch != "last")
        return f"no value of {what} at epoch {when}, only at {', '.join(f'{epoch:.9g}' for epoch in epochs)}"
    if len(numbers.summary) and not numbers.summary["n_finite"].any():
        return "none of the runs is finite"
    return f"no value of {what} in {len(numbers.summary['config_id'].unique()) or len(numbers.configurations)} configurations"
