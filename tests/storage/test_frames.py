"""DataFrames and CSV files of a results folder, against numbers by hand, scipy and slow references."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from known_results import BASE, PROBE_EXAMPLES, noise, planted_arms, planted_folder, planted_study

from relu_study.errors import UserError
from relu_study.storage.configurations import collect
from relu_study.storage.csv_files import csv_text, read_csv
from relu_study.storage.declaration import StudyManifest, read_declared
from relu_study.storage.frames import frames, load, report_epochs, runs_frame, summary_frame
from relu_study.study.run_spec import FIELDS, RunSpec

SEEDS = 8
T = scipy.stats.t.ppf(0.975, SEEDS - 1) / math.sqrt(SEEDS)
NOISE_STD = float(np.std([noise(s, SEEDS) for s in range(SEEDS)], ddof=1))
IDS = {key: spec.config_id for key, spec in planted_arms(planted_study()).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_folder(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def manifest(folder: Path) -> StudyManifest:
    return read_declared(folder)


@pytest.fixture(scope="module")
def found(folder: Path, manifest: StudyManifest) -> dict[str, pd.DataFrame]:
    return frames(collect(folder, manifest), manifest)


@pytest.fixture(scope="module")
def written(folder: Path, found: dict[str, pd.DataFrame]) -> Path:
    for name, frame in found.items():
        (folder / f"{name}.csv").write_text(csv_text(frame))
    return folder


def cell(summary: pd.DataFrame, arm: str, target: str, metric: str, site: str, epoch: float) -> pd.Series:
    rows = summary[
        (summary["config_id"] == IDS[arm, target])
        & (summary["metric"] == metric)
        & (summary["site"] == site)
        & (summary["epoch"] == epoch)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


# --------------------------------------------------------------------------------------------- runs


def test_runs_frame_has_each_requested_run_once(found: dict[str, pd.DataFrame], manifest: StudyManifest) -> None:
    runs = found["runs"]
    spec_fields = [f for f in FIELDS if f != "seed"]
    fixed = ["run_id", "config_id", *spec_fields, "seed", "status", "first_bad_epoch", "probe_examples"]
    assert list(runs.columns) == [*fixed, *manifest.declaration.columns]
    assert runs["run_id"].tolist() == [spec.run_id for spec in planted_study().runs()]
    assert runs["run_id"].is_unique and len(runs) == 20 * SEEDS
    row = runs[(runs["config_id"] == IDS["leaky_relu", "coin_flip"]) & (runs["seed"] == 5)].iloc[0]
    # leaky_relu is arm 3, coin_flip target 1, the last epoch 5
    assert row["val_loss/all"] == BASE["val_loss"] + 3 / 4 + 1 / 2 - 5 / 64 + noise(5, SEEDS)
    assert row["grad_norm/site_2"] == BASE["grad_norm"] + 3 / 4 + 1 / 2 + 2 / 8 - 5 / 64 + noise(5, SEEDS)
    assert (row["status"], row["probe_examples"], row["dead_fraction/all"]) == ("ok", PROBE_EXAMPLES, 0)
    assert math.isnan(row["first_bad_epoch"]) and math.isnan(row["saturated_fraction/all"])


def test_nonfinite_run_has_its_epoch_and_no_numbers(found: dict[str, pd.DataFrame]) -> None:
    bad = found["runs"][found["runs"]["status"] == "nonfinite"]
    assert bad["run_id"].tolist() == [planted_arms(planted_study())["he_normal", "wave"].replace(seed=1).run_id]
    assert bad["first_bad_epoch"].tolist() == [2.0]
    assert bad[[name for name in bad if "/" in name]].isna().all(axis=None)


def test_missing_site_is_empty(found: dict[str, pd.DataFrame]) -> None:
    shallow = found["runs"][found["runs"]["depth"] == 1]
    assert shallow["grad_norm/site_2"].isna().all() and shallow["grad_norm/site_1"].notna().all()


def test_missing_runs_are_interrupted(tmp_path: Path) -> None:
    arms = planted_arms(planted_study())
    lost = [arms["baseline", "wave"].replace(seed=s) for s in (0, 6)] + [
        arms["tanh", "wave"].replace(seed=s) for s in range(SEEDS)
    ]
    planted_folder(tmp_path, left_out=tuple(spec.run_id for spec in lost))
    manifest = read_declared(tmp_path)
    frame = frames(collect(tmp_path, manifest), manifest)
    gone = frame["runs"][frame["runs"]["status"] == "interrupted"]
    assert sorted(gone["run_id"]) == sorted(spec.run_id for spec in lost)
    assert gone[["first_bad_epoch", "probe_examples", *[n for n in gone if "/" in n]]].isna().all(axis=None)
    here = frame["runs"][(frame["runs"]["config_id"] == IDS["baseline", "wave"]) & (frame["runs"]["status"] == "ok")]
    assert here["train_loss/all"].tolist() == [BASE["train_loss"] - 5 / 64 + noise(s, SEEDS) for s in (1, 2, 3, 4, 5, 7)]
    row = cell(frame["summary"], "baseline", "wave", "val_loss", "all", 5)
    assert (row["n"], row["n_finite"]) == (8, 6)
    assert row["mean"] == pytest.approx(
        BASE["val_loss"] - 5 / 64 + np.mean([noise(s, SEEDS) for s in (1, 2, 3, 4, 5, 7)]), abs=1e-12
    )
    # nothing of tanh on wave is stored: no rows, and no crash
    assert IDS["tanh", "wave"] not in set(frame["summary"]["config_id"]) | set(frame["units"]["config_id"])


def test_row_does_not_depend_on_other_stored_runs(folder: Path, manifest: StudyManifest, tmp_path: Path) -> None:
    full = csv_text(runs_frame(collect(folder, manifest), manifest)).splitlines()
    alone = planted_study().runs()[37]
    others = tuple(spec.run_id for spec in planted_study().runs() if spec != alone)
    planted_folder(tmp_path, left_out=others)
    row = next(line for line in csv_text(runs_frame(collect(tmp_path), manifest)).splitlines() if line.startswith(alone.run_id))
    assert row in full and ",ok," in row


# ------------------------------------------------------------------------------------------ summary


def test_summary_matches_the_closed_form(found: dict[str, pd.DataFrame]) -> None:
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


def test_summary_excludes_nonfinite_runs_from_their_epoch(found: dict[str, pd.DataFrame]) -> None:
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


def test_undefined_values_are_empty_not_zero(found: dict[str, pd.DataFrame]) -> None:
    for arm, metric, epoch in (
        ("tanh", "certified_dead_fraction", 5),
        ("baseline", "saturated_fraction", 5),
        ("baseline", "update_norm", 0),
    ):
        row = cell(found["summary"], arm, "wave", metric, "all", epoch)
        assert row["n_finite"] == 0 and math.isnan(row["mean"]) and math.isnan(row["ci_lo"])


def test_summary_is_the_grouped_mean_of_the_curves(folder: Path, manifest: StudyManifest) -> None:
    configurations = collect(folder, manifest)
    whole = summary_frame(configurations, manifest)
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


def test_summary_keeps_declared_and_last_epochs(tmp_path: Path) -> None:
    planted_folder(tmp_path, seeds=2, epochs=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.5))
    manifest = read_declared(tmp_path)
    first, second, third, *claims = manifest.declaration.claims
    claims = [replace(first, epoch=3, against_epoch=7), second, replace(third, epoch="min"), *claims]
    first, *tables = manifest.declaration.tables
    tables = [replace(first, epoch=9, metrics=("val_loss", "dead_fraction/site_1@11")), *tables]
    manifest = replace(manifest, declaration=replace(manifest.declaration, claims=tuple(claims), tables=tuple(tables)))
    assert report_epochs(manifest.declaration) == {0, 1, 2, 5, 10, 3, 7, 9, 11}
    configurations = collect(tmp_path, manifest)
    kept = frames(configurations, manifest)["summary"]
    for _, part in kept.groupby(["config_id", "metric", "site"]):
        assert part["epoch"].tolist() == [0, 1, 2, 3, 5, 7, 9, 10, 11, 12.5]
    whole = frames(configurations, manifest, all_epochs=True)["summary"]
    assert sorted(whole["epoch"].unique()) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.5]
    pd.testing.assert_frame_equal(whole[whole["epoch"].isin(kept["epoch"])].reset_index(drop=True), kept)


# ---------------------------------------------------------------------- experiments, units, survival


def test_shared_configuration_is_in_each_experiment(found: dict[str, pd.DataFrame]) -> None:
    pairs = list(found["experiments"].itertuples(index=False, name=None))
    assert len(pairs) == len(set(pairs)) == 24
    shared = IDS["baseline", "wave"]
    assert [e for e, c in pairs if c == shared] == ["initialisers", "activations"]
    assert [e for e, c in pairs if c == IDS["he_normal", "wave"]] == ["initialisers", "tuned"]  # under its second label


def test_unit_counts_match_a_hand_count(found: dict[str, pd.DataFrame]) -> None:
    units = found["units"].set_index(["config_id", "site"])
    row = units.loc[IDS["baseline", "wave"], "site_1"]
    # born: 3 in each of 8 runs; died: unit 3 of the even seeds; revived: unit 3 of seeds 0 and 4, unit 0 of seed 0
    assert row[["runs", "units", "born_dead", "died", "revived", "dead_at_end"]].tolist() == [8, 80, 24, 4, 3, 24 + 4 - 3]
    assert row["dead_at_end_fraction"] == 25 / 80 and row["ci_lo"] <= 25 / 80 <= row["ci_hi"]
    assert row["certified_revived"] == 0 and row["probe_examples"] == PROBE_EXAMPLES
    bad = units.loc[IDS["he_normal", "wave"], "site_2"]  # seed 1 is censored: it counts at birth, not at the end
    assert bad[["runs", "born_dead", "died", "revived", "dead_at_end"]].tolist() == [8, 16, 4, 3, 14 + 4 - 3]
    assert bad["dead_at_end_fraction"] == 15 / 70
    assert pd.isna(units.loc[IDS["tanh", "wave"], "site_1"]["certified_revived"])
    assert (IDS["shallow", "wave"], "site_2") not in units.index


def test_certified_revivals_have_a_separate_count(folder: Path, manifest: StudyManifest) -> None:
    configurations = collect(folder, manifest)
    one = configurations[IDS["baseline", "wave"]]
    one.certified_dead["site_1"][3, 2:, 1] = False  # one unit of one run is certified dead no longer
    units = frames({one.config_id: one}, manifest)["units"].set_index("site")
    assert units.loc["site_1", "certified_revived"] == 1 and units.loc["site_2", "certified_revived"] == 0
    assert units.loc["site_1", "revived"] == 3


def test_survival_matches_a_hand_count(found: dict[str, pd.DataFrame]) -> None:
    rows = found["survival"]
    rows = rows[(rows["config_id"] == IDS["he_normal", "wave"]) & (rows["site"] == "site_1")]
    # 8 units a run are born alive; 4 die at the second epoch; seed 1 goes nonfinite at the third with 8 at risk
    assert rows["epoch"].tolist() == [0, 1, 2, 5]
    assert rows["at_risk"].tolist() == [64, 64, 52, 52] and rows["died"].tolist() == [0, 4, 0, 0]
    assert rows["censored"].tolist() == [0, 0, 8, 0] and rows["runs"].tolist() == [8, 8, 7, 7]
    assert rows["survival"].tolist() == pytest.approx([1, 60 / 64, 60 / 64, 60 / 64])
    assert (rows["probe_examples"] == PROBE_EXAMPLES).all()


# ------------------------------------------------------------------------------------ curves, files


def test_curves_have_every_value_once_in_little_memory(written: Path) -> None:
    curves = load(written).curves
    series = {"all": 14, "site_1": 9, "site_2": 9}
    assert len(curves) == 4 * SEEDS * (18 * sum(series.values()) + 2 * (series["all"] + series["site_1"]))
    assert curves.memory_usage(deep=False).sum() / len(curves) < 24
    keys = ["run_id", "metric", "site", "epoch"]
    assert not curves.duplicated(keys).any()
    spec = planted_arms(planted_study())["stuck", "coin_flip"].replace(seed=6)
    run = curves[curves["run_id"] == spec.run_id]
    assert (run["seed"] == 6).all() and (run["config_id"] == spec.config_id).all()
    loss = run[(run["metric"] == "val_loss") & (run["site"] == "all")]
    assert loss["epoch"].tolist() == [0, 1, 2, 5]
    assert loss["value"].tolist() == [BASE["val_loss"] + 6 / 4 + 1 / 2 - e / 64 + noise(6, SEEDS) for e in (0, 1, 2, 5)]
    stored = collect(written)[spec.config_id]
    for name, values in stored.values.items():
        metric, site = name.split("/")
        series = run[(run["metric"] == metric) & (run["site"] == site)]["value"].to_numpy()
        np.testing.assert_array_equal(series, values[6], name)


def test_clone_loads_csvs_and_refuses_curves(written: Path, tmp_path: Path) -> None:
    clone = shutil.copytree(written, tmp_path / "clone", ignore=shutil.ignore_patterns("raw"))
    whole, bare = load(written), load(clone)
    pd.testing.assert_frame_equal(whole.runs, bare.runs)
    pd.testing.assert_frame_equal(whole.summary, bare.summary)
    with pytest.raises(UserError, match=r"curves need .*clone.raw"):
        _ = bare.curves
    (clone / "summary.csv").unlink()
    with pytest.raises(UserError, match=r"summary\.csv is missing.*relu-study report"):
        load(clone)
    (clone / "summary.csv").write_text('config_id,n\n"a,1\n')
    with pytest.raises(UserError, match=r"summary\.csv is corrupt"):
        load(clone)
    with pytest.raises(UserError, match="is not a results folder"):
        load(tmp_path)


def test_every_csv_file_round_trips(found: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    for name, frame in found.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(csv_text(frame))
        back = read_csv(path)
        assert csv_text(back) == path.read_text()
        assert all(back[c].dtype == frame[c].dtype for c in frame if not pd.api.types.is_string_dtype(back[c]))
        pd.testing.assert_frame_equal(back, frame, check_dtype=False, rtol=1e-8)
    text = (tmp_path / "runs.csv").read_text()
    assert "nan" not in text.lower() and "\r" not in text


@settings(max_examples=40)
@given(st.floats(1e-12, 1e3), st.integers(0, 2**32 - 1), st.sampled_from(["NA", "none", "null", "1e5", "007", "a,b", 'q"']))
def test_run_id_follows_from_its_row(tmp_path_factory: pytest.TempPathFactory, rate: float, seed: int, word: str) -> None:
    spec = RunSpec(learning_rate=rate, seed=seed, target=word)
    frame = pd.DataFrame([{"run_id": spec.run_id, "config_id": "0123456789", **spec.as_dict(), "probe_examples": 1}])
    path = tmp_path_factory.getbasetemp() / "row.csv"
    path.write_text(csv_text(frame))
    row = read_csv(path).iloc[0]
    assert (
        RunSpec(**{name: row[name] if isinstance(row[name], str) else row[name].item() for name in FIELDS}).run_id
        == row["run_id"]
    )
    assert row["config_id"] == "0123456789"


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
def test_float32_round_trips_through_csv(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    frame = pd.DataFrame({"run_id": ["a"] * len(values), "grad_norm/all": np.array(values, np.float32)})
    path = tmp_path_factory.getbasetemp() / "values.csv"
    path.write_text(csv_text(frame))
    assert read_csv(path)["grad_norm/all"].to_numpy().tobytes() == frame["grad_norm/all"].to_numpy().tobytes()
