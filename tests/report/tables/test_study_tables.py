"""Declared tables in CSV, Markdown and LaTeX, against known numbers worked out by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from known_results import PROBE_EXAMPLES, dead_flags, noise, planted_arms, planted_folder, planted_study

from relu_study.errors import UserError
from relu_study.report.markup import RenderedTable, format_mean_ci, latex_table, latex_text, markdown_table, markdown_text
from relu_study.report.tables.study_tables import check, tables
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import StudyManifest, read_declared
from relu_study.storage.frames import frames

SEEDS = 8
T = scipy.stats.t.ppf(0.975, SEEDS - 1) / math.sqrt(SEEDS)
IDS = {key: spec.config_id for key, spec in planted_arms(planted_study()).items()}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> StudyManifest:
    return read_declared(planted_folder(tmp_path_factory.getbasetemp() / "tables"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, manifest: StudyManifest) -> dict[str, pd.DataFrame]:
    return frames(collect(tmp_path_factory.getbasetemp() / "tables", manifest), manifest)


@pytest.fixture(scope="module")
def made(manifest: StudyManifest, found: dict[str, pd.DataFrame]) -> dict[str, dict[str, str]]:
    return tables(manifest, found["runs"], found["summary"])


def changed(manifest: StudyManifest, **changes: object) -> StudyManifest:
    """Return a manifest with changed entries of its declaration."""
    return replace(manifest, declaration=replace(manifest.declaration, **changes))


def row_of(markdown: str, *head: str) -> list[str]:
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    (found,) = [row for row in rows if row[: len(head)] == list(head)]
    return found[len(head) :]


def test_table_cells_are_the_means_with_their_half_widths(made: dict[str, dict[str, str]]) -> None:
    text = made["initialisers"]["md"]
    # 1.5 - 5/64 = 1.421875; of dead units 25 of 80, in float32 a little above 0.3125
    assert row_of(text, "wave", "baseline†")[:2] == ["**1.422 ± 0.032**", "0.3 ± 0"]
    dead = [float(np.float32(dead_flags("baseline", "wave", s, "site_1", 4)[-1].mean())) for s in range(SEEDS)]
    assert row_of(text, "wave", "baseline†")[2] == f"{np.mean(dead):.3f} ± {T * np.std(dead, ddof=1):.3f}"
    assert row_of(text, "wave", "lecun_normal")[0] == "1.922 ± 0.032"
    assert row_of(text, "coin_flip", "lecun_normal")[0] == "2.422 ± 0.032"
    assert f"over n = {SEEDS} seeds" in text and f"N = {PROBE_EXAMPLES} probe examples" in text and "†: the baseline." in text
    assert text.startswith("**Initialisers & what they do**")


def test_nonfinite_runs_are_shown_and_their_arm_is_never_the_best(made: dict[str, dict[str, str]]) -> None:
    wave, coin = (row_of(made["initialisers"]["md"], target, "he_normal") for target in ("wave", "coin_flip"))
    assert wave[1] == "**0.2 ± 0**" and coin[1] == "**0.2 ± 0**"
    assert wave[2].endswith(" (n=7/8)") and "**" not in wave[2]  # the fewest dead units, but not of all its runs
    assert coin[2].startswith("**")


def test_best_arm_without_nonfinite_runs_is_bold(manifest: StudyManifest, found: dict[str, pd.DataFrame]) -> None:
    declared = manifest.declaration.tables[1]
    table = replace(declared, arms=("he_normal", "stuck", "baseline"), metrics=("dead_fraction/site_2",))
    text = tables(changed(manifest, tables=(table,)), found["runs"], found["summary"])["shapes"]["md"]
    arms = {target: [arm for arm in table.arms if "**" in row_of(text, target, arm)[0]] for target in ("wave", "coin_flip")}
    assert arms == {"wave": ["baseline"], "coin_flip": ["he_normal"]}  # of he_normal on wave one run is nonfinite


def test_best_follows_the_direction_of_the_metric(made: dict[str, dict[str, str]]) -> None:
    text = made["shapes"]["md"]
    rows = {arm: row_of(text, "wave", arm) for arm in ("shallow", "stuck", "baseline")}
    assert [arm for arm in rows if rows[arm][0].startswith("**")] == ["baseline"]  # accuracy: higher is better
    assert [arm for arm in rows if rows[arm][1].startswith("**")] == ["shallow", "baseline"]  # collapsed: both never
    low, high = (f"{x:.2g}" for x in scipy.stats.binomtest(4, 8).proportion_ci(0.95, "wilson"))
    assert rows["stuck"][1] == f"0.5 [{low}, {high}] ≈"  # four of eight pairs that differ: p is 1/8
    assert rows["shallow"][2] == "-"  # it has no site_2
    order = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| wave")]
    assert order == ["shallow", "stuck", "baseline"]  # as Table.arms says


def test_no_direction_and_all_equal_mean_no_bold(manifest: StudyManifest, found: dict[str, pd.DataFrame]) -> None:
    table = replace(manifest.declaration.tables[0], metrics=("weight_norm", "constant"))
    text = tables(changed(manifest, tables=(table,)), found["runs"], found["summary"])["initialisers"]["md"]
    assert "**" not in text.split("\n", 1)[1] and "Bold" not in text


def test_a_table_without_a_value_says_nothing_of_tests(manifest: StudyManifest, found: dict[str, pd.DataFrame]) -> None:
    for metrics, tested in ((("val_loss@0", "val_loss"), True), (("val_loss@77",), False)):
        table = replace(manifest.declaration.tables[0], metrics=metrics, baseline=None)
        text = tables(changed(manifest, tables=(table,)), found["runs"], found["summary"])["initialisers"]["md"]
        assert ("Columns at an epoch of their own are not tested." in text) == tested


def test_csv_tables_have_separate_means_and_intervals(made: dict[str, dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(made["initialisers"]["csv"])
    frame = pd.read_csv(tmp_path / "t.csv").set_index(["target", "arm"])
    row = frame.loc["wave", "he_normal"]
    left = [1.75 - 5 / 64 + noise(s, SEEDS) for s in range(SEEDS) if s != 1]
    lo, hi = scipy.stats.t.interval(0.95, 6, np.mean(left), scipy.stats.sem(left))
    numbers = row[["val_loss mean", "val_loss ci_lo", "val_loss ci_hi"]].tolist()
    assert numbers == pytest.approx([np.mean(left), lo, hi], rel=1e-8)
    assert (row["n"], row["val_loss n_finite"], row["probe_examples"]) == (8, 7, PROBE_EXAMPLES)
    assert row["config_id"] == IDS["he_normal", "wave"]
    assert frame.loc[("wave", "baseline"), "dead_fraction/site_1@0 mean"] == pytest.approx(0.3, rel=1e-6)


def test_a_tuned_table_chooses_on_even_seeds_and_reports_the_odd_ones(made: dict[str, dict[str, str]]) -> None:
    text = made["tuned"]["md"]
    # relu: 1.5 + 1/4 at rate 0.001, and at 0.01 1.5 + 8/4 - 2 on even but + 4 on odd seeds: chosen, then seen through
    odd = [1.5 + 8 / 4 + 4 - 5 / 64 + noise(s, SEEDS) for s in (1, 3, 5, 7)]
    half = scipy.stats.t.ppf(0.975, 3) * scipy.stats.sem(odd)
    # Four pairs tell nothing apart.
    assert row_of(text, "wave", "relu, rate=0.01")[:2] == ["0.01", f"{np.mean(odd):.3f} ± {half:.3f} ≈"]
    selu = [1.5 + 9 / 4 - 5 / 64 + noise(s, SEEDS) for s in (1, 3, 5, 7)]
    assert row_of(text, "wave", "selu, rate=0.001")[:2] == ["0.001", f"**{np.mean(selu):.3f} ± {half:.3f}**"]
    assert len([line for line in text.splitlines() if line.startswith("| wave")]) == 2
    assert "over n = 4 seeds, the odd ones; learning rate chosen by validation loss on the even ones" in text


def test_missing_runs_are_counted_in_the_cell(tmp_path: Path) -> None:
    lost = planted_arms(planted_study())["baseline", "wave"]
    planted_folder(tmp_path, left_out=tuple(lost.replace(seed=s).run_id for s in (0, 6)))
    manifest = read_declared(tmp_path)
    frame = frames(collect(tmp_path, manifest), manifest)
    made = tables(manifest, frame["runs"], frame["summary"])["initialisers"]["md"]
    half = scipy.stats.t.ppf(0.975, 5) * scipy.stats.sem([noise(s, SEEDS) for s in (1, 2, 3, 4, 5, 7)])
    assert f"| wave | baseline† | 1.424 ± {half:.3f} n=6/8 (2 not run) | 0.3 ± 0 n=6/8 (2 not run) |" in made


def test_empty_cells_name_their_reason_and_those_of_older_folders_keep_their_bytes(
    manifest: StudyManifest, found: dict[str, pd.DataFrame]
) -> None:
    newer = replace(manifest, provenance={**manifest.provenance, "measured": []})
    old, new = (tables(m, found["runs"], found["summary"])["shapes"]["md"] for m in (manifest, newer))
    assert row_of(old, "wave", "shallow")[-1] == "-" and row_of(new, "wave", "shallow")[-1] == "- (no site_2)"
    assert new.replace("- (no site_2)", "-") == old


def test_an_arm_without_any_stored_run_keeps_its_row(tmp_path: Path) -> None:
    lost = planted_arms(planted_study())["shallow", "wave"]
    planted_folder(tmp_path, left_out=tuple(lost.replace(seed=s).run_id for s in range(SEEDS)))
    manifest = read_declared(tmp_path)
    frame = frames(collect(tmp_path, manifest), manifest)
    text = tables(manifest, frame["runs"], frame["summary"])["shapes"]["md"]
    assert row_of(text, "wave", "shallow") == ["- n=0/8 (8 not run)"] * 3
    assert row_of(text, "coin_flip", "shallow")[2] == "-"


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_gives_means_without_intervals(tmp_path: Path, seeds: int) -> None:
    planted_folder(tmp_path, seeds=seeds)
    manifest = read_declared(tmp_path)
    frame = frames(collect(tmp_path, manifest), manifest)
    made = tables(manifest, frame["runs"], frame["summary"])
    value = row_of(made["initialisers"]["md"], "wave", "lecun_normal")[0]
    assert value == ("1.92 ≈" if seeds == 1 else f"1.922 ± {scipy.stats.t.ppf(0.975, 1) / 128:.3f} ≈")
    assert row_of(made["tuned"]["md"], "wave", "selu, rate=0.001")[1] == ("-" if seeds == 1 else "**3.68**")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ("val_los",)}, r"unknown metric of table initialisers 'val_los'. Did you mean val_loss"),
        (
            {"metrics": ("val_loss/site_1",)},
            "initialisers is measured for the whole network only, not for site_1",
        ),
        ({"metrics": ()}, "table initialisers names no metrics. Name some, e.g. metrics="),
        ({"metrics": ("val_loss@soon",)}, "val_loss@soon of table initialisers has the epoch 'soon'. Use 'last' or a number"),
        ({"epoch": "min"}, "has the epoch 'min'. Use 'last' or a number"),
        ({"arms": ("he_norm",)}, "unknown arm of table initialisers 'he_norm'. Did you mean he_normal"),
        ({"baseline": "bseline"}, "Did you mean baseline"),
        ({"tune": "learning_rat"}, "Did you mean learning_rate"),
        ({"tune": "learning_rate"}, "tunes learning_rate and so reports the last epoch"),
    ],
)
def test_invalid_table_is_refused_by_name(manifest: StudyManifest, change: dict, message: str) -> None:
    check(manifest.declaration)
    first, *others = manifest.declaration.tables
    with pytest.raises(UserError, match=message):
        check(changed(manifest, tables=(replace(first, **change), *others)).declaration)


def test_arm_left_out_by_a_preset_is_no_error(manifest: StudyManifest, found: dict[str, pd.DataFrame]) -> None:
    entries = tuple(e for e in manifest.declaration.configurations if e.experiment not in ("shapes", "tuned"))
    made = tables(changed(manifest, skip=("shapes",), configurations=entries), found["runs"], found["summary"])
    assert sorted(made) == ["initialisers", "shapes"]  # of shapes the baseline is left, of tuned nothing
    assert "shallow" not in made["shapes"]["md"]


# ------------------------------------------------------------------------------------------ typesetting


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.31234, 0.0432, "0.312 ± 0.043"),
        (12.3456, 1.26, "12.3 ± 1.3"),
        (1234.5, 56.7, "1234 ± 57"),
        (-0.5, 0.25, "-0.50 ± 0.25"),
        (0.0625, 0.0, "0.0625 ± 0"),
        (0.0, 0.0, "0 ± 0"),
        (0.25, math.nan, "0.25"),
        (1.2e-5, 1.5e-6, "(1.20 ± 0.15)e-05"),
        (3.21e7, 4.3e5, "(3.210 ± 0.043)e+07"),
        (0.0, 2e-5, "(0.0 ± 2.0)e-05"),
    ],
)
def test_measured_shows_two_digits_of_the_half_width(mean: float, half: float, text: str) -> None:
    assert format_mean_ci(mean, half) == text


def test_latex_escapes_names_and_sets_numbers() -> None:
    assert (
        latex_text(r"a_b & 50% #1 {x} ~^\ $") == r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )
    assert latex_text("-0.50 ± 0.25") == r"$-$0.50 $\pm$ 0.25"
    assert latex_text("(1.20 ± 0.15)e-05") == r"(1.20 $\pm$ 0.15)$\times 10^{-5}$"
    assert latex_text("(-1.2 ± 0.1)e+07") == r"($-$1.2 $\pm$ 0.1)$\times 10^{7}$"
    assert latex_text("random-normal 0.05") == "random-normal 0.05"
    assert latex_text("β λ Δ ≤ \N{MINUS SIGN}1, naïve") == r"$\beta$ $\lambda$ $\Delta$ $\le$ -1, naïve"
    assert latex_text("0.50 ± 0.10 ≈•") == r"0.50 $\pm$ 0.10$^{\approx}$$^{\bullet}$"


def test_latex_tables_are_booktabs_with_every_special_character_escaped(made: dict[str, dict[str, str]]) -> None:
    for name, texts in made.items():
        text = texts["tex"]
        assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
        assert rf"\label{{tab:{name}}}" in text and text.count("{") == text.count("}")
        bare = re.sub(r"\\[&%$#_{}]|\$[^$]*\$|\\\\", "", text.replace(rf"\label{{tab:{name}}}", ""))
        assert not re.search(r"[%#_$^~]", bare), bare
        body = [line for line in re.sub(r"\\&", "", text).splitlines() if line.endswith(r"\\")]
        assert len({line.count("&") for line in body}) == 1 and len(body) > 4
    text = made["initialisers"]["tex"]
    assert r"\caption{Initialisers \& what they do. Mean $\pm$ half width" in text
    assert r"wave & baseline$^\dagger$ & \textbf{1.422 $\pm$ 0.032} & 0.3 $\pm$ 0" in text
    assert r"coin\_flip & he\_normal & 2.172 $\pm$ 0.032" in text


def test_names_stay_names_in_both_renderings() -> None:
    shown = RenderedTable("50 % | _x_", ["a_b", "n|m"], [["*p* <b> [l](x)", "1 ± 0"]], {(0, 1)}, 1, "")
    assert markdown_table(shown).splitlines() == [
        r"**50 % \| \_x\_**",
        "",
        r"| a_b | n\|m |",
        "| --- | ---: |",
        r"| \*p\* \<b> [l\](x) | **1 ± 0** |",
        "",
        "",
    ]
    assert markdown_text("site_1 of a_b") == "site_1 of a_b"
    text = latex_table(shown, "tab:x")
    assert r"*p* $<$b$>$ [l](x) & \textbf{1 $\pm$ 0} \\" in text and r"\caption{50 \% $|$ \_x\_." in text
