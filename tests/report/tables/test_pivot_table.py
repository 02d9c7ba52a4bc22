"""Pivot tables with any factors as rows and columns, against known numbers, from the command line and Python."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from known_results import PROBE_EXAMPLES, noise, planted_folder

import relu_study
from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.report.tables.pivot_table import compare, table

SEEDS = 8
HALF = scipy.stats.t.ppf(0.975, SEEDS - 1) * scipy.stats.sem([noise(s, SEEDS) for s in range(SEEDS)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("pivot"), figures=False)
    report(path)
    return path


@pytest.fixture(scope="module")
def clone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clone") / "results"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("raw", "tensorboard"))
    return path


def rows_of(markdown: str) -> dict[str, list[str]]:
    found = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in found}


def test_rows_by_columns_have_the_known_means(folder: Path) -> None:
    text = table(folder, "activation", "target", "val_loss", where=["experiment=activations"])
    found = rows_of(text)
    assert list(found) == ["activation", "---", "relu", "leaky_relu", "tanh"] and found["activation"] == ["wave", "coin_flip"]
    for number, arm in ((0, "relu"), (3, "leaky_relu"), (4, "tanh")):
        for target, cell in enumerate(found[arm]):
            mean = 1.5 + number / 4 + target / 2 - 5 / 64
            assert cell.strip("* ≈") == f"{mean:.3f} ± {HALF:.3f}"
    assert found["relu"][0].startswith("**")
    assert "**Val loss by activation and target.**" in text and f"over n = {SEEDS} seeds" in text
    assert "Runs with experiment=activations." in text and "Lower is better: val loss." in text


def test_other_factors_are_fixed_and_named(folder: Path) -> None:
    text = table(folder, ["activation"], ["target"], "dead_fraction", site="site_1")
    assert "Held fixed: depth 2, initializer normal_005, learning rate 0.001, bias shift 0." in text
    found = rows_of(text)
    # selu was trained from another initialiser only.
    assert found["selu"] == ["- (no such configuration)"] * 2 and "-" not in found["tanh"]
    assert f"N = {PROBE_EXAMPLES} probe examples" in text


def test_a_nonfinite_run_is_counted_and_never_shown_as_a_number(folder: Path) -> None:
    text = table(folder, "initializer", "target", "dead_fraction", where="activation=relu")
    wave, coin = rows_of(text)["he_normal"]
    assert wave.endswith(" (n=7/8)") and "**" not in wave and "n=" not in coin
    assert "n=k/m: k of m runs are finite; such cells are not ranked." in text and "nan" not in text.lower()


def test_several_metrics_arms_as_rows_and_a_baseline(folder: Path) -> None:
    text = table(folder, "arm", metric=["val_loss", "accuracy", "collapsed"], where="target=wave", baseline="stuck")
    found = rows_of(text)
    assert found["arm"] == ["val loss", "accuracy", "collapsed"]
    assert "stuck†" in found and "†: the baseline." in text and "Higher is better: accuracy." in text
    assert found["baseline"][0].startswith("**1.422") and found["baseline"][1].startswith("**6.578")
    low, high = (f"{x:.2g}" for x in scipy.stats.binomtest(4, 8).proportion_ci(0.95, "wilson"))
    assert found["stuck†"][2].startswith(f"0.5 [{low}, {high}]")


def test_chosen_epoch_needs_the_tiles(folder: Path, clone: Path) -> None:
    found = rows_of(table(folder, "arm", metric="val_loss", epoch=1, where="target=wave"))
    assert found["lecun_normal"][0].strip("* ≈") == f"{1.5 + 2 / 4 - 1 / 64:.3f} ± {HALF:.3f}"
    assert rows_of(table(clone, "arm", metric="val_loss", where="target=wave")) == rows_of(
        table(folder, "arm", metric="val_loss", where="target=wave")
    )
    known = rows_of(table(clone, "arm", metric="val_loss", epoch=1, where="target=wave"))  # from summary.csv
    assert {arm: cells[0].strip("* ≈") for arm, cells in known.items()} == {
        arm: cells[0].strip("* ≈") for arm, cells in found.items()
    }
    assert "Nothing is compared" in table(clone, "arm", epoch=1, where="target=wave")
    with pytest.raises(UserError, match=r"at epoch 1 a condition on seed needs .*raw"):
        table(clone, "arm", epoch=1, where=["target=wave", "seed<3"])
    with pytest.raises(UserError, match=r"to compare run by run"):
        compare(clone, "arm", epoch=1, where="target=wave")
    for where in (folder, clone):
        with pytest.raises(UserError, match=r"has no epoch 3. It has the epochs 0, 1, 2, 5"):
            table(where, "arm", epoch=3, where="target=wave")


def test_without_columns_the_targets_are_the_columns(folder: Path) -> None:
    assert table(folder, "arm") == table(folder, "arm", "target")
    assert table(folder, "arm", metric=["dead_fraction/site_1", "val_loss"]).splitlines()[2].count("site_1") == 2


def test_conditions_on_runs_are_counted_in_n(folder: Path) -> None:
    text = table(folder, "arm", metric="val_loss", where=["target=wave", "seed<3"])
    assert "over n = 3 seeds" in text and rows_of(text)["he_normal"][0].endswith("(n=2/3)")
    some = table(folder, "arm", metric="val_loss", where=["target=wave", "arm=baseline", "val_loss<1.4"])
    kept = [1.5 - 5 / 64 + noise(s, SEEDS) for s in range(SEEDS) if 1.5 - 5 / 64 + noise(s, SEEDS) < 1.4]
    assert f"over n = {len(kept)} seeds" in some and f"{np.mean(kept):.3f}" in rows_of(some)["baseline"][0]


def test_csv_has_a_line_a_cell_with_its_comparison(folder: Path) -> None:
    text = table(folder, "arm", "target", "val_loss", baseline="baseline", format="csv", where="experiment=initialisers")
    frame = pd.read_csv(io.StringIO(text)).set_index(["arm", "target"])
    assert len(frame) == 6 and set(frame["n"]) == {SEEDS}
    row = frame.loc["he_normal", "wave"]
    left = [1.75 - 5 / 64 + noise(s, SEEDS) for s in range(SEEDS) if s != 1]
    assert (row["n_finite"], row["pairs"], row["difference"], row["improvement"]) == (7, 7, 0.25, 0.0)
    assert (row["mean"], row["p"]) == pytest.approx((np.mean(left), 2 * 2.0**-7))
    others = [frame.loc[arm, target]["p"] for arm in ("he_normal", "lecun_normal") for target in ("wave", "coin_flip")]
    # Holm: two of 2^-7 with two of 2^-6.
    assert sorted(others) == [2.0**-7, 2.0**-7, 2.0**-7, 2.0**-6]
    assert frame.loc["he_normal", "wave"]["p_corrected"] == pytest.approx(4 * 2.0**-7)
    assert math.isnan(frame.loc["baseline", "wave"]["p"])


def test_compare_pairs_by_seed(folder: Path) -> None:
    where = ["target=coin_flip", "experiment=initialisers"]
    pairs = compare(folder, "arm", "val_loss", where=where)
    assert list(zip(pairs["name"], pairs["against"], strict=True)) == [
        ("baseline", "he_normal"), ("baseline", "lecun_normal"), ("he_normal", "lecun_normal"),
    ]  # fmt: skip
    assert pairs["difference"].tolist() == [-0.25, -0.5, -0.25] and pairs["improvement"].tolist() == [1, 1, 1]
    assert (pairs["p_corrected"] == 2.0**-7).all()  # Benjamini and Hochberg leave equal p as they are
    against = compare(folder, "arm", "val_loss", where=where, baseline="baseline")
    assert against["difference"].tolist() == [0.25, 0.5] and (against["p_corrected"] == 2 * 2.0**-7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "activaton"}, r"unknown factor among the rows 'activaton'. Did you mean activation"),
        ({"cols": "targt"}, r"unknown factor among the columns 'targt'. Did you mean target"),
        ({"rows": "seed"}, r"a cell is a mean over seeds"),
        ({"rows": "target"}, r"target occurs twice"),
        ({"rows": ()}, r"at least one factor as rows"),
        ({"metric": []}, r"at least one factor as rows and one metric"),
        ({"metric": "val_los"}, r"unknown metric 'val_los'. Did you mean val_loss"),
        ({"metric": "dead_fraction", "site": "site_7"}, r"unknown site of dead_fraction 'site_7'. Did you mean site_"),
        ({"site": "site_7"}, r"val_loss is measured for the whole network only, not for site_7"),
        ({"epoch": "soon"}, r"a table has the epoch 'soon'. Use 'last' or a number"),
        ({"baseline": "rel"}, r"unknown baseline among the rows \(activation\) 'rel'. Did you mean relu"),
        ({"format": "tex"}, r"unknown format 'tex'. Did you mean latex"),
        ({"where": "activation=gelu"}, r"unknown value of activation 'gelu'"),
        (
            {"where": ["activation=tanh", "depth=1"]},
            r"no configuration of .* meets activation=tanh and depth=1. Leave a condition",
        ),
        ({"where": ["val_loss>99"]}, r"no run of .* meets val_loss>99"),
        ({"where": ["experiment=tuned"]}, r"learning_rate varies too"),
    ],
)
def test_invalid_table_request_is_refused_by_name(folder: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(folder, **({"rows": "activation", "cols": "target"} | change))


def test_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a results folder: it has no manifest.json"):
        table(tmp_path)
    planted_folder(tmp_path)
    with pytest.raises(UserError, match=r"runs.csv is missing. Rebuild it with 'relu-study report"):
        table(tmp_path, where="target=wave")
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match=r"has format 99, and this relu-study reads formats up to 2"):
        table(tmp_path)


@pytest.mark.slow
def test_the_command_prints_what_python_returns_without_jax(clone: Path) -> None:
    code = (
        "import sys; from relu_study.cli.commands import main; sys.argv[1:] = sys.argv[2:]\n"
        "try: main()\nfinally: assert not {'jax', 'flax'} & set(sys.modules)"
    )
    words = ["table", str(clone), "--rows", "activation", "--cols", "target", "--metric", "dead_fraction", "--site", "all",
             "--epoch", "last", "--baseline", "relu", "--where", "experiment=activations", "--format", "latex"]  # fmt: skip
    done = [subprocess.run([sys.executable, "-c", code, "relu-study", *words], capture_output=True, text=True) for _ in range(2)]
    assert done[0].returncode == 0, done[0].stderr
    asked = {"rows": "activation", "cols": "target", "metric": "dead_fraction", "baseline": "relu"}
    assert done[0].stdout == done[1].stdout == relu_study.table(clone, **asked, where="experiment=activations", format="latex")
    assert r"leaky\_relu" in done[0].stdout and r"\toprule" in done[0].stdout and r"relu$^\dagger$" in done[0].stdout
    wrong = subprocess.run([sys.executable, "-c", code, "relu-study", *words[:3], "activaton"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("relu-study: unknown factor") and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("asked", "arm", "reason"),
    [
        ({"metric": "dead_fraction", "site": "site_2"}, "shallow", "no site_2"),
        ({"metric": "saturated_fraction"}, "baseline", "no smooth activation"),
        ({"metric": "certified_dead_fraction"}, "tanh", "no box, bound or flat piece"),
        ({"metric": "saturated_fraction", "epoch": 1}, "baseline", "no smooth activation"),
        ({"metric": "update_norm", "epoch": 0}, "baseline", "no step yet"),
    ],
)
def test_an_empty_cell_names_its_reason(folder: Path, clone: Path, asked: dict[str, Any], arm: str, reason: str) -> None:
    for there in (folder, clone):
        found = rows_of(table(there, **asked))
        assert found[arm] == [f"- ({reason})"] * 2, found
        assert f"({reason})".replace("_", r"\_") in table(there, format="latex", **asked)
