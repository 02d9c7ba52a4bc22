"""Heat maps: the shares of histogram bins with exact zero separate, and the numbers of maps over two factors."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from rendered import config_ids, drawn, labels, numbers, pictures, planted, said

from relu_study.errors import UserError
from relu_study.report.figures import canvas, heatmap, histograms, study_figures
from relu_study.report.figures.histograms import Scale, ValueHistogram, ValueHistograms
from relu_study.report.figures.inputs import FigureData
from relu_study.stats.histogram_bins import BINS, BINS_PER_SIDE, edges, linear_edges
from relu_study.storage import frames
from relu_study.study.outputs import Figure

SPREADS = Figure("f", "", "histograms", ("initialisers",), metrics=("post/site_1", "gradient/site_1"))
MAP = Figure("m", "", "map", ("initialisers", "tuned"), metrics=("val_loss",), rows="initializer", cols="learning_rate")


# --------------------------------------------------------------------------- over the epochs


def meshes(ax: Any) -> list[np.ndarray]:
    """The heat maps of a panel from below to above, each with the rows of its cells from below to above; NaN where white."""
    found = [mesh for mesh in ax.collections if isinstance(mesh, QuadMesh)]
    found.sort(key=lambda mesh: mesh.get_coordinates()[0, 0, 1])
    return [np.ma.filled(mesh.get_array().astype(float), np.nan) for mesh in found]


def test_shares_are_at_their_bins_and_exact_zero_has_a_strip() -> None:
    (picture,) = pictures(SPREADS)
    panels = [
        (m, target, arm) for m in ("post", "gradient") for target in ("wave", "coin_flip") for arm in ("baseline", "he_normal")
    ]
    axes = [ax for i, ax in enumerate(picture.axes[:12]) if i % 3 < 2]
    for ax, (kind, target, arm) in zip(axes, panels, strict=True):
        counts = planted()[1][config_ids()[arm, target]].histograms[f"{kind}:site_1"].astype(float)
        shares = counts / counts.sum(axis=1, keepdims=True)
        shown = meshes(ax)
        if kind == "post":  # seven values in each of the last two bins, and a zero for each dead unit
            strip, above = shown
            np.testing.assert_allclose(np.nan_to_num(above), shares[:, -2:].T)
        else:  # one value in bin 5 + e
            below, strip = shown
            np.testing.assert_allclose(np.nan_to_num(below), shares[:, 5:9].T)
        np.testing.assert_allclose(np.nan_to_num(strip), shares[:, BINS_PER_SIDE : BINS_PER_SIDE + 1].T)
        at = [f"{100 * shares[e, BINS_PER_SIDE]:.2g} %" for e in (0, -1)]
        assert [t.get_text().strip() for t in ax.texts] == at
        assert ("exactly 0" in [t.get_text() for t in ax.get_yticklabels()]) == (arm == "baseline")  # the first of its line
        assert 0 in ax.get_yticks()


def test_pooled_runs_are_named_and_missing_runs_counted() -> None:
    (picture,) = pictures(SPREADS)
    assert [ax.get_title() for ax in picture.axes[:12]] == [
        *("baseline", "he_normal\nn=7/8", "lecun_normal", "", "", "", "", "n=7/8", "", "", "", ""),
    ]
    assert [ax.get_ylabel() for ax in picture.axes[:12:3]] == [
        f"{words}\ntarget: {target}"
        for words in ("post, site_1\n(a unit's output)", "gradient, site_1\n(loss per parameter)")
        for target in ("wave", "coin_flip")
    ]
    first, second = picture.axes[12].get_xlabel().split("\n")
    assert first == "share of the values of an epoch, pooled over 8 runs (white: next to none);"
    assert second == "the bins next to 0 hold all that is smaller than 6e-8"
    assert {ax.get_xlabel() for ax in picture.axes[9:12]} == {"epoch"}


def test_ticks_are_at_the_bins_of_their_values() -> None:
    counts = np.zeros((2, BINS))
    counts[:, 20:50] = 1
    cell = ValueHistogram(np.arange(2.0), counts / 30, 4)
    (ax, _) = drawn(lambda: histograms.histograms([ValueHistograms("y", "y", {"a": cell})], ["a"])).axes
    below, _, above = (m.get_coordinates()[:, 0, 1] for m in sorted(ax.collections, key=lambda m: m.get_coordinates()[0, 0, 1]))
    ticks = {
        t.get_text().replace("\N{MINUS SIGN}", "-", 1): y for t, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)
    }
    assert ticks.pop("exactly 0") == 0 and len(ticks) >= 4
    # bins 31 and 33 have the smallest used sizes
    for text, y in ticks.items():
        heights, borders = (above, edges()[BINS_PER_SIDE + 1 :]) if float(text) > 0 else (below, edges()[20 : BINS_PER_SIDE + 1])
        place = np.interp(np.log2(abs(float(text))), *np.sort([np.log2(np.abs(borders[: len(heights)])), np.abs(heights)]))
        assert abs(y) == pytest.approx(place)
    assert max(below) < -Scale(0, 12, 17).strip and min(above) > Scale(0, 12, 17).strip  # a gap on either side of the strip


SPANS = [(-1.0, 1.0), (0.0, 1.0), (0.0, 6.0), (-1.0, 2.0), (2.0, 5.0), (-5.0, -2.0)]


@pytest.mark.parametrize(
    "span", [pytest.param(s, marks=[] if s in ((-1.0, 1.0), (0.0, 6.0), (2.0, 5.0)) else pytest.mark.slow) for s in SPANS]
)
def test_a_bounded_output_has_a_linear_axis_over_its_range(span: tuple[float, float]) -> None:
    low, high = span
    shares = np.tile(np.arange(1, BINS + 1) / 3000, (2, 1))
    cell, wide = (ValueHistogram(np.arange(2.0), shares, 4, span=s) for s in (span, None))
    picture = drawn(
        lambda: histograms.histograms([ValueHistograms("y", "y", {"a": cell, "b": wide, "c": cell})], ["a", "b", "c"])
    )
    (ax, other, last) = picture.axes[:3]
    shown = np.concatenate([mesh[:, 0] for mesh in meshes(ax)])
    np.testing.assert_allclose(np.sort(shown), shares[0])  # every bin is drawn once
    names, heights = [t.get_text().replace("\N{MINUS SIGN}", "-") for t in ax.get_yticklabels()], ax.get_yticks()
    ticks = {float(name): y for name, y in zip(names, heights, strict=True) if name != "exactly 0"}
    assert len(ticks) >= 2 and all(low <= value <= high for value in ticks) and heights[names.index("exactly 0")] == 0
    for value, y in ticks.items():
        # Equal steps of value are equal steps of height on either side of the strip.
        scale = histograms.LinearScale(low, high)
        edge = np.abs(linear_edges(low, high) - value).min()
        assert edge * 64 / (high - low) <= 0.5 + 1e-9
        assert abs(y - scale.at(value)) < 1e-9
        assert abs(abs(y) - scale.inner - abs((value - low) * 64 / (high - low) - scale.below)) < 1e-9
    assert [t.get_text() for t in last.get_yticklabels()] == [t.get_text() for t in ax.get_yticklabels()]
    assert [t.get_text() for t in other.get_yticklabels()] != [t.get_text() for t in ax.get_yticklabels()]
    assert all(a.yaxis.get_tick_params()["labelleft"] for a in (ax, other, last)), "each axis differs from the one before it"
    assert picture.axes[3].get_xlabel().split("\n")[-1] == "bounded outputs: 64 equal bins over the whole range"


def test_epochs_without_a_finite_run_are_marked() -> None:
    counts = np.zeros((4, BINS))
    counts[:, 40] = 1
    counts[2:] = np.nan
    lost = ValueHistogram(np.array([0.0, 1, 2, 5]), counts, 4, "n=0/4")
    picture = drawn(lambda: histograms.histograms([ValueHistograms("y", "y", {"a": lost})], ["a"]))
    marked = [(p.get_x(), p.get_x() + p.get_width()) for p in picture.axes[0].patches if p.get_hatch()]
    assert marked == [(1.5, 3.5), (3.5, 6.5)]
    assert labels(picture) == ["no finite run"]
    whole = replace(lost, shares=np.nan_to_num(counts, nan=1 / BINS))
    assert not drawn(lambda: histograms.histograms([ValueHistograms("y", "y", {"a": whole})], ["a"])).legends


def test_runs_without_histograms_make_no_picture() -> None:
    bare = {config_id: replace(c, histograms={}) for config_id, c in planted()[1].items()}
    assert pictures(SPREADS, of=replace(numbers(), configurations=bare)) == []
    one = bare | {config_ids()["baseline", "wave"]: planted()[1][config_ids()["baseline", "wave"]]}
    (picture,) = pictures(SPREADS, of=replace(numbers(), configurations=one))
    assert [[t.get_text() for t in ax.texts] for ax in picture.axes[1:3]] == [["no values"]] * 2


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("val_loss",), "unknown metric of figure f 'val_loss'"),
        (("pst/site_1",), "unknown metric of figure f 'pst'. Did you mean post"),
        (("post/site_4",), "unknown site of post of figure f 'site_4'. Did you mean site_"),
        (("post",), "unknown site of post of figure f 'all'"),
    ],
)
def test_unknown_histogram_is_refused(metrics: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        study_figures.check(replace(planted()[0].declaration, figures=(replace(SPREADS, metrics=metrics),)))


# ------------------------------------------------------------------------ over two factors


def cells(ax: Any) -> dict[tuple[str, str], str]:
    """Text of each cell of a map, by the labels of its row and column. A row's label is at the start of its line."""
    first = ax.figure.axes[0]
    rows, cols = ([t.get_text() for t in axis.get_ticklabels()] for axis in (first.yaxis, ax.xaxis))
    return {(rows[int(t.get_position()[1])], cols[int(t.get_position()[0])]): t.get_text() for t in ax.texts}


def test_cells_have_means_over_runs_and_counts_of_missing_runs() -> None:
    (picture,) = pictures(MAP)
    assert [ax.get_title() for ax in picture.axes[:2]] == ["target: wave", "target: coin_flip"]
    assert [ax.get_ylabel() for ax in picture.axes[:2]] == ["initializer", ""]
    assert {ax.get_xlabel() for ax in picture.axes[:2]} == {"learning rate"}
    arms = {"normal_005": "baseline", "he_normal": "he_normal", "lecun_normal": "lecun_normal"}
    for ax, target in zip(picture.axes[:2], ("wave", "coin_flip"), strict=True):
        values = {name: planted()[1][config_ids()[arm, target]].values["val_loss/all"][:, -1] for name, arm in arms.items()}
        wanted = {(name, "0.001"): f"{np.nanmean(v.astype(float)):.3g}" for name, v in values.items()}
        wanted["he_normal", "0.001"] += "\nn=7/8" if target == "wave" else ""
        high = planted()[1][config_ids()["relu, rate=0.01", target]].values["val_loss/all"][:, -1]
        assert cells(ax) == wanted | {("he_normal", "0.01"): f"{high.astype(float).mean():.3g}"}
        hatched = {(p.get_x() + 0.5, p.get_y() + 0.5) for p in ax.patches if p.get_hatch()}
        assert hatched == {(1, 0), (1, 2)}  # the other initialisers have no second rate
    assert labels(picture) == ["no such configuration"]
    assert said(picture) == "held: activation relu"


def test_scale_names_the_better_end_and_losses_have_one_per_target() -> None:
    (picture,) = pictures(replace(MAP, metrics=("val_loss", "dead_fraction/site_1", "grad_norm"), epoch=1))
    assert [ax.get_ylabel() for ax in picture.axes[6:]] == [
        *["val loss\nepoch 1\nlower is better"] * 2,
        "dead fraction, site_1\nepoch 1\nlower is better\nN = 512 probe examples",
        *["grad norm\nepoch 1\nneither end is better"] * 2,
    ]


def test_an_earlier_epoch_shows_the_numbers_of_that_epoch() -> None:
    (picture,) = pictures(replace(MAP, epoch=1))
    values = planted()[1][config_ids()["he_normal", "wave"]].values["val_loss/all"][:, 1]
    assert cells(picture.axes[0])["he_normal", "0.001"] == f"{values.astype(float).mean():.3g}"  # the run is lost later
    assert pictures(replace(MAP, epoch=3)) == []


def test_undefined_metric_is_a_dash() -> None:
    chosen = Figure("m", "", "map", ("activations",), metrics=("saturated_fraction",), rows="activation", cols="initializer")
    (picture,) = pictures(chosen)
    assert cells(picture.axes[0]) == {
        (name, "normal_005"): "0.125" if name == "tanh" else "-" for name in ("relu", "leaky_relu", "tanh")
    }
    assert labels(picture) == ["no value: not defined, or none is finite"]
    assert pictures(replace(chosen, arms=("baseline",))) == []


def test_arms_that_differ_only_in_the_other_factor_share_a_row() -> None:
    (picture,) = pictures(Figure("m", "", "map", ("tuned",), metrics=("val_loss",), rows="arm", cols="learning_rate"))
    assert [t.get_text() for t in picture.axes[0].get_yticklabels()] == ["relu", "selu"]
    assert len(cells(picture.axes[0])) == 4 and not picture.legends
    for (arm, rate), text in cells(picture.axes[1]).items():
        values = planted()[1][config_ids()[f"{arm}, rate={rate}", "coin_flip"]].values["val_loss/all"][:, -1]
        assert text == f"{values.astype(float).mean():.3g}"


def test_the_target_can_be_a_factor() -> None:
    (picture,) = pictures(Figure("m", "", "map", ("initialisers",), metrics=("val_loss",), rows="target", cols="initializer"))
    assert len(picture.axes) == 2 and picture.axes[0].get_title() == ""
    assert len(cells(picture.axes[0])) == 6


def test_factor_without_a_most_common_value_is_refused() -> None:
    tied = replace(MAP, experiments=("tuned",), rows="initializer", cols="depth")
    with pytest.raises(UserError, match=r"figure m: .*equally common. Choose one with --where"):
        study_figures.check(replace(planted()[0].declaration, figures=(tied,)))


@pytest.mark.slow
def test_the_last_epoch_is_the_same_from_runs_csv_and_report_epochs_suffice() -> None:
    manifest, stored, _ = planted()
    last = frames.summary_frame(frames.configurations_from_runs_csv(frames.runs_frame(stored, manifest)), manifest)
    few = frames.at_epochs(numbers().summary, {1})
    for declared, summary in ((MAP, last), (MAP, few), (replace(MAP, epoch=1), few)):
        of = FigureData(summary, numbers().survival)
        files = [canvas.render(study_figures.build_figure(declared, manifest.declaration, n)) for n in (of, numbers())]
        assert files[0] == files[1]


def test_the_epoch_of_a_map_is_kept_in_summary_csv() -> None:
    declaration = planted()[0].declaration
    assert 4.0 not in frames.report_epochs(declaration)
    assert 4.0 in frames.report_epochs(replace(declaration, figures=(replace(MAP, epoch=4),)))


def test_on_a_logarithmic_scale_the_marks_are_written_out_and_a_narrow_one_is_linear() -> None:
    board = heatmap.Heatmap(np.array([[1e-6, 1e-2]]), np.ones((1, 2), bool), [["", ""]])
    narrow = replace(board, values=np.array([[0.25, 0.253]]))
    groups = [heatmap.Heatmaps("y", {"a": board, "b": narrow}, log=True, shared=False)]
    picture = drawn(lambda: heatmap.maps(groups, ["a", "b"], ("rows", ["r"]), ("cols", ["1", "2"])))
    wide, small = ([t.get_text() for t in ax.get_yticklabels()] for ax in picture.axes[2:])
    assert "1e-5" in wide and len(small) >= 3 and not any("$" in text for text in wide + small)
    assert [t.get_text() for t in picture.axes[0].texts] == ["1.00e-6", "0.01"]


@pytest.mark.parametrize(("value", "limits"), [(0.0, (0, 1)), (0.25, (0, 0.25)), (-2.0, (-2, 0))])
def test_constant_number_has_a_scale_from_zero(value: float, limits: tuple[float, float]) -> None:
    board = heatmap.Heatmap(np.full((1, 2), value), np.ones((1, 2), bool), [["", ""]])
    groups = [heatmap.Heatmaps("y", {"a": board})]
    picture = drawn(lambda: heatmap.maps(groups, ["a"], ("rows", ["r"]), ("cols", ["1", "2"])))
    assert picture.axes[1].get_ylim() == limits
