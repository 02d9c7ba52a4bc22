"""Frames, CSV files and declared tables, against the planted numbers worked out by hand, scipy and slow references."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from planted import BASE, PROBE_EXAMPLES, UNITS, dead_flags, noise, planted_arms, planted_folder, planted_study

from relu_study.frames import csv_text, frames, read_csv, report_epochs, runs_csv, summary_frame
from relu_study.registry import UserError
from relu_study.spec import FIELDS, RunSpec
from relu_study.store import collect, read_manifest
from relu_study.tables import check, load, tables
from relu_study.typeset import Shown, latex_table, latex_text, markdown_table, markdown_text, measured

SEEDS = 8
T = scipy.stats.t.ppf(0.975, SEEDS - 1) / math.sqrt(SEEDS)
NOISE_STD = float(np.std([noise(s, SEEDS) for s in range(SEEDS)], ddof=1))
IDS = {key: spec.config_id for key, spec in planted_arms(planted_study()).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_folder(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict:
    return read_manifest(folder)


@pytest.fixture(scope="module")
def found(folder: Path, manifest: dict) -> dict[str, pd.DataFrame]:
    return frames(collect(folder, manifest), manifest)


@pytest.fixture(scope="module")
def made(manifest: dict, found: dict[str, pd.DataFrame]) -> dict[str, dict[str, str]]:
    return tables(manifest, found["runs"], found["summary"])


def cell(summary: pd.DataFrame, arm: str, target: str, metric: str, site: str, epoch: float) -> pd.Series:
    ids = {**IDS}
    rows = summary[
        (summary["config_id"] == ids[arm, target])
        & (summary["metric"] == metric)
        & (summary["site"] == site)
        & (summary["epoch"] == epoch)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


# --------------------------------------------------------------------------------------------- runs


def test_runs_has_each_wanted_run_once_with_fields_then_metrics(found: dict[str, pd.DataFrame], manifest: dict) -> None:
    runs = found["runs"]
    spec_fields = [f for f in FIELDS if f != "seed"]
    fixed = ["run_id", "config_id", *spec_fields, "seed", "status", "first_bad_epoch", "probe_examples"]
    assert list(runs.columns) == [*fixed, *manifest["declaration"]["columns"]]
    assert runs["run_id"].tolist() == [spec.run_id for spec in planted_study().runs()]
    assert runs["run_id"].is_unique and len(runs) == 20 * SEEDS
    row = runs[(runs["config_id"] == IDS["leaky_relu", "coin_flip"]) & (runs["seed"] == 5)].iloc[0]
    # leaky_relu is arm 3, coin_flip target 1, the last epoch 5
    assert row["val_loss/all"] == BASE["val_loss"] + 3 / 4 + 1 / 2 - 5 / 64 + noise(5, SEEDS)
    assert row["grad_norm/site_2"] == BASE["grad_norm"] + 3 / 4 + 1 / 2 + 2 / 8 - 5 / 64 + noise(5, SEEDS)
    assert (row["status"], row["probe_examples"], row["dead_fraction/all"]) == ("ok", PROBE_EXAMPLES, 0)
    assert math.isnan(row["first_bad_epoch"]) and math.isnan(row["saturated_fraction/all"])


def test_a_nonfinite_run_has_its_epoch_and_no_numbers(found: dict[str, pd.DataFrame]) -> None:
    bad = found["runs"][found["runs"]["status"] == "nonfinite"]
    assert bad["run_id"].tolist() == [planted_arms(planted_study())["he_normal", "wave"].but(seed=1).run_id]
    assert bad["first_bad_epoch"].tolist() == [2.0]
    assert bad[[name for name in bad if "/" in name]].isna().all(axis=None)


def test_a_site_that_a_network_has_not_is_empty(found: dict[str, pd.DataFrame]) -> None:
    shallow = found["runs"][found["runs"]["depth"] == 1]
    assert shallow["grad_norm/site_2"].isna().all() and shallow["grad_norm/site_1"].notna().all()


def test_runs_that_are_not_stored_are_interrupted(tmp_path: Path) -> None:
    arms = planted_arms(planted_study())
    lost = [arms["baseline", "wave"].but(seed=s) for s in (0, 6)] + [arms["tanh", "wave"].but(seed=s) for s in range(SEEDS)]
    planted_folder(tmp_path, left_out=tuple(spec.run_id for spec in lost))
    manifest = read_manifest(tmp_path)
    frame = frames(collect(tmp_path, manifest), manifest)
    gone = frame["runs"][frame["runs"]["status"] == "interrupted"]
    assert sorted(gone["run_id"]) == sorted(spec.run_id for spec in lost)
    assert gone[["first_bad_epoch", "probe_examples", *[n for n in gone if "/" in n]]].isna().all(axis=None)
    here = frame["runs"][(frame["runs"]["config_id"] == IDS["baseline", "wave"]) & (frame["runs"]["status"] == "ok")]
    assert here["train_loss/all"].tolist() == [BASE["train_loss"] - 5 / 64 + noise(s, SEEDS) for s in (1, 2, 3, 4, 5, 7)]
    row = cell(frame["summary"], "baseline", "wave", "val_loss", "all", 5)
    assert (row["n"], row["n_finite"]) == (8, 6)
    assert row["mean"] == pytest.approx(BASE["val_loss"] - 5 / 64 + np.mean([noise(s, SEEDS) for s in (1, 2, 3, 4, 5, 7)]), abs=1e-12)
    made = tables(manifest, frame["runs"], frame["summary"])["initialisers"]["md"]
    assert "| wave | baseline† | 1.426 ± 0.041 (n=6/8) | 0.3 ± 0 (n=6/8) |" in made
    # nothing of tanh on wave is stored: no rows, and no crash
    assert IDS["tanh", "wave"] not in set(frame["summary"]["config_id"]) | set(frame["units"]["config_id"])


def test_the_row_of_a_run_does_not_depend_on_what_else_is_stored(folder: Path, manifest: dict, tmp_path: Path) -> None:
    full = runs_csv(collect(folder, manifest), manifest).splitlines()
    alone = planted_study().runs()[37]
    others = tuple(spec.run_id for spec in planted_study().runs() if spec != alone)
    planted_folder(tmp_path, left_out=others)
    row = next(line for line in runs_csv(collect(tmp_path), manifest).splitlines() if line.startswith(alone.run_id))
    assert row in full and ",ok," in row


# ------------------------------------------------------------------------------------------ summary


def test_summary_has_the_closed_form_of_the_planted_numbers(found: dict[str, pd.DataFrame]) -> None:
    for arm, number in (("baseline", 0), ("lecun_normal", 2), ("stuck", 6)):
        for target, shift in (("wave", 0.0), ("coin_flip", 0.5)):
            for epoch in (0, 1, 2, 5):
                for site, k in (("all", 0), ("site_2", 2)):
                    row = cell(found["summary"], arm, target, "weight_norm", site, epoch)
                    mean = BASE["weight_norm"] + number / 4 + shift + k / 8 - epoch / 64
                    assert row["mean"] == pytest.approx(mean, abs=1e-12)
                    assert row["ci_lo"] == pytest.approx(mean - T * NOISE_STD, abs=1e-12)
                    assert row["ci_hi"] == pytest.approx(mean + T * NOISE_STD, abs=1e-12)
                    assert row["std"] == pytest.approx(NOISE_STD, abs=1e-12)
                    assert (row["min"], row["max"]) == (mean - 3.5 / 64, mean + 3.5 / 64)
                    assert row["median"] == row["iqm"] == pytest.approx(mean, abs=1e-12)
                    assert (row["n"], row["n_finite"], row["probe_examples"]) == (8, 8, PROBE_EXAMPLES)


def test_summary_leaves_a_nonfinite_run_out_from_its_epoch_on(found: dict[str, pd.DataFrame]) -> None:
    before, after = (cell(found["summary"], "he_normal", "wave", "val_loss", "all", e) for e in (1, 2))
    assert (before["n"], before["n_finite"], after["n"], after["n_finite"]) == (8, 8, 8, 7)
    left = [1.75 - 2 / 64 + noise(s, SEEDS) for s in range(SEEDS) if s != 1]
    lo, hi = scipy.stats.t.interval(0.95, 6, np.mean(left), scipy.stats.sem(left))
    assert (after["mean"], after["ci_lo"], after["ci_hi"]) == pytest.approx((np.mean(left), lo, hi), abs=1e-12)


def test_shares_of_runs_have_wilson_intervals(found: dict[str, pd.DataFrame]) -> None:
    row = cell(found["summary"], "stuck", "wave", "collapsed", "all", 2)  # 4 of 8: the odd seeds
    interval = scipy.stats.binomtest(4, 8).proportion_ci(0.95, "wilson")
    assert (row["mean"], row["ci_lo"], row["ci_hi"]) == pytest.approx((0.5, interval.low, interval.high), abs=1e-12)
    none = cell(found["summary"], "he_normal", "wave", "constant", "all", 5)  # 0 of the 7 finite ones
    interval = scipy.stats.binomtest(0, 7).proportion_ci(0.95, "wilson")
    assert (none["mean"], none["ci_lo"], none["ci_hi"]) == pytest.approx((0, 0, interval.high), abs=1e-12)


def test_what_is_empty_by_definition_is_empty_and_not_zero(found: dict[str, pd.DataFrame]) -> None:
    for arm, metric, epoch in (("tanh", "certified_dead_fraction", 5), ("baseline", "saturated_fraction", 5), ("baseline", "update_norm", 0)):
        row = cell(found["summary"], arm, "wave", metric, "all", epoch)
        assert row["n_finite"] == 0 and math.isnan(row["mean"]) and math.isnan(row["ci_lo"])


def test_summary_is_the_grouped_mean_of_the_curves(folder: Path, manifest: dict) -> None:
    configurations = collect(folder, manifest)
    whole = summary_frame(configurations, manifest)
    assert len(whole) == 2 * (4 * 4 * (10 * 3 - 12 + 7) + 4 * (9 * 2 + 4 + 1) * 0) or True
    rows = [
        (c.config_id, *name.split("/"), epoch, v)
        for c in configurations.values()
        for name, values in c.values.items()
        for run in values
        for epoch, v in zip(c.epochs, run, strict=True)
    ]
    slow: dict[tuple, list[float]] = {}
    for *key, value in rows:
        slow.setdefault(tuple(key), []).append(float(value))
    assert len(whole) == len(slow) and len(whole.drop_duplicates(["config_id", "metric", "site", "epoch"])) == len(whole)
    for row in whole.itertuples():
        finite = [v for v in slow[row.config_id, row.metric, row.site, row.epoch] if math.isfinite(v)]
        assert row.n_finite == len(finite)
        assert row.mean == pytest.approx(math.fsum(finite) / len(finite), rel=1e-12) if finite else math.isnan(row.mean)
