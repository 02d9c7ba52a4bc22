"""Report of a draw study: estimates and z by hand, verdicts, tables, figures, and the command."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from paths import ROOT
from scipy import stats as scipy_stats
from small_draw_study import study
from tiers import tiered

from relu_study import load, load_cells, run_draws
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.report import cell_report
from relu_study.report.conditions import select
from relu_study.report.figures import cell_figures
from relu_study.report.figures.canvas import DIVERGING
from relu_study.report.report import report
from relu_study.report.tables.cell_tables import cell_tables
from relu_study.runner import execute
from relu_study.runner.callback import Callback
from relu_study.storage.declaration import read_declared_cells
from relu_study.study.outputs import CellFigure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "coins"
    execute.execute(study.with_preset(draws=3000), out, MeasureConfig(), Callback(), {"command": "test", "preset": "default"})
    return out


@pytest.fixture(scope="module")
def cells(folder: Path) -> pd.DataFrame:
    return load_cells(folder)


def row(cells: pd.DataFrame, *where: str) -> pd.Series:
    found = select(cells, where)
    assert len(found) == 1
    return found.iloc[0]


def test_a_share_has_its_wilson_interval_and_the_z_of_its_theory(cells):
    one = row(cells, "experiment=several", "p=0.1", "kind=plain", "throw=2")
    hits, n = round(one["estimate"] * 3000), 3000
    interval = scipy_stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert (one["ci_lo"], one["ci_hi"]) == pytest.approx((interval.low, interval.high), abs=1e-8)
    assert one["z"] == pytest.approx((hits / n - 0.1) / np.sqrt(0.1 * 0.9 / n), abs=1e-6)
    assert (one["theory"], one["upper"], one["draws"], one["n"]) == (0.1, 1.0, n, n)
    assert np.isnan(one["lower"]) and np.isnan(one["median"])


def test_a_mean_has_its_t_interval_over_the_draws_where_it_is_defined(cells):
    one = row(cells, "experiment=several", "p=0.1", "kind=plain", "number=height")
    heads = row(cells, "experiment=several", "p=0.1", "kind=plain", "throw=1")
    assert one["n"] == round(heads["estimate"] * 3000) < one["draws"]
    half = scipy_stats.t.ppf(0.975, one["n"] - 1) * one["std"] / np.sqrt(one["n"])
    assert one["ci_hi"] - one["estimate"] == pytest.approx(half, rel=1e-6)
    assert one["z"] == pytest.approx(one["estimate"] / (one["std"] / np.sqrt(one["n"])), rel=1e-5)
    assert one["q05"] < one["q25"] < one["median"] < one["q75"] < one["q95"]
    assert abs(one["std"] - 1) < 0.2


def test_estimates_of_another_experiment_are_theory_with_error(cells):
    mine = row(cells, "experiment=again", "p=0.5", "throw=3")
    other = row(cells, "experiment=several", "p=0.5", "kind=plain", "throw=3")
    assert mine["theory"] == other["estimate"]
    assert mine["theory_se"] == pytest.approx(other["std"] / np.sqrt(other["n"]), rel=1e-6)
    se = np.sqrt(mine["theory"] * (1 - mine["theory"]) / mine["n"] + mine["theory_se"] ** 2)
    assert mine["z"] == pytest.approx((mine["estimate"] - mine["theory"]) / se, rel=1e-5)


def test_verdicts(folder, cells):
    rows = pd.read_csv(folder / "verdicts.csv").set_index("claim")
    overall = rows[rows["contrast"] == "overall"]["verdict"].to_dict()
    assert overall == {"K1": "confirmed", "K2": "confirmed", "K3": "refuted", "K4": "confirmed"}
    k2 = rows.loc["K2"].iloc[0]
    hits = round(row(cells, "experiment=several", "p=0.1", "kind=plain", "throw=1")["estimate"] * 3000)
    assert k2["p"] == pytest.approx(scipy_stats.binomtest(hits, 3000, 0.2, "less").pvalue, rel=1e-6)
    assert k2["effect"] == pytest.approx(hits / 3000 - 0.2)


def test_tables_have_all_rows_in_csv_and_the_shown_ones_in_print(folder):
    whole = pd.read_csv(folder / "tables" / "main.csv")
    assert list(whole.columns) == ["p", "throw", "measured"] and len(whole) == 16
    printed = (folder / "tables" / "main.md").read_text()
    assert printed.count("| 1 |") == 4 and "all 16 rows" in printed
    assert r"\toprule" in (folder / "tables" / "main.tex").read_text()
    until = pd.read_csv(folder / "tables" / "until.csv")
    assert list(until["heads at 30 %"]) == [">3", ">3"] + [np.nan] * 2 or until["heads at 30 %"].astype(str).tolist() == [
        *(">3", ">3", "nan", "nan")
    ]


def test_last_place_below_a_level_is_interpolated():
    from relu_study.report.tables.cell_tables import _last_below

    layers = pd.Series([2, 3, 10, 50, 200])
    dead = 1 - 0.97 ** (layers - 2)
    exact = 2 + np.log(1 - 0.5) / np.log(0.97)
    assert _last_below(layers, dead, 0.5) == np.floor(exact)
    assert _last_below(layers, dead, 0.999) == ">200"
    assert np.isnan(_last_below(layers, dead + 0.5, 0.4))


@pytest.mark.parametrize(
    "where, said",
    [
        (("thro=1",), "unknown column of cells.csv 'thro'. Did you mean throw"),
        (("throw 1",), "cannot read the condition"),
        (("throw=one",), "the condition 'throw=one' compares with 'one', which is not a number"),
        (("throw>1,2",), "Only = and != take a list"),
        (("kind<plain",), "orders kind, whose values are names"),
    ],
)
def test_invalid_condition_is_refused(cells, where, said):
    with pytest.raises(UserError, match=said):
        select(cells, where)


def test_conditions_take_lists_and_empty_values_equal_nothing():
    frame = pd.DataFrame({"kind": ["a", "b", None, "c"], "width": [1.0, 2.0, np.nan, 3.0]}, index=list("pqrs"))
    expected = {"kind=a,b": "pq", "kind!=a,b": "rs", "kind=a": "p", "kind!=a": "qrs"}
    expected |= {"width=1,2": "pq", "width!=1,2": "rs", "width>=2": "qs", "width!=1": "qrs"}
    assert {text: "".join(select(frame, [text]).index) for text in expected} == expected


def test_figures_show_the_estimates(folder, cells):
    for name in ("board", "lines"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    nothing = CellFigure("nothing", "", "lines", ("again",), cols="throw", number="height")
    assert cell_figures.arranged(nothing, cells, {}) is None


def drawn(folder, cells, name, **changes):
    declaration = read_declared_cells(folder).declaration
    one = replace(next(figure for figure in study.figures if figure.name == name), **changes)
    return cell_figures.arranged(one, cells, declaration.numbers)()


def test_lines_are_labelled_and_may_have_a_logarithmic_axis(folder, cells):
    picture = drawn(folder, cells, "lines", experiments=("several",), by="kind", log_cols=True)
    assert [ax.get_title() for ax in picture.axes] == ["plain", "painted"]
    assert {ax.get_xscale() for ax in picture.axes} == {"log"}
    assert [text.get_text() for text in picture.axes[1].get_xticklabels()][:2] == ["1", "1.5"]
    assert picture.axes[0].get_ylabel().split() == ["throws", "that", "show", "heads"]
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["p 0.1", "p 0.5", "theory"]


def test_a_map_between_two_numbers_has_one_hue_on_either_side_of_zero(folder, cells):
    blank = cells.assign(estimate=cells["estimate"].where(cells["throw"] != 2).mul(40).sub(10))
    picture = drawn(folder, blank, "board", between=(-6.0, 6.0))
    plain = {text.get_text(): patch.get_facecolor() for text, patch in zip(picture.axes[0].texts, picture.axes[0].patches)}
    assert "-" in plain  # undefined values keep their place
    below, above = (DIVERGING(0.0), DIVERGING(1.0))
    shown = {float(text): colour for text, colour in plain.items() if text != "-"}
    assert {colour for value, colour in shown.items() if value > 6} == {above}
    assert min(shown) < -5 and np.allclose(shown[min(shown)], below, atol=0.05)


def test_a_table_may_be_sorted(folder, cells):
    table = replace(study.tables[0], sort="estimate", shown=())
    (made,) = cell_tables(replace(read_declared_cells(folder).declaration, tables=(table,)), cells).values()
    measured = pd.read_csv(io.StringIO(made["csv"]))["measured"]
    assert measured.dropna().is_monotonic_increasing and len(measured) > 4


def test_undeclared_files_are_removed(folder, tmp_path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    (other / "tables" / "gone.csv").write_text("a\n")
    (other / "figures" / "gone.png").write_text("")
    (other / "figures" / "mine.txt").write_text("")
    assert [line.split()[0] for line in report(other)] == ["removed"] * 2
    assert {path.name for path in other.glob("*/*")} - {path.name for path in folder.glob("*/*")} == {"mine.txt"}


def test_page_lists_draws_and_answers(folder):
    page = (folder / "report.md").read_text()
    assert "4 cells" in page and "nothing trained" in page
    assert "**K3: refuted.**" in page and "figures/lines.png" in page


def test_from_python_without_a_folder():
    found = run_draws(study, draws=10)
    assert set(found["draws"]) == {10}


def test_study_kinds_are_not_confused(folder):
    with pytest.raises(UserError, match=r"is a draw study .*load_cells"):
        load(folder)
    with pytest.raises(UserError, match=r"no draws. Read it with relu_study.load"):
        load_cells(ROOT / "results" / "article")


def test_truncated_cells_csv_is_named(folder, tmp_path):
    path = tmp_path / "cells.csv"
    path.write_bytes((folder / "cells.csv").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cells.csv is corrupt \(its last line is truncated\)"):
        cell_report.read_cells(path, read_declared_cells(folder).declaration)


TOLD = [
    (["run", "STUDY", "--seeds", "3"], "--seeds does not apply. Use --max-draws to set its size."),
    (["plan", "STUDY", "--epochs", "3"], "--epochs does not apply"),
    (["run", "STUDY", "--max-draws", "0"], "--max-draws is 0. Give a whole number of at least 1."),
    (["run", "STUDY", "--only", "abc"], "--only, --per-seed and --all-epochs do not apply"),
    (["run", "article", "--max-draws", "3"], "--max-draws does not apply. Use --seeds to set its size."),
]


@pytest.mark.parametrize("words, said", tiered(TOLD, TOLD[0]))
def test_command_names_the_options_that_apply(words, said):
    words = [str(ROOT / "tests" / "support" / "small_draw_study.py") if word == "STUDY" else word for word in words]
    code = f"import sys; sys.argv = ['relu-study', *{words!r}]; from relu_study.cli.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr, done.stderr
