"""Forest plots: effects with intervals, margins, verdicts and numbers of seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure as Picture
from rendered import config_ids, drawn, labels, numbers, pictures, planted, said

from relu_study.report.figures import forest
from relu_study.report.figures.forest import Effect
from relu_study.study.outputs import Figure


def test_a_forest_shows_each_row_with_its_interval_its_margin_and_its_verdict() -> None:
    rows = [row for row in planted()[2] if row["contrast"] != "overall"]
    (picture,) = pictures("claims")
    blocks = ["dead fraction", "dead fraction", "val loss", "val loss", "collapsed", "collapsed"]
    assert len(picture.axes) == len(blocks)
    shown = 0
    for i, (ax, block) in enumerate(zip(picture.axes, blocks, strict=True)):
        asked = [r for r in rows if r["metric"].replace("_", " ") == block and r["target"] == ("wave", "coin_flip")[i % 2]]
        for row, y in zip(asked, panel_rows(picture, i), strict=True):
            interval, marker = (line for line in ax.lines if np.all(line.get_ydata() == y))
            np.testing.assert_allclose(interval.get_xdata(), [row["ci_lo"], row["ci_hi"]], rtol=1e-8)
            np.testing.assert_allclose(marker.get_xdata(), [row["effect"]], rtol=1e-8)
            assert marker.get_marker() == forest.VERDICTS[row["verdict"]]["marker"]
            assert interval.get_color() == marker.get_color() == forest.VERDICTS[row["verdict"]]["color"]
            (shade,) = (p for p in ax.patches if p.get_y() < y < p.get_y() + p.get_height())
            left, right = ax.get_xlim()
            margin = row["margin"]
            bounds = {"less": (left, -margin), "greater": (margin, right), "equivalent": (-margin, margin)}[row["direction"]]
            np.testing.assert_allclose((shade.get_x(), shade.get_x() + shade.get_width()), bounds, rtol=1e-8)
            assert left < row["effect"] < right and left < 0 < right
            shown += 1
    assert shown == len(rows) == 8
    assert {"confirmed", "range that was claimed"} <= set(labels(picture))
    ticks = [t.get_text() for t in picture.axes[0].get_yticklabels()]
    assert ticks == ["P1  leaky_relu vs baseline", "P1  leaky_relu vs baseline, site_1,\nepoch\N{NO-BREAK SPACE}1"]


def panel_rows(picture: Picture, panel: int) -> list[float]:
    """Heights of the rows of a forest's panel, from the labels of its first column."""
    return list(picture.axes[panel - panel % 2].get_yticks())


def test_verdicts_differ_in_marker_and_colour() -> None:
    for sign in ("marker", "color"):
        assert len({look[sign] for look in forest.VERDICTS.values()}) == 4


def effect(label: str = "a vs b", verdict: str = "confirmed", column: str = "", value: float = 0.1) -> Effect:
    return Effect("difference in val loss", label, column, value, value - 0.01, value + 0.01, (0.05, np.inf), verdict)


def test_rows_with_equal_labels_are_all_drawn() -> None:
    effects = [effect(), effect(verdict="refuted", value=-0.2), effect(column="x"), effect(column="x", value=0.3)]
    picture = drawn(lambda: forest.forest(effects))
    markers = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "None"] for ax in picture.axes]
    np.testing.assert_allclose(markers, [[0.1, -0.2], [0.1, 0.3]])
    assert [t.get_text() for t in picture.axes[0].get_yticklabels()] == ["a vs b"] * 2


def test_untestable_row_is_labelled_without_a_claimed_range() -> None:
    effects = [effect(), effect("c vs d", "not testable", value=np.nan)]
    picture = drawn(lambda: forest.forest(effects))
    (ax,) = picture.axes
    assert [t.get_text() for t in ax.texts] == ["not testable"]
    assert len(ax.patches) == 1
    assert labels(picture) == ["confirmed", "range that was claimed"]
    alone = drawn(lambda: forest.forest(effects[1:]))
    assert not alone.legends and [t.get_text() for t in alone.axes[0].texts] == ["not testable"]


def test_missing_seeds_of_an_effect_are_counted() -> None:
    (picture,) = pictures("claims")
    texts = [[(t.get_text(), t.get_position()[1]) for t in ax.texts] for ax in picture.axes]
    # he_normal loses a run on wave and is compared there only in its second block
    assert texts == [[], [], [("n=7/8", panel_rows(picture, 2)[0])], [], [], []]
    assert said(picture).endswith("; n: the seeds compared, where not all")
    (alone,) = pictures(Figure("f", "", "forest", claims=("P3",)))
    assert not any(ax.texts for ax in alone.axes) and "n:" not in said(alone)
    left, right = picture.axes[2].get_xlim()
    effects = [row["effect"] for row in planted()[2] if row["claim"] == "P2" and row["target"] == "wave"]
    assert all(effect < left + 0.8 * (right - left) for effect in effects)  # the count is next to the marker


def test_missing_seeds_differ_from_nonfinite_ones() -> None:
    stored, lost = planted()[1], config_ids()["he_normal", "wave"]
    few = {k: replace(c, seeds=c.seeds[:6], run_ids=c.run_ids[:6]) if k == lost else c for k, c in stored.items()}
    rows = [dict(row, n=5) if row["claim"] == "P2" and row["target"] == "wave" else row for row in planted()[2]]
    (picture,) = pictures("claims", of=replace(numbers(), configurations=few, verdicts=rows))
    texts = [t.get_text() for ax in picture.axes for t in ax.texts]
    assert texts == ["n=5/8 (1 nonfinite, 2 not run)"]


def test_a_huge_interval_does_not_hide_the_effects() -> None:
    wide = Effect("b", "l", "", 0.1, -1e6, 1e6, (0.05, np.inf), "inconclusive")
    left, right = drawn(lambda: forest.forest([wide])).axes[0].get_xlim()
    assert -1 < left < 0.05 < 0.1 < right < 1
