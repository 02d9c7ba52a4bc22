"""Stock TensorBoard on a results folder, queried over HTTP for the contents of its tabs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from known_results import planted_folder
from tensorboard_server import Board

from relu_study.report.tensorboard.event_files import run_names, write_events
from relu_study.report.tensorboard.plugins import HEADLINE
from relu_study.stats.histogram_bins import BINS
from relu_study.storage.configurations import collect
from relu_study.storage.csv_files import csv_text
from relu_study.storage.declaration import read_declared
from relu_study.storage.frames import summary_frame
from relu_study.study.run_spec import FIELDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("results"))
    manifest, configurations = read_declared(path), collect(path, histograms=True)
    write_events(manifest, configurations, path)
    (path / "summary.csv").write_text(csv_text(summary_frame(configurations, manifest)))
    return path


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, str]:
    return run_names(read_declared(folder))


@pytest.fixture(scope="module")
def board(folder: Path, names: dict[str, str]) -> Iterator[Board]:
    with Board(folder / "tensorboard") as found:

        def loaded() -> bool:
            # The gradient's histogram ends a run's last event.
            return set(found.get("runs")) == set(names.values()) and all(
                5 in found.histograms(run, "gradient/site_1") for run in names.values()
            )

        found.wait(loaded)
        yield found


def test_every_configuration_is_a_run(board: Board, names: dict[str, str]) -> None:
    assert sorted(board.get("runs")) == sorted(names.values()) and len(names) == 20


@pytest.mark.slow
def test_a_margin_chart_for_each_headline_metric_and_site(board: Board, names: dict[str, str]) -> None:
    layout = board.get("plugin/custom_scalars/layout")
    # The page begins with the last chart of a category: tests/end_to_end/test_browser.py sees it.
    titles = {category["title"]: [chart["title"] for chart in reversed(category["chart"])] for category in layout["category"]}
    assert next(iter(titles)) == "headline" and titles["headline"] == list(HEADLINE)
    assert titles["dead_fraction"] == ["dead_fraction/all", "dead_fraction/site_1", "dead_fraction/site_2"]
    assert [category["title"] for category in layout["category"] if not category["closed"]] == ["headline"]
    shown = {}
    for chart in (chart for category in layout["category"] for chart in category.get("chart", [])):
        (series,) = chart["margin"]["series"]
        value, lower, upper = (board.scalars(series[tag], list(names.values())) for tag in ("value", "lower", "upper"))
        assert value.keys() == lower.keys() == upper.keys() != set(), chart["title"]
        for run in value:
            at, below, above = (np.array(found[run]).T for found in (value, lower, upper))
            assert list(at[0]) == list(below[0]) == list(above[0]), (chart["title"], run)
            assert (below[1] <= at[1]).all() and (at[1] <= above[1]).all(), (chart["title"], run)
        shown[series["value"]] = set(value)
    assert len(shown) > 25 and shown["val_loss/all/mean"] == set(names.values())
    assert shown["saturated_fraction/site_2/mean"] == {"tanh@wave", "tanh@coin_flip"}


def test_histograms_have_the_zero_bin(board: Board, folder: Path, names: dict[str, str]) -> None:
    configurations = collect(folder, histograms=True)
    tags = board.get("plugin/histograms/tags")
    for config_id, configuration in configurations.items():
        run = names[config_id]
        assert set(tags[run]) == {f"{kind}/{site}" for kind in ("pre", "post", "gradient") for site in configuration.sites}
    for kind in ("pre", "post", "gradient"):
        config_id = next(c for c, name in names.items() if name == "he_normal~relu,rate=0.001@wave")
        found = board.histograms(names[config_id], f"{kind}/site_2")
        counts = configurations[config_id].histograms[f"{kind}:site_2"]
        assert list(found) == [0, 1, 2, 5]
        for row, buckets in zip(counts, found.values(), strict=True):
            (zero,) = [count for left, right, count in buckets if left < 0 < right]
            assert zero == row[BINS // 2] and sum(count for *_, count in buckets) == row.sum()
            assert all(left < right for left, right, _ in buckets)
    assert sum(c.histograms["pre:site_1"][:, BINS // 2].sum() for c in configurations.values()) > 100


def test_hparams_list_every_varied_factor(board: Board, folder: Path) -> None:
    factors = read_declared(folder).declaration.factors
    infos = {info["name"]: info for info in board.post("plugin/hparams/experiment", {"experimentName": ""})["hparamInfos"]}
    assert set(infos) == set(factors) and all(info["differs"] for info in infos.values())
    kinds = {name: info["type"] for name, info in infos.items()}
    assert kinds["activation"] == kinds["target"] == "DATA_TYPE_STRING"
    assert kinds["depth"] == kinds["learning_rate"] == "DATA_TYPE_FLOAT64"


def test_session_groups_are_the_rows_of_the_summary(board: Board, folder: Path, names: dict[str, str]) -> None:
    summary = pd.read_csv(folder / "summary.csv", keep_default_na=False, na_values=[""])
    last = summary[summary["epoch"] == summary.groupby("config_id")["epoch"].transform("max")].dropna(subset="mean")
    groups = {group["name"]: group for group in board.session_groups()}
    assert groups.keys() == set(names.values())
    for config_id, rows in last.groupby("config_id"):
        group = groups[names[config_id]]
        factors = {name: value for name, value in rows.iloc[0].items() if name in FIELDS}
        assert group["hparams"] and all(factors[name] == value for name, value in group["hparams"].items())
        found = {value["name"]["tag"]: value["value"] for value in group["metricValues"] if not value["name"]["group"]}
        wanted: dict[str, Any] = {}
        for row in rows.itertuples():
            name = f"{row.metric}/{row.site}"
            wanted |= {f"{name}/mean": row.mean, f"{name}/lo": row.ci_lo, f"{name}/hi": row.ci_hi}
        assert found.keys() == wanted.keys()
        np.testing.assert_allclose([found[tag] for tag in wanted], list(wanted.values()), rtol=1e-6, err_msg=str(config_id))
        assert {value["trainingStep"] for value in group["metricValues"]} == {5}


def test_view_prints_a_working_address_and_stops_with_tensorboard(folder: Path) -> None:
    command = [sys.executable, "-c", "from relu_study.cli.commands import main; main()", "view", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        address = running.stdout.readline().strip()
        with urlopen(f"{address}data/environment", timeout=30) as answer:
            assert Path(json.load(answer)["data_location"]) == folder / "tensorboard"
        running.terminate()
        assert running.wait(30) == 0
    with pytest.raises(URLError):
        urlopen(address, timeout=30)
