"""Curves and survival: axes, labels, legibility, and equal bytes each time."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dense_figures import crowded
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from rendered import drawn, flat, line_of, looks, pictures, planted
from tiers import tiered

from relu_study.report.figures import canvas, study_figures
from relu_study.report.figures import curves as drawing
from relu_study.report.figures.curves import Band, Row
from relu_study.report.figures.inputs import FigureData
from relu_study.storage import csv_files, frames
from relu_study.study.outputs import Figure


def test_axis_labels_have_units_unless_the_name_has_them() -> None:
    known = planted()[0].declaration.metrics
    units = {"val_loss": "loss", "grad_norm": "L2 norm", "dead_fraction": "fraction"}
    metrics = {name: replace(about, unit=units.get(name, "")) for name, about in known.items()}
    declared = Figure("f", "", "curves", ("shapes",), metrics=tuple(units)), Figure("g", "", "forest", claims=("P1", "P3"))
    made = pictures(*declared, metrics=metrics)
    assert [ax.get_ylabel() for ax in made[0].axes[::2]] == [
        "val loss",
        "grad norm\n(L2 norm)",
        "dead fraction, all sites\nN = 512 probe examples",
    ]
    assert "difference in collapsed (share of runs)" in {ax.get_xlabel() for ax in made[1].axes}


def test_a_huge_interval_does_not_hide_the_lines() -> None:
    band = Band(np.arange(3.0), np.array([1.0, 2.0, 3.0]), np.full(3, -1e6), np.full(3, 1e6), 2, 10)
    low, high = drawn(lambda: drawing.curves([Row("y", [{"a": band}])], [""], ["a"], "t")).axes[0].get_ylim()
    assert -10 < low < 1 and 3 < high < 10


def test_exact_zeros_are_shown_on_a_logarithmic_axis() -> None:
    row = Row("gradient", [{"dead": flat(0.0), "alive": flat(1e-3), "faint": flat(1e-8)}], log=True)
    (ax,) = drawn(lambda: drawing.curves([row], [""], ["dead", "alive", "faint"], "t")).axes
    heights = [ax.transData.transform((0, line.get_ydata()[0]))[1] for line in ax.lines]
    box = ax.get_window_extent()
    zero, alive, faint = ((h - box.y0) / box.height for h in heights)
    assert 0 < zero < faint - 0.1 and faint + 0.4 < alive < 1
    ticks = [t.get_text() for t in ax.get_yticklabels()]
    assert ticks[0] == "0" and "1e-7" in ticks and not any("$" in t for t in ticks)
    positive = Row("gradient", [{"alive": flat(1e-3), "faint": flat(1e-8)}], log=True)
    assert drawn(lambda: drawing.curves([positive], [""], ["alive", "faint"], "t")).axes[0].get_yscale() == "log"


def test_fractions_are_never_drawn_on_a_logarithmic_axis() -> None:
    declared = Figure("f", "", "curves", ("shapes",), metrics=("dead_fraction", "collapsed", "grad_norm"), log=True)
    picture = pictures(declared)[0]
    assert [ax.get_yscale() for ax in picture.axes[::2]] == ["linear", "linear", "log"]


def test_fractions_share_their_axis_and_stay_in_their_range() -> None:
    row = Row("dead", [{"a": flat(0.0)}, {"a": flat(1.0)}], low=0, high=1)
    first, second = drawn(lambda: drawing.curves([row], ["x", "y"], ["a"], "t")).axes
    assert first.get_ylim() == second.get_ylim() == pytest.approx((-0.05, 1.05))
    assert any(t.get_text() and t.get_visible() for t in first.get_yticklabels())
    assert not second.yaxis.get_tick_params()["labelleft"]


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(-1e12, 1e12) | st.floats(-1e-9, 1e-9), min_size=2, max_size=6),
    width=st.sampled_from([0.0, 1e-6, 0.5, 1e9, np.nan]),
    log=st.booleans(),
)
def test_every_mean_is_in_view(values: list[float], width: float, log: bool) -> None:
    mean = np.array(values)
    band = Band(np.arange(float(len(mean))), mean, mean - width, mean + width, 3, 10)
    (ax,) = drawn(lambda: drawing.curves([Row("y", [{"a": band}], log=log)], [""], ["a"], "t")).axes
    low, high = ax.get_ylim()
    assert np.isfinite([low, high]).all() and low <= mean.min() and mean.max() <= high and low < high


def test_arms_look_the_same_in_every_panel_and_different_from_each_other() -> None:
    arms = [f"arm {i}" for i in range(24)]
    row = Row("y", [{arm: flat(i) for i, arm in enumerate(arms)}, {arm: flat(i + 5) for i, arm in enumerate(arms[5:])}])
    picture = drawn(lambda: drawing.curves([row], ["", ""], arms, "t"))
    assert len({looks(line_of(picture, 0, arm)) for arm in arms}) == len(arms)
    for arm in arms[5:]:
        assert line_of(picture, 1, arm).get_ydata()[0] == arms.index(arm)


def test_coinciding_lines_are_both_visible() -> None:
    picture = drawn(lambda: drawing.curves([Row("y", [{"a": flat(1), "b": flat(1), "c": flat(1)}])], [""], ["b", "c", "a"], "t"))
    lines = [line_of(picture, 0, arm) for arm in ("b", "c", "a")]
    assert [line.is_dashed() for line in lines] == [False, True, True]
    assert lines[0].get_zorder() < lines[1].get_zorder() < lines[2].get_zorder()


@pytest.mark.parametrize("number", tiered(range(18), 0, 3, 12, 16))
def test_text_is_large_unclipped_and_does_not_overlap(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[Text, None] = {}  # drawn labels, without ticks beyond an axis
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (shown.setdefault(self), draw(self, renderer))[1])
    picture = drawn(crowded()[number])
    assert picture.get_figwidth() == (pytest.approx(9.5, abs=0.5) if number == 16 else 7)  # a map grows with its columns
    boxes = {text: text.get_window_extent() for text in shown if text.get_text().strip()}
    assert len(boxes) > 5
    for text, box in boxes.items():
        assert text.get_size() >= 8
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= picture.bbox.x1 + 1 and box.y1 <= picture.bbox.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) < 2, (one, other)  # pixels


def test_the_legend_says_how_many_runs() -> None:
    (picture,) = pictures(Figure("f", "", "curves", ("shapes",), metrics=("val_loss",)))
    assert picture.legends[0].get_title().get_text() == "mean and 95 % interval over 8 runs"
    for counts, words in (((1, 1), "over 1 run"), ((3, 16), "over 3 to 16 runs")):
        row = Row("y", [{"a": flat(1, counts[0]), "b": flat(2, counts[1])}])
        picture = drawn(lambda row=row: drawing.curves([row], [""], ["a", "b"], "over"))
        assert picture.legends[0].get_title().get_text() == words


def test_bytes_depend_on_the_numbers_only(written: list[Path], tmp_path: Path) -> None:
    manifest, configurations, rows = planted()

    csv = {
        "summary": frames.summary_frame(configurations, manifest, None),
        "survival": frames.survival_frame(configurations),
    }
    for name, frame in csv.items():
        (tmp_path / f"{name}.csv").write_text(csv_files.csv_text(frame))
        csv[name] = csv_files.read_csv(tmp_path / f"{name}.csv")
    printed = [{k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    read = study_figures.draw_from(manifest, FigureData(csv["summary"], csv["survival"], printed), tmp_path)
    assert [(path.name, path.read_bytes()) for path in read] == [(path.name, path.read_bytes()) for path in written]


def test_no_date_and_no_version_is_written() -> None:
    files = canvas.render(crowded()[4], ("png", "svg", "pdf"))
    assert not re.search(rb"CreationDate|Creator|Producer|[Mm]atplotlib", files["pdf"]) and files["pdf"].startswith(b"%PDF")
    assert not re.search(rb"Software|Creation|tIME|matplotlib", files["png"], re.IGNORECASE)
    assert not re.search(r"<dc:(date|creator)>|matplotlib v", files["svg"].decode(), re.IGNORECASE)


@pytest.mark.slow
def test_other_formats_change_no_byte_of_a_format() -> None:
    draw = crowded()[12]
    every = canvas.render(draw, ("pdf", "svg", "png"))
    assert list(every) == ["pdf", "svg", "png"]
    assert {name: canvas.render(draw, (name,))[name] for name in every} == every


def test_dollar_signs_in_labels_are_text() -> None:
    arm = "from $\\frac{ to 2$"  # as mathematics this is an error
    made = canvas.render(lambda: drawing.curves([Row("y", [{arm: flat(1)}])], [""], [arm], "t"))
    assert arm in made["svg"].decode()


def test_a_study_without_metrics_or_verdicts_draws_nothing(tmp_path: Path) -> None:
    manifest, _, _ = planted()
    nothing = FigureData(frames.summary_frame({}, manifest), frames.survival_frame({}), [], {})
    assert study_figures.draw_from(manifest, nothing, tmp_path) == []
    bare = replace(manifest, declaration=replace(manifest.declaration, figures=()))
    assert study_figures.draw_from(bare, nothing, tmp_path) == []


def test_drawing_needs_neither_jax_nor_a_display() -> None:
    modules = "relu_study.report.figures.study_figures, relu_study.report.tensorboard.event_files"
    code = (
        f"import sys, relu_study, {modules}; relu_study.figure; print({{'jax', 'flax', 'matplotlib.pyplot'}} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
