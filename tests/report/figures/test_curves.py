"""Curves and survival: shown numbers, missing values and refused declarations."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_figures import COIN, WAVE
from matplotlib.colors import to_hex
from rendered import config_ids, labels, line_of, pictures, planted, said
from scipy import stats as scipy_stats

from relu_study.errors import UserError
from relu_study.report.figures import study_figures
from relu_study.report.figures.inputs import FigureData
from relu_study.storage import frames
from relu_study.study.outputs import Figure


def test_every_declared_figure_becomes_a_png_and_an_svg(written: list[Path]) -> None:
    names = ["initialisers", "survival", "claims"]
    assert [p.name for p in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert sorted(p for p in written[0].parents[1].rglob("*") if p.is_file()) == sorted(written)
    assert {p.parent.name for p in written} == {"figures"}
    for path in written[::2]:
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20]) == 1050  # 7 inches at 150 dpi
    for path in written[1::2]:
        assert 'width="504pt"' in path.read_text()


def test_curves_show_the_mean_and_the_t_interval_of_each_arm_on_each_target() -> None:
    manifest, configurations, _ = planted()
    (picture,) = pictures("initialisers")
    assert [ax.get_title() for ax in picture.axes] == [WAVE, COIN, "", ""]
    assert labels(picture) == ["baseline", "he_normal (target: wave, n=7/8)", "lecun_normal"]
    assert [ax.get_xlabel() for ax in picture.axes] == ["", "", "epoch", "epoch"]
    ids = {(e.arm, e.target): e.config_id for e in manifest.declaration.configurations}
    panels = itertools.product(("dead_fraction/all", "val_loss/all"), ("wave", "coin_flip"))
    for panel, (name, target) in enumerate(panels):
        for arm in ("baseline", "he_normal", "lecun_normal"):
            values = configurations[ids[arm, target]].values[name].astype(float)
            n = np.isfinite(values).sum(0)
            assert n[-1] == (7 if (arm, target) == ("he_normal", "wave") else 8)
            line = line_of(picture, panel, arm)
            np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 5])
            np.testing.assert_allclose(line.get_ydata(), np.nanmean(values, 0), rtol=1e-8)
            half = scipy_stats.t.ppf(0.975, n - 1) * np.nanstd(values, 0, ddof=1) / np.sqrt(n)
            edge = edges(picture.axes[panel], line.get_color())
            np.testing.assert_allclose(edge[0], np.nanmean(values, 0) - half, rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(edge[1], np.nanmean(values, 0) + half, rtol=1e-8, atol=1e-12)


def edges(ax: Any, colour: str) -> tuple[list[float], list[float]]:
    """The lower and upper edge, at the planted epochs, of the band of that colour."""
    (band,) = (c for c in ax.collections if to_hex(c.get_facecolor()[0][:3]) == to_hex(colour))
    points = band.get_paths()[0].vertices
    at = [[y for x, y in points if x == epoch] for epoch in (0, 1, 2, 5)]
    return [min(ys) for ys in at], [max(ys) for ys in at]


def test_a_share_of_runs_has_a_wilson_interval() -> None:
    picture = pictures(Figure("f", "", "curves", ("shapes",), metrics=("collapsed",)))[0]
    line = line_of(picture, 0, "stuck")
    np.testing.assert_array_equal(line.get_ydata(), [0, 0, 0.5, 0.5])
    low, high = edges(picture.axes[0], line.get_color())
    for k, lo, hi in zip((0, 0, 4, 4), low, high, strict=True):
        ci = scipy_stats.binomtest(k, 8).proportion_ci(0.95, "wilson")
        np.testing.assert_allclose((lo, hi), (ci.low, ci.high), atol=1e-8)
    assert picture.axes[0].get_ylabel() == "collapsed\n(share of runs)\nN = 512 probe examples"


def test_survival_decreases_as_units_die() -> None:
    (picture,) = pictures("survival")
    assert [ax.get_title() for ax in picture.axes] == [WAVE, COIN, "", ""]
    assert "site_1" in picture.axes[0].get_ylabel() and "site_2" in picture.axes[2].get_ylabel()
    assert all("N = 512 probe examples" in picture.axes[i].get_ylabel() for i in (0, 2))
    line = line_of(picture, 0, "baseline")
    # 7 of 10 units are born alive; one of them dies at epoch 1 on the even ones of 8 seeds.
    np.testing.assert_allclose(line.get_ydata(), [1, *[1 - 4 / 56] * 3], rtol=1e-8)
    assert line.get_drawstyle() == "steps-post"
    # Half of the `stuck` runs lose all of site_2 at epoch 2.
    at_risk = 4 * 9 + 4 * 8
    expected = np.cumprod([1, 1 - 4 / 72, 1 - 4 * 9 / at_risk, 1])
    np.testing.assert_allclose(line_of(picture, 2, "stuck").get_ydata(), expected, rtol=1e-8)
    assert "shallow" not in {h.get_label() for h in picture.axes[2].lines}
    assert said(picture) == "share and its 95 % band over 8 runs"


def test_metrics_without_values_leave_no_empty_row_and_no_empty_figure() -> None:
    empty = Figure("e", "", "curves", ("initialisers",), metrics=("saturated_fraction",))
    nobody = Figure("n", "", "forest", claims=("P9",))
    mixed = Figure("m", "", "curves", ("activations",), metrics=("saturated_fraction", "val_loss"))
    made = pictures(empty, nobody, mixed)
    assert len(made) == 1
    assert [ax.get_ylabel() for ax in made[0].axes[::2]] == ["saturated fraction,\nall sites\nN = 512 probe examples", "val loss"]
    assert len(made[0].axes[0].lines) == 1  # only tanh can saturate


def test_metrics_without_values_are_named_below() -> None:
    relu = Figure("m", "", "curves", ("initialisers",), metrics=("saturated_fraction", "val_loss"))
    assert said(pictures(relu)[0]).splitlines()[1:] == ["no values: saturated fraction, all sites"]
    arms = Figure("m", "", "curves", ("activations",), metrics=("saturated_fraction",))
    assert said(pictures(arms)[0]).splitlines()[1:] == ["no values: baseline, leaky_relu"]


def test_metric_at_every_site_has_a_row_per_site_with_values() -> None:
    both, one = (Figure("f", "", "curves", arms=(arm,), metrics=("dead_fraction/*",)) for arm in ("baseline", "shallow"))
    made = pictures(both, one)
    rows = [[ax.get_ylabel().splitlines()[0] for ax in picture.axes[::2]] for picture in made]
    assert rows == [["dead fraction, site_1", "dead fraction, site_2"], ["dead fraction, site_1"]]
    values = planted()[1][config_ids()["baseline", "coin_flip"]].values["dead_fraction/site_2"]
    np.testing.assert_allclose(line_of(made[0], 3, "baseline").get_ydata(), values.mean(0, dtype=float), rtol=1e-8)


def test_missing_runs_are_counted_with_their_reason() -> None:
    manifest, configurations, _ = planted()
    few = {config_id: replace(c, num_requested=32) for config_id, c in configurations.items()}
    shown = Figure("f", "", "curves", ("initialisers",), metrics=("val_loss",)), "survival"
    of = FigureData(frames.summary_frame(few, manifest, None), frames.survival_frame(few))
    curves, survival = pictures(*shown, of=of)
    assert labels(curves) == [
        "baseline (n=8/32)",
        "he_normal (target: wave, n=7/32; target: coin_flip, n=8/32)",
        "lecun_normal (n=8/32)",
    ]
    assert labels(survival)[0] == "baseline (n=8/32)"
    known = replace(of, configurations=few)
    curves, survival = pictures(*shown, of=known)
    assert [text.replace("\n", " ") for text in labels(curves)] == [
        "baseline (n=8/32 (24 not run))",
        "he_normal (target: wave, n=7/32 (1 nonfinite, 24 not run); target: coin_flip, n=8/32 (24 not run))",
        "lecun_normal (n=8/32 (24 not run))",
    ]
    assert labels(survival)[0] == "baseline (n=8/32 (24 not run))"
    depth = Figure("f", "", "depth", ("initialisers",), metrics=("grad_norm",))
    spread = Figure("f", "", "histograms", ("initialisers",), metrics=("post/site_1",))
    for picture in pictures(depth, spread, of=known):
        titles = [" ".join(ax.get_title().split("\n")[1:]) for ax in picture.axes[:3]]
        assert titles == ["n=8/32 (24 not run)", "n=7/32 (1 nonfinite, 24 not run)", "n=8/32 (24 not run)"]
    board = Figure("f", "", "map", ("tuned",), metrics=("val_loss",), rows="activation", cols="learning_rate")
    (picture,) = pictures(board, of=known)
    texts = {text.get_text().partition("\n")[2] for ax in picture.axes for text in ax.texts}
    assert texts == {"n=8/32\n(24 not run)", "n=7/32\n(1 nonfinite,\n24 not run)"}


def test_an_arm_without_a_stored_run_is_named_as_not_run() -> None:
    stored = planted()[1]
    lost = {config_ids()["lecun_normal", target] for target in ("wave", "coin_flip")}
    some = {config_id: c for config_id, c in stored.items() if config_id not in lost}
    of = FigureData(frames.summary_frame(some, planted()[0], None), frames.survival_frame(some), (), some)
    (curves,) = pictures(Figure("f", "", "curves", ("initialisers",), metrics=("val_loss",)), of=of)
    assert "no values: lecun_normal (not run)" in said(curves)
    (fan,) = pictures(Figure("f", "", "depth", ("initialisers",), metrics=("dead_fraction",)), of=of)
    assert fan.axes[2].get_title() == "lecun_normal\nn=0/8 (8 not run)"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("val_los",), "unknown metric of figure f 'val_los'. Did you mean val_loss"),
        (("dead_fraction/site_3",), "unknown site of dead_fraction of figure f 'site_3'. Did you mean site_"),
        (("val_loss/*",), "val_loss of figure f is measured for the whole network only"),
    ],
)
def test_unknown_metric_is_refused(metrics: tuple[str, ...], message: str) -> None:
    declared = Figure("f", "", "curves", metrics=metrics)
    with pytest.raises(UserError, match=re.escape(message)):
        study_figures.check(replace(planted()[0].declaration, figures=(declared,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "curve"}, "unknown kind of figure f 'curve'. Did you mean curves"),
        ({"metrics": ()}, "names no metrics"),
        ({"kind": "forest"}, "names no claims"),
        ({"kind": "map"}, "needs a factor as rows"),
        ({"kind": "map", "rows": "activation"}, "needs a factor as cols"),
        (
            {"kind": "map", "rows": "site", "cols": "depth"},
            "unknown factor as rows of figure f 'site'. Did you mean",
        ),
        ({"kind": "map", "rows": "depth", "cols": "depth"}, "depth as rows and as cols"),
        ({"rows": "depth"}, "is no map and has no rows"),
        ({"epoch": 5}, "shows every epoch. Leave out epoch"),
        ({"kind": "depth", "epoch": (0, "lst")}, "has the epoch 'lst'. Use 'last' or a number of at least 0"),
        ({"kind": "depth", "epoch": float("nan")}, "has the epoch nan"),
        ({"kind": "map", "rows": "depth", "cols": "width", "epoch": (0, "last")}, "shows one epoch, not 2"),
    ],
)
def test_invalid_figure_is_refused_at_declaration(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        Figure(**{"name": "f", "caption": "", "kind": "curves", "metrics": ("val_loss",), **change})


def test_arm_missing_on_a_target_leaves_a_labelled_panel() -> None:
    declared = planted()[0].declaration.configurations
    kept = tuple(e for e in declared if e.arm != "tanh" or e.target == "wave")
    picture = pictures(Figure("f", "", "curves", ("activations",), metrics=("saturated_fraction",)), configurations=kept)[0]
    assert [[t.get_text() for t in ax.texts] for ax in picture.axes] == [[], ["no values"]]


def test_arms_keep_the_figure_order_and_targets_the_declared_order() -> None:
    chosen = Figure("f", "", "curves", ("initialisers", "activations"), arms=("tanh", "baseline"), metrics=("grad_norm/site_2",))
    picture = pictures(chosen)[0]
    assert labels(picture) == ["tanh", "baseline"]
    assert len(picture.axes[0].lines) == 2
    assert picture.axes[0].get_ylabel() == "grad norm, site_2"
    every = pictures(Figure("f", "", "curves", metrics=("val_loss",)))[0]
    assert len(labels(every)) == 11
    nameless = pictures(Figure("f", "", "curves", ("shapes",), metrics=("val_loss",)), targets=())[0]
    assert {ax.get_title() for ax in nameless.axes} == {""}
