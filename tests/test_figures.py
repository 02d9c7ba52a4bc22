"""The figures: the numbers they show, the words around them, that they can be read, and the same bytes each time."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Picture
from matplotlib.text import Text
from planted import planted_folder, planted_manifest, planted_study
from scipy import stats as scipy_stats

from relu_study import drawing, figures, frames, store, verdicts
from relu_study.drawing import Band, Effect, Row
from relu_study.study import Figure

WAVE, COIN = "target: wave", "target: coin_flip"
Folder = tuple[dict[str, Any], dict[str, store.Configuration], list[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = planted_folder(tmp_path_factory.mktemp("figures"))
    manifest = store.read_manifest(path)
    configurations = store.collect(path, manifest)
    pairs = {(e["arm"], e["spec"]["target"]): e["config_id"] for e in manifest["declaration"]["configurations"]}
    stored = {pair: configurations[config_id] for pair, config_id in pairs.items()}
    rows = verdicts.answer(manifest["declaration"]["claims"], stored, manifest["declaration"]["targets"])
    return manifest, configurations, rows, path


@pytest.fixture(scope="module")
def written(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of the planted figures, drawn by a reader with settings of their own."""
    manifest, configurations, rows, _ = folder
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "lines.linewidth": 9, "axes.facecolor": "red"}):
        paths = figures.draw(manifest, configurations, rows, tmp_path_factory.mktemp("written"))
        assert matplotlib.rcParams["font.size"] == 20
    return paths


@pytest.fixture
def pictures(folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Picture]]:
    """The pictures that `draw` makes of the planted folder: of its own figures, by name, or of others declared on it."""

    def caught(*declared: Figure | str, **changes: Any) -> list[Picture]:
        made: list[Picture] = []

        def render(draw: Callable[[], Picture]) -> dict[str, bytes]:
            made.append(drawn(draw))
            return {"png": b""}

        monkeypatch.setattr(drawing, "render", render)
        manifest, configurations, rows, _ = folder
        own = {figure["name"]: figure for figure in manifest["declaration"]["figures"]}
        chosen = [own[figure] if isinstance(figure, str) else vars(figure) for figure in declared]
        declaration = manifest["declaration"] | {"figures": chosen} | changes
        figures.draw(manifest | {"declaration": declaration}, configurations, rows, tmp_path)
        return made

    return caught


def drawn(draw: Callable[[], Picture]) -> Picture:
    """A picture as it is rendered: in our style, and laid out."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(drawing.STYLE)
        picture = draw()
        FigureCanvasAgg(picture).print_png(io.BytesIO())
    return picture


def labels(picture: Picture) -> list[str]:
    return [text.get_text() for legend in picture.legends for text in legend.get_texts()]


def line_of(picture: Picture, panel: int, arm: str) -> Any:
    """The line of an arm in a panel, found as a reader finds it: by the looks of its entry in the legend."""
    (entry,) = (h for h in picture.legends[0].legend_handles if h.get_label() == arm)
    (line,) = (x for x in picture.axes[panel].lines if looks(x) == looks(entry))
    return line


def looks(line: Any) -> tuple[str, str]:
    return to_hex(line.get_color()), str(line._dash_pattern)  # get_linestyle() says "--" of any dashes


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


def test_curves_show_the_mean_and_the_t_interval_of_each_arm_on_each_target(folder: Folder, pictures: Any) -> None:
    manifest, configurations, _, _ = folder
    (picture,) = pictures("initialisers")
    assert [ax.get_title() for ax in picture.axes] == [WAVE, COIN, "", ""]
    assert labels(picture) == ["baseline", "he_normal", "lecun_normal"]
    assert [ax.get_xlabel() for ax in picture.axes] == ["", "", "epoch", "epoch"]
    ids = {(e["arm"], e["spec"]["target"]): e["config_id"] for e in manifest["declaration"]["configurations"]}
    panels = itertools.product(("dead_fraction/all", "val_loss/all"), ("wave", "coin_flip"))
    for panel, (name, target) in enumerate(panels):
        for arm in labels(picture):
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


def test_a_share_of_runs_has_a_wilson_interval(folder: Folder, pictures: Any) -> None:
    picture = pictures(Figure("f", "", "curves", ("shapes",), metrics=("collapsed",)))[0]
    line = line_of(picture, 0, "stuck")
    np.testing.assert_array_equal(line.get_ydata(), [0, 0, 0.5, 0.5])
    low, high = edges(picture.axes[0], line.get_color())
    for k, lo, hi in zip((0, 0, 4, 4), low, high, strict=True):
        ci = scipy_stats.binomtest(k, 8).proportion_ci(0.95, "wilson")
        np.testing.assert_allclose((lo, hi), (ci.low, ci.high), atol=1e-8)
    assert picture.axes[0].get_ylabel() == "collapsed\n(share of runs)\nN = 512 probe examples"


def test_survival_steps_down_as_the_planted_units_die(pictures: Any) -> None:
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
    assert "bootstrap" in picture.legends[0].get_title().get_text()


def test_metrics_without_values_leave_no_empty_row_and_no_empty_figure(pictures: Any) -> None:
    empty = Figure("e", "", "curves", ("initialisers",), metrics=("saturated_fraction",))
    absent = Figure("a", "", "curves", ("initialisers",), metrics=("no_such_metric",))
    nobody = Figure("n", "", "forest", claims=("P9",))
    mixed = Figure("m", "", "curves", ("activations",), metrics=("saturated_fraction", "no_such_metric", "val_loss"))
    made = pictures(empty, absent, nobody, mixed)
    assert len(made) == 1
    assert [ax.get_ylabel() for ax in made[0].axes[::2]] == ["saturated fraction,\nall sites\nN = 512 probe examples", "val loss"]
    assert len(made[0].axes[0].lines) == 1  # tanh alone can saturate


def test_an_arm_absent_on_one_target_leaves_a_panel_that_says_so(folder: Folder, pictures: Any) -> None:
    declared = folder[0]["declaration"]["configurations"]
    kept = [e for e in declared if e["arm"] != "tanh" or e["spec"]["target"] == "wave"]
    picture = pictures(Figure("f", "", "curves", ("activations",), metrics=("saturated_fraction",)), configurations=kept)[0]
    assert [[t.get_text() for t in ax.texts] for ax in picture.axes] == [[], ["no values"]]


def test_a_figure_takes_its_arms_in_its_own_order_and_its_targets_from_the_declaration(pictures: Any) -> None:
    chosen = Figure("f", "", "curves", ("initialisers", "activations"), arms=("tanh", "baseline"), metrics=("grad_norm/site_2",))
    picture = pictures(chosen)[0]
    assert labels(picture) == ["tanh", "baseline"]
    assert len(picture.axes[0].lines) == 2
    assert picture.axes[0].get_ylabel() == "grad norm, site_2"
    every = pictures(Figure("f", "", "curves", metrics=("val_loss",)))[0]
    assert len(labels(every)) == 11
    nameless = pictures(Figure("f", "", "curves", ("shapes",), metrics=("val_loss",)), targets=[])[0]
    assert {ax.get_title() for ax in nameless.axes} == {""}


def test_units_stand_on_the_axes_unless_the_name_says_them(folder: Folder, pictures: Any) -> None:
    known = folder[0]["declaration"]["metrics"]
    units = {"val_loss": "loss", "grad_norm": "L2 norm", "dead_fraction": "fraction"}
    metrics = {name: about | {"unit": units.get(name, "")} for name, about in known.items()}
    declared = Figure("f", "", "curves", ("shapes",), metrics=tuple(units)), Figure("g", "", "forest", claims=("P1", "P3"))
    made = pictures(*declared, metrics=metrics)
    assert [ax.get_ylabel() for ax in made[0].axes[::2]] == [
        "val loss",
        "grad norm\n(L2 norm)",
        "dead fraction, all sites\nN = 512 probe examples",
    ]
    assert "difference in collapsed (share of runs)" in {ax.get_xlabel() for ax in made[1].axes}


def test_a_forest_shows_each_row_with_its_interval_its_margin_and_its_verdict(folder: Folder, pictures: Any) -> None:
    rows = [row for row in folder[2] if row["contrast"] != "overall"]
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
            assert marker.get_marker() == drawing.VERDICTS[row["verdict"]]["marker"]
            assert interval.get_color() == marker.get_color() == drawing.VERDICTS[row["verdict"]]["color"]
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
    """The heights at which the rows of a forest's panel stand: those of the labels in its first column."""
    return list(picture.axes[panel - panel % 2].get_yticks())


def test_markers_and_colours_both_tell_the_verdicts_apart() -> None:
    for sign in ("marker", "color"):
        assert len({look[sign] for look in drawing.VERDICTS.values()}) == 4


def effect(label: str = "a vs b", verdict: str = "confirmed", column: str = "", value: float = 0.1) -> Effect:
    return Effect("difference in val loss", label, column, value, value - 0.01, value + 0.01, (0.05, np.inf), verdict)


def test_rows_that_read_the_same_are_all_drawn() -> None:
    effects = [effect(), effect(verdict="refuted", value=-0.2), effect(column="x"), effect(column="x", value=0.3)]
    picture = drawn(lambda: drawing.forest(effects))
    markers = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "None"] for ax in picture.axes]
    np.testing.assert_allclose(markers, [[0.1, -0.2], [0.1, 0.3]])
    assert [t.get_text() for t in picture.axes[0].get_yticklabels()] == ["a vs b"] * 2


def test_a_row_that_cannot_be_tested_says_so_and_claims_nothing() -> None:
    effects = [effect(), effect("c vs d", "not testable", value=np.nan)]
    picture = drawn(lambda: drawing.forest(effects))
    (ax,) = picture.axes
    assert [t.get_text() for t in ax.texts] == ["not testable"]
    assert len(ax.patches) == 1
    assert labels(picture) == ["confirmed", "range that was claimed"]
    alone = drawn(lambda: drawing.forest(effects[1:]))
    assert not alone.legends and [t.get_text() for t in alone.axes[0].texts] == ["not testable"]


def test_a_huge_interval_does_not_hide_the_effects() -> None:
    wide = Effect("b", "l", "", 0.1, -1e6, 1e6, (0.05, np.inf), "inconclusive")
    left, right = drawn(lambda: drawing.forest([wide])).axes[0].get_xlim()
    assert -1 < left < 0.05 < 0.1 < right < 1
    band = Band(np.arange(3.0), np.array([1.0, 2.0, 3.0]), np.full(3, -1e6), np.full(3, 1e6), 2, 10)
    low, high = drawn(lambda: drawing.curves([Row("y", [{"a": band}])], [""], ["a"], "t")).axes[0].get_ylim()
    assert -10 < low < 1 and 3 < high < 10


def flat(value: float, runs: int = 4) -> Band:
    values = np.full(3, float(value))
    return Band(np.arange(3.0), values, values, values, runs, 100)


def test_exact_zeros_have_a_place_on_a_logarithmic_axis() -> None:
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


def test_fractions_are_never_drawn_on_a_logarithmic_axis(pictures: Any) -> None:
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


def test_of_two_lines_that_coincide_both_can_be_seen() -> None:
    picture = drawn(lambda: drawing.curves([Row("y", [{"a": flat(1), "b": flat(1), "c": flat(1)}])], [""], ["b", "c", "a"], "t"))
    lines = [line_of(picture, 0, arm) for arm in ("b", "c", "a")]
    assert [line.is_dashed() for line in lines] == [False, True, True]
    assert lines[0].get_zorder() < lines[1].get_zorder() < lines[2].get_zorder()


def crowded() -> list[Callable[[], Picture]]:
    """Pictures as full as the issue allows: 12 arms, 3 targets, 26 epochs, log and linear; a forest of 30 rows on 3 targets."""
    rng = np.random.default_rng(0)
    arms = [*(f"arm number {i}" for i in range(9)), "net B, selu, AlphaDropout", "U(-1, 0) weights", "relu"]
    names = ["certified always on fraction,\nsite_1\nN = 8,192 probe examples", "grad norm, site_1\n(L2 norm)", "val loss"]

    def band(i: int, log: bool) -> Band:
        mean = 10 ** (-rng.random(26) * i) if log else 1e-4 * rng.random(26).cumsum() * i
        return Band(np.arange(26.0), mean, mean * 0.8, mean * 1.2, 16, 8192)

    rows = [
        Row(name, [{arm: band(i, k == 1) for i, arm in enumerate(arms)} for _ in range(3)], log=k == 1)
        for k, name in enumerate(names)
    ]
    rows.append(Row("post mean", [rows[2].cells[0], {}, rows[2].cells[0]]))
    shares = [{arm: replace(band(1, False), probe_examples=140_000) for arm in arms[:2]}]
    about = {"unit": "fraction", "low": 0, "high": 1}
    shown = ["dead_fraction", "certified_dead_fraction", "revived_fraction", "certified_revived_fraction"]
    many = [figures._row(f"{name}/all", shares, False, {name: about}) for name in shown]
    columns = [WAVE, "target: sum", COIN]
    contrast = "400k rows, equal updates vs 200k rows, equal updates with a dead site, above the floor"
    effects = [
        Effect(
            f"difference in {('dead fraction', 'val loss (loss)')[k % 2]}", f"C{k}  {contrast[: 12 + 2 * k]}", column,
            x := rng.normal() if k % 4 < 3 else np.nan, x - 0.3, x + 0.2, (0.05, np.inf), list(drawing.VERDICTS)[k % 4],
        )
        for k in range(30)
        for column in columns
    ]  # fmt: skip
    return [
        lambda: drawing.curves(rows, columns, arms, "mean and 95 % interval over"),
        lambda: drawing.curves([Row("val loss", rows[2].cells[:1])], [WAVE], arms, "mean and 95 % interval over"),
        lambda: drawing.forest(effects),
        lambda: drawing.forest([e for e in effects if e.column == WAVE]),
        lambda: drawing.forest(effects[:1]),
        lambda: drawing.curves(many, [WAVE], arms[:2], "mean and 95 % interval over"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_no_text_is_small_clipped_or_on_top_of_another(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[Text, None] = {}  # what is drawn, and not the labels of ticks beyond an axis
    draw = Text.draw
    monkeypatch.setattr(Text, "draw", lambda self, renderer: (shown.setdefault(self), draw(self, renderer))[1])
    picture = drawn(crowded()[number])
    assert picture.get_figwidth() == 7
    boxes = {text: text.get_window_extent() for text in shown if text.get_text().strip()}
    assert len(boxes) > 5
    for text, box in boxes.items():
        assert text.get_size() >= 8
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= picture.bbox.x1 + 1 and box.y1 <= picture.bbox.y1 + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) < 2, (one, other)  # pixels


def test_the_legend_says_how_many_runs(pictures: Any) -> None:
    (picture,) = pictures(Figure("f", "", "curves", ("shapes",), metrics=("val_loss",)))
    assert picture.legends[0].get_title().get_text() == "mean and 95 % interval over 8 runs"
    for counts, words in (((1, 1), "over 1 run"), ((3, 16), "over 3 to 16 runs")):
        row = Row("y", [{"a": flat(1, counts[0]), "b": flat(2, counts[1])}])
        picture = drawn(lambda row=row: drawing.curves([row], [""], ["a", "b"], "over"))
        assert picture.legends[0].get_title().get_text() == words


def test_the_bytes_depend_on_the_numbers_alone(folder: Folder, written: list[Path], tmp_path: Path) -> None:
    manifest, configurations, rows, _ = folder

    csv = {
        "summary": frames.summary_frame(configurations, manifest, None),
        "survival": frames.survival_frame(configurations),
    }
    for name, frame in csv.items():
        (tmp_path / f"{name}.csv").write_text(frames.csv_text(frame))
        csv[name] = frames.read_csv(tmp_path / f"{name}.csv")
    printed = [{k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    read = figures.draw_tabulated(manifest, csv["summary"], csv["survival"], printed, tmp_path)
    assert [(path.name, path.read_bytes()) for path in read] == [(path.name, path.read_bytes()) for path in written]


def test_no_date_and_no_version_is_written() -> None:
    files = drawing.render(crowded()[4])
    assert not re.search(rb"Software|Creation|tIME|matplotlib", files["png"], re.IGNORECASE)
    assert not re.search(r"<dc:(date|creator)>|matplotlib v", files["svg"].decode(), re.IGNORECASE)


def test_a_dollar_sign_in_a_label_is_a_dollar_sign() -> None:
    arm = "from $\\frac{ to 2$"  # as mathematics this is an error
    made = drawing.render(lambda: drawing.curves([Row("y", [{arm: flat(1)}])], [""], [arm], "t"))
    assert arm in made["svg"].decode()


def test_a_study_without_metrics_or_verdicts_draws_nothing(folder: Folder, tmp_path: Path) -> None:
    manifest, _, _, _ = folder
    assert figures.draw(manifest, {}, [], tmp_path) == []
    bare = planted_manifest(planted_study())
    bare["declaration"]["figures"] = []
    assert figures.draw(bare, {}, [], tmp_path) == []


def test_drawing_needs_neither_jax_nor_a_display() -> None:
    code = "import sys, relu_study.figures, relu_study.events; print({'jax', 'flax', 'matplotlib.pyplot'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
