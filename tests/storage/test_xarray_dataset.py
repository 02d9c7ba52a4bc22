"""Results as an xarray Dataset, against the frames, on studies whose configurations differ in sites, epochs and seeds."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray
from known_results import planted_arms, planted_folder, planted_study

from relu_study.errors import UserError
from relu_study.report.report import report
from relu_study.storage.frames import load
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.results import Results
from relu_study.storage.xarray_dataset import NOT_REQUESTED, last_values

LOST = planted_arms(planted_study())["tanh", "wave"].replace(seed=3).run_id
WHY = "3 workers died"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Known results with one nonfinite run and one crashed run."""
    folder = planted_folder(tmp_path_factory.mktemp("planted"), left_out=(LOST,))
    write_manifest(folder, {**read_manifest(folder), "crashed": {LOST: WHY}})
    report(folder)
    return load(folder)


SPECS = {arm: spec for (arm, target), spec in planted_arms(planted_study()).items() if target == "wave"}
SHALLOW, SHORT, FEW = (SPECS[arm].config_id for arm in ("shallow", "leaky_relu", "stuck"))


@pytest.fixture(scope="module")
def ragged(planted: Results) -> Results:
    """Of the known results, one configuration with one site, one that ends at epoch 2, and one with five seeds."""
    curves, runs = planted.curves, planted.runs
    left_out = (curves["config_id"] == SHORT) & (curves["epoch"] > 2) | (curves["config_id"] == FEW) & (curves["seed"] >= 5)
    kept = ~((runs["config_id"] == FEW) & (runs["seed"] >= 5))
    return replace(planted, runs=runs[kept].reset_index(drop=True), read_curves=curves[~left_out].reset_index(drop=True))


@pytest.fixture(params=["planted", "ragged"])
def results(request: pytest.FixtureRequest) -> Results:
    return request.getfixturevalue(request.param)


def test_every_value_of_the_curves_and_nothing_else(results: Results) -> None:
    data, curves = results.to_xarray(), results.curves
    for metric, rows in curves.groupby("metric", observed=True):
        cube = data[metric]
        names = ("config_id", "seed", "epoch", *(["site"] if "site" in cube.dims else []))
        points = {name: xarray.DataArray(np.array(rows[name].tolist()), dims="row") for name in names}
        np.testing.assert_array_equal(cube.sel(points).values, rows["value"].to_numpy(), err_msg=str(metric))
        assert int(cube.notnull().sum()) == int(rows["value"].notna().sum()) and cube.dtype == np.float32, metric
        assert "site" in cube.dims or set(rows["site"]) == {"all"}


def test_dimensions_and_coordinates(results: Results) -> None:
    data, runs = results.to_xarray(), results.runs
    assert list(data.config_id.values) == list(dict.fromkeys(runs["config_id"]))
    assert list(data.seed.values) == list(range(runs["seed"].max() + 1))
    assert list(data.epoch.values) == sorted(set(results.curves["epoch"].astype(float)))
    assert list(data.site.values) == ["all", "site_1", "site_2"]
    assert data.dead_fraction.dims == ("config", "seed", "epoch", "site")
    assert data.val_loss.dims == ("config", "seed", "epoch")
    for name in ("depth", "activation", "initializer", "target"):
        if name in data.coords:
            firsts = runs.drop_duplicates("config_id")[name].tolist()
            assert data[name].dims == ("config",) and data[name].values.tolist() == firsts, name


def test_ragged_configurations_are_padded_with_nan(ragged: Results) -> None:
    data = ragged.to_xarray()
    shallow, short, few = (data.sel(config_id=config_id) for config_id in (SHALLOW, SHORT, FEW))
    assert dict(data.sizes) == {"config": len(set(ragged.runs["config_id"])), "seed": 8, "epoch": 4, "site": 3}
    assert shallow.dead_fraction.sel(site="site_1").notnull().all() and shallow.dead_fraction.sel(site="site_2").isnull().all()
    assert short.dead_fraction.sel(site="site_2", epoch=2).notnull().all() and short.val_loss.sel(epoch=5).isnull().all()
    assert few.val_loss.sel(seed=4).notnull().all() and few.val_loss.sel(seed=[5, 6, 7]).isnull().all()
    assert list(few.status.values) == ["ok"] * 5 + [NOT_REQUESTED] * 3 and list(short.status.values) == ["ok"] * 8
    assert list(few.run_id.values[5:]) == [""] * 3 and float(few.probe_examples) == 512


def test_attributes_are_those_of_the_declared_metric(planted: Results) -> None:
    data = planted.to_xarray()
    assert planted.manifest is not None and data.attrs["epochs"] == "every measured epoch" and data.attrs["study"] == "planted"
    for name, about in planted.manifest.declaration.metrics.items():
        attributes = data[name].attrs
        assert attributes.get("units", "") == about.unit and attributes.get("source", "") == about.source
        assert (attributes.get("valid_min"), attributes.get("valid_max")) == (about.low, about.high)
        assert attributes["direction"] == about.direction and attributes["definition"] == about.text
    assert data.val_loss.attrs["valid_min"] == 0 and "valid_max" not in data.val_loss.attrs


def test_status_of_every_run(planted: Results) -> None:
    data, runs = planted.to_xarray(), planted.runs
    for row in runs.itertuples():
        one = data.sel(config_id=row.config_id, seed=row.seed)
        assert (one.status.item(), one.run_id.item(), one.reason.item()) == (row.status, row.run_id, row.reason)
        np.testing.assert_equal(one.first_bad_epoch.item(), row.first_bad_epoch)
    assert (data.status == "crashed").sum() == (data.status == "nonfinite").sum() == 1
    assert data.val_loss.where(data.status == "crashed", drop=True).isnull().all()
    assert {"baseline / he_normal", "baseline"} & set(data.arm.values) and "he_normal / relu, rate=0.001" in set(data.arm.values)


def test_means_over_seeds_equal_summary(planted: Results) -> None:
    data, rows = planted.to_xarray(), planted.summary.query("metric == 'dead_fraction'")
    points = {name: xarray.DataArray(np.array(rows[name].tolist()), dims="row") for name in ("config_id", "epoch", "site")}
    means = data.dead_fraction.astype(float).sel(points).mean("seed")
    np.testing.assert_allclose(means.values, rows["mean"].to_numpy(), rtol=1e-8, equal_nan=True)


def test_clone_has_the_last_epoch(planted: Results, tmp_path: Path) -> None:
    clone = load(shutil.copytree(planted.folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw")))
    data, whole = clone.to_xarray(), planted.to_xarray()
    assert data.attrs["epochs"] == "the last epoch of each run, since raw/ is missing" and list(data.epoch.values) == [5]
    for name in whole.data_vars:
        part = whole[name].sel(epoch=[5]) if "epoch" in whole[name].dims else whole[name]
        xarray.testing.assert_equal(data[name].drop_vars("epoch", errors="ignore"), part.drop_vars("epoch", errors="ignore"))
    assert len(last_values(clone.runs[:0])) == 0


def test_refusals(planted: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"results of a study. Read its folder with relu_study.load"):
        replace(planted, manifest=None).to_xarray()
    curves = planted.curves.assign(metric=planted.curves["metric"].cat.rename_categories({"val_loss": "status"}))
    with pytest.raises(UserError, match="the metric status has the name of"):
        replace(planted, read_curves=curves).to_xarray()
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(UserError, match=r"needs the package xarray. Install it with: pip install 'relu_study\[xarray\]'"):
        planted.to_xarray()
