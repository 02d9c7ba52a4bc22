"""Matplotlib canvas of all figures: panels, legends, scales and rendering. Knows no study and no files.

The bytes of a figure depend on its numbers only: the user's Matplotlib settings are ignored while drawing, and no date or
version is written. At 7 inches width, no text is smaller than 8 pt.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 7.0  # inches
DPI = 150
# Okabe and Ito's colours, safe for colour-blind readers, without the yellow: too pale for a line on white paper.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")
DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
FAINT = "#707070"
SEQUENTIAL = matplotlib.colormaps["Blues"].resampled(
    256
)  # one hue, so equal for colour-blind readers and in grey; pale for small values
DIVERGING = matplotlib.colormaps["PuOr_r"].resampled(256)  # for values of both signs; distinct for colour-blind readers too
HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "#B0B0B0", "hatch": "////", "linewidth": 0}  # nothing here
ROUND = [1, 2, 5, 10]  # steps between ticks
STYLE: Any = {
    "font.family": "DejaVu Sans",  # part of Matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "lines.markersize": 5,
    "legend.handlelength": 2.6,  # long enough to tell the dashes apart
    "text.parse_math": False,  # dollar signs in labels are text
    "svg.hashsalt": "relu_study",
    "pdf.fonttype": 42,  # TrueType fonts, which publishers' tools can read
}


@dataclass(frozen=True)
class Panel:
    """A panel of a `panel_grid`, and whether it is the first of its line and the last of its column."""

    ax: Axes
    first: bool
    last: bool


def render(draw: Callable[[], Figure], formats: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """Return the figure drawn by `draw` in each format ("png", "svg", "pdf"). Equal numbers give equal bytes."""
    buffers = {name: io.BytesIO() for name in ("png", *formats)}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for glyphs missing in the font, drawn as boxes
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        picture = draw()
        # Always first: it computes the layout, the same for every format.
        FigureCanvasAgg(picture).print_png(buffers["png"], metadata={"Software": None})
        picture.set_layout_engine("none")
        if "svg" in buffers:
            FigureCanvasSVG(picture).print_svg(buffers["svg"], metadata={"Date": None, "Creator": None})
        picture.set_dpi(DPI)  # reset after the previous format, since embedded images use it
        if "pdf" in buffers:
            from matplotlib.backends.backend_pdf import FigureCanvasPdf  # a fifth of a second, for a format that few request

            FigureCanvasPdf(picture).print_pdf(buffers["pdf"], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return {name: buffers[name].getvalue() for name in formats}


def new_figure(columns: int) -> Figure:
    """Return an empty figure, 7 inches wide, or wider for many panels next to each other."""
    picture = Figure(figsize=(max(WIDTH, 1.6 * columns + 0.8), 4.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def panel_grid(names: Sequence[str], counts: Sequence[Mapping[str, str]], across: int | None = None) -> list[list[Panel]]:
    """Return a canvas with groups of panels, one panel per name, with `across` (default: at most four) panels per line.

    If a group fits on one line, names are shown above the first group only. `counts` ("n=31/32") are shown above their panels.
    """
    across = across or -(-len(names) // -(-len(names) // 4))
    deep = -(-len(names) // across)
    picture = new_figure(1)
    axes = picture.subplots(deep * len(counts), across, squeeze=False)
    for group in range(len(counts)):
        for ax in axes[group * deep : (group + 1) * deep].ravel()[len(names) :]:
            ax.set_visible(False)
    groups_of_panels = []
    for group, marks in enumerate(counts):
        panels = []
        for i, name in enumerate(names):
            row, column = group * deep + i // across, i % across
            title = textwrap.fill(name, 84 // across) if deep > 1 or group == 0 else ""
            count = textwrap.fill(marks.get(name, ""), 84 // across)
            axes[row, column].set_title("\n".join(filter(None, [title, count])))
            last = row == len(axes) - 1 or not axes[row + 1, column].get_visible()
            axes[row, column].tick_params(labelleft=column == 0, labelbottom=last)
            panels.append(Panel(axes[row, column], first=column == 0, last=last))
        groups_of_panels.append(panels)
    return groups_of_panels


def num_rows(panels: Sequence[Panel]) -> int:
    """Return the number of lines of a group's panels."""
    return sum(panel.first for panel in panels)


def legend_below(picture: Figure, handles: Sequence[Any], title: str, note: str = "") -> float:
    """Put the legend below the panels, in as few rows as fit its width. Returns its height in inches."""
    texts = [*filter(None, [title]), *(line for part in note.split("\n") for line in textwrap.wrap(part, 100))]
    for rows in range(max(-(-len(handles) // 6), 1), max(len(handles), 1) + 1):
        columns = max(-(-len(handles) // rows), 1)
        legend = picture.legend(handles=handles, loc="outside lower center", ncols=columns, title="\n".join(texts))
        legend.get_title().set_multialignment("center")
        box = legend.get_window_extent(picture.canvas.get_renderer())  # type: ignore[attr-defined]
        if columns == 1 or box.width < 0.98 * picture.get_figwidth() * picture.dpi:
            break
        legend.remove()
    return float(box.height / picture.dpi)


def runs(counts: Collection[int]) -> str:
    """Return a number of runs as text: "32 runs", "3 to 16 runs"."""
    span = f"{max(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"{span} run{'s' if max(counts) > 1 else ''}"


def epoch_ticks(most: int, epochs: Iterable[np.ndarray]) -> MaxNLocator:
    """Return the ticks of an axis of epochs: whole numbers, unless it is short and shows measurements within epochs."""
    lines = [line for line in epochs if len(line)]
    within = any((line[:-1] % 1).any() for line in lines) and max(line[-1] for line in lines) < most / 2
    return MaxNLocator(most, integer=not within, steps=ROUND)


def log_scale(ax: Axes, values: np.ndarray) -> None:
    """Set a logarithmic y axis for finite values, with a linear lowest decade if a value is exactly 0.

    With a negative value, or without a positive one, the axis stays linear.
    """
    positive = values[values > 0]
    if not len(positive) or (values < 0).any():
        return
    bottom, top = positive.min() / 1.5, positive.max() * 1.5
    ticks, names = log_ticks(bottom, top)
    if (values > 0).all():
        ax.set_yscale("log")
    else:
        least = 10.0 ** math.floor(math.log10(bottom))
        ax.set_yscale("symlog", linthresh=least)
        bottom, ticks, names = -0.2 * least, [0.0, *ticks], ["0", *names]
    ax.set_yticks(ticks, names)
    ax.set_yticks([], minor=True)
    ax.set_ylim(bottom, top)


def log_ticks(bottom: float, top: float) -> tuple[list[float], list[str]]:
    """Return round numbers on a logarithmic scale, with their labels."""
    first, last = math.floor(math.log10(bottom)), math.ceil(math.log10(top))
    digits = (1, 1.5, 2, 3, 4, 6, 8) if top < 10 * bottom else (1, 2, 5) if top < 100 * bottom else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1, 1 + (last - first) // 7) for digit in digits]
    ticks = [tick for tick in ticks if bottom <= tick <= top]
    return ticks, [plain(tick) for tick in ticks]


def plain(value: float, digits: int = 6) -> str:
    """Return a number without an exponent, which would be set smaller than 8 pt."""
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e+")


def finite(columns: Iterable[np.ndarray]) -> np.ndarray:
    """Return all finite values of some arrays."""
    values = np.concatenate([np.ravel(column) for column in columns])
    return values[np.isfinite(values)]
