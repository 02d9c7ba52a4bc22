"""Rendered figures of the known results in the style of reports, and the texts of their legends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from known_results import planted_folder
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Picture

from relu_study.report import verdicts
from relu_study.report.figures import canvas, study_figures
from relu_study.report.figures.curves import Band
from relu_study.report.figures.inputs import FigureData
from relu_study.storage import frames
from relu_study.storage.configurations import Configuration, collect
from relu_study.storage.declaration import StudyManifest, read_declared
from relu_study.study.outputs import Figure

Folder = tuple[StudyManifest, dict[str, Configuration], list[dict[str, Any]]]


@cache
def planted() -> Folder:
    """Return the manifest of the known results, the stored runs with histograms, and the rows of verdicts."""
    with tempfile.TemporaryDirectory() as temporary:
        path = planted_folder(Path(temporary))
        manifest = read_declared(path)
        configurations = collect(path, manifest, histograms=True)
    pairs = {(e.arm, e.target): e.config_id for e in manifest.declaration.configurations}
    stored = {pair: configurations[config_id] for pair, config_id in pairs.items()}
    rows = verdicts.evaluate_claims(manifest.declaration.claims, stored, manifest.declaration.targets)
    return manifest, configurations, rows


@cache
def numbers() -> FigureData:
    """Return the inputs of figures of the known results."""
    manifest, configurations, rows = planted()
    return FigureData(
        frames.summary_frame(configurations, manifest, None), frames.survival_frame(configurations), rows, configurations
    )


def config_ids() -> dict[tuple[str, str], str]:
    """Return (arm, target) -> config_id of the known results."""
    return {(e.arm, e.target): e.config_id for e in planted()[0].declaration.configurations}


def pictures(*declared: Figure | str, of: FigureData | None = None, **changes: Any) -> list[Picture]:
    """Return rendered figures of the known results, by name or by declaration. Figures without values are left out."""
    declaration = planted()[0].declaration
    own = {figure.name: figure for figure in declaration.figures}
    chosen = [own[figure] if isinstance(figure, str) else figure for figure in declared]
    made = [study_figures.build_figure(figure, replace(declaration, **changes), of or numbers()) for figure in chosen]
    return [drawn(draw) for draw in made if draw is not None]


def drawn(draw: Callable[[], Picture]) -> Picture:
    """Return a figure in the style of reports, with its layout finished."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(canvas.STYLE)
        picture = draw()
        FigureCanvasAgg(picture)
        picture.draw_without_rendering()
    return picture


def labels(picture: Picture) -> list[str]:
    """Return the entries of the legend."""
    return [text.get_text() for legend in picture.legends for text in legend.get_texts()]


def said(picture: Picture) -> str:
    """Return the text above the entries of the legend."""
    return picture.legends[0].get_title().get_text()


def line_of(picture: Picture, panel: int, arm: str) -> Any:
    """Return the line of an arm in a panel, matched by the style of its legend entry."""
    (entry,) = (h for h in picture.legends[0].legend_handles if h.get_label().partition(" (")[0] == arm)
    (line,) = (x for x in picture.axes[panel].lines if looks(x) == looks(entry))
    return line


def looks(line: Any) -> tuple[str, str]:
    """Return the colour and the dash pattern of a line."""
    return to_hex(line.get_color()), str(line._dash_pattern)  # get_linestyle() says "--" of any dashes


def flat(value: float, runs: int = 4) -> Band:
    """Return a band of three epochs with one constant value."""
    values = np.full(3, float(value))
    return Band(np.arange(3.0), values, values, values, runs, 100)
