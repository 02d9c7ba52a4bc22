"""Declared figures of a study, drawn from the numbers of a results folder and written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from relu_study.errors import nearest
from relu_study.report.figures import canvas, depth, forest, heatmap, histograms, inputs
from relu_study.report.figures.curves import arrange_curves
from relu_study.report.figures.forest import arrange_effects
from relu_study.report.figures.inputs import FigureData, not_run_counts
from relu_study.storage.atomic_write import write_atomically
from relu_study.storage.declaration import Declaration, StudyManifest
from relu_study.study.outputs import Figure, check_factors


def check(declaration: Declaration) -> None:
    """Raise UserError for a figure with unknown metrics, claims or factors. Needs no results."""
    claims = {claim.claim for claim in declaration.claims}
    if not declaration.skip:  # a preset that skips experiments may lack their options
        check_factors(declaration.figures, declaration.options)
    for figure in declaration.figures:
        inputs.expand_metrics(figure, declaration)
        for claim in figure.claims:
            if claim not in claims:
                raise nearest(claim, claims, f"name among the claims of {figure.name!r}")
        if figure.kind == "map":
            heatmap.kept(figure, declaration)


def draw_from(manifest: StudyManifest, numbers: FigureData, folder: Path) -> list[Path]:
    """Draw each declared figure to `folder`/figures/NAME.png and NAME.svg, and return the written paths in declared order.

    A figure without data (its experiments were left out, or its claims have no row) is not drawn. The CSVs give the same bytes
    if they suffice.
    """
    paths = []
    for figure in manifest.declaration.figures:
        if (picture := build_figure(figure, manifest.declaration, numbers)) is None:
            continue
        for kind, content in canvas.render(picture).items():
            paths.append(folder / "figures" / f"{figure.name}.{kind}")
            write_atomically(paths[-1], content)
    return paths


def build_figure(
    figure: Figure, declaration: Declaration, numbers: FigureData, note: str = ""
) -> Callable[[], canvas.Figure] | None:
    """Return the function that draws a figure with `note` below it, or None without values."""
    if figure.kind == "forest":
        claim_rows = [row for row in numbers.verdicts if row["claim"] in figure.claims]
        effects = arrange_effects(claim_rows, declaration, numbers.configurations)
        return partial(forest.forest, effects, note) if effects else None
    if figure.kind == "map":
        return heatmap.arrange_map(figure, declaration, numbers.summary, not_run_counts(numbers), note)
    if figure.kind in ("depth", "histograms"):
        arrange = depth.arrange_depth if figure.kind == "depth" else histograms.arrange_histograms
        return arrange(figure, declaration, numbers.configurations, note)
    return arrange_curves(figure, declaration, numbers, note)
