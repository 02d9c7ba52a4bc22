"""Custom Scalars, HParams and Histograms summaries, value by value, parsed by TensorBoard's code."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from known_results import planted_folder, planted_manifest, planted_study
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util.tensor_util import make_ndarray

from relu_study.report.tensorboard import plugins
from relu_study.stats.histogram_bins import BINS, edges
from relu_study.storage import configurations
from relu_study.storage.configurations import Configuration
from relu_study.storage.declaration import parse_manifest

ZERO = BINS // 2
METRICS = parse_manifest(planted_manifest(planted_study())).declaration.metrics


def merged(*layouts: Any) -> dict[str, list[str]]:
    """Category -> charts in the shown order, last first, after TensorBoard merges the layouts of several runs."""
    tag = "custom_scalars__config__"
    held = {f"run {i}": {tag: [SimpleNamespace(numpy=make_ndarray(value.tensor))]} for i, value in enumerate(layouts)}
    plugin = CustomScalarsPlugin(TBContext(data_provider=SimpleNamespace(read_tensors=lambda *_, **__: held)))
    found = plugin.layout_impl(None, "")
    return {c["title"]: [chart["title"] for chart in reversed(c["chart"])] for c in json.loads(found)["category"]}


def test_the_headline_comes_first_and_every_site_has_its_chart() -> None:
    series = ["train_loss/all", "val_loss/all", "accuracy/all", "grad_norm/all", "grad_norm/site_1"]
    charts = merged(plugins.layout(series, METRICS))
    assert next(iter(charts)) == "headline" and charts["headline"] == ["val_loss", "train_loss", "grad_norm"]
    assert charts["grad_norm"] == ["grad_norm/all", "grad_norm/site_1"] and charts["accuracy"] == ["accuracy/all"]
    assert "val_loss" not in charts, "it has no site: the headline shows it already"


def test_nothing_is_lost_when_the_layouts_of_runs_are_merged() -> None:
    """TensorBoard forgets charts that come late to a category which the first run did not have."""
    runs = [["val_loss/all"], ["saturated_fraction/all"], ["saturated_fraction/all", "saturated_fraction/site_1"]]
    charts = merged(*(plugins.layout(series, METRICS) for series in runs))
    assert set(charts["saturated_fraction"]) == {"saturated_fraction/all", "saturated_fraction/site_1"}
    assert charts["headline"] == ["val_loss"]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = planted_folder(tmp_path_factory.mktemp("planted"), seeds=3)
    return next(c for c in configurations.collect(folder, histograms=True).values() if c.spec["initializer"] == "he_normal")


def session(configuration: Configuration, factors: list[str]) -> tuple[Any, Any]:
    start, end = plugins.session(configuration, factors, "the group")
    assert (start.tag, end.tag) == (hparams_metadata.SESSION_START_INFO_TAG, hparams_metadata.SESSION_END_INFO_TAG)
    return (
        hparams_metadata.parse_session_start_info_plugin_data(start.metadata.plugin_data.content),
        hparams_metadata.parse_session_end_info_plugin_data(end.metadata.plugin_data.content),
    )


def test_factors_are_numbers_and_names(configuration: Configuration) -> None:
    start, _ = session(configuration, ["activation", "depth", "learning_rate"])
    found = {name: value.WhichOneof("kind") for name, value in start.hparams.items()}
    assert found == {"activation": "string_value", "depth": "number_value", "learning_rate": "number_value"}
    assert start.hparams["learning_rate"].number_value == configuration.spec["learning_rate"]
    assert start.group_name == "the group"


@pytest.mark.parametrize(
    ("stored", "status", "said"),
    [(3, "ok", "SUCCESS"), (3, "one nonfinite", "SUCCESS"), (3, "nonfinite", "FAILURE"), (2, "ok", "RUNNING")],
)
def test_session_status_follows_from_its_runs(configuration: Configuration, stored: int, status: str, said: str) -> None:
    ended = ["nonfinite", "ok", "ok"] if status == "one nonfinite" else [status] * stored
    _, end = session(replace(configuration, run_ids=configuration.run_ids[:stored], status=np.array(ended)), [])
    assert end.status == plugins.api_pb2.Status.Value(f"STATUS_{said}")


def buckets(counts: list[tuple[int, int]], epochs: list[float] | None = None) -> dict[int, np.ndarray]:
    """step -> left, right, count of a site's histograms, one an epoch, that have these (bin, count) and none else."""
    rows = np.zeros((len(counts), BINS), np.int64)
    for row, (place, count) in zip(rows, counts, strict=True):
        row[place] = count
    when, none = np.array(epochs if epochs is not None else range(len(rows)), float), np.zeros(0)
    made = Configuration("0" * 12, {}, 1, [], none, when, none, none, 8, histograms={"pre:site_1": rows})
    found = plugins.histograms(made)
    assert all(value.tag == "pre/site_1" for values in found.values() for value in values)
    return {step: make_ndarray(value.tensor) for step, (value,) in found.items()}


@pytest.mark.parametrize("place", [0, 5, ZERO - 1, ZERO, ZERO + 1, BINS - 1])
def test_zero_bin_is_always_present_and_separate(place: int) -> None:
    found = buckets([(place, 7)])[0]
    assert len(found) == abs(place - ZERO) + 1
    np.testing.assert_array_equal(found[:, 0], edges()[min(place, ZERO) : max(place, ZERO) + 1].astype(np.float32))
    np.testing.assert_array_equal(found[1:, 0], found[:-1, 1])
    (zero,) = found[(found[:, 0] < 0) & (found[:, 1] > 0)]
    assert zero[2] == (7 if place == ZERO else 0) and found[:, 2].sum() == 7
    assert list(zero[:2]) == [-(2.0**-24), 2.0**-24]


@pytest.mark.parametrize("span", [(-1.0, 1.0), (0.0, 1.0), (0.0, 6.0), (-1.0, 2.0), (-6.0, 0.0), (2.0, 5.0), (0.0, 1e-9)])
@pytest.mark.parametrize("zeros", [0, 9])
def test_linear_buckets_cover_the_range_and_keep_every_count(span: tuple[float, float], zeros: int) -> None:
    counts = np.arange(1, BINS + 1)
    counts[ZERO] = zeros
    found = plugins._buckets(counts, span).astype(float)
    assert (found[:, 0] < found[:, 1]).all() and (found[1:, 0] >= found[:-1, 1]).all()
    assert found[:, 2].sum() == pytest.approx(counts.sum())
    about = found[(found[:, 0] < 0) & (found[:, 1] > 0)]
    assert about[:, 2].tolist() == ([zeros] if zeros or span[0] <= 0 <= span[1] else [])
    whole = found[np.abs(found[:, :2]).min(axis=1) > (span[1] - span[0]) / 32]
    assert (whole[:, 1] - whole[:, 0]) == pytest.approx((span[1] - span[0]) / 64, rel=1e-4)


def test_epochs_without_counts_are_left_out() -> None:
    assert list(buckets([(3, 1), (3, 0), (3, 2)])) == [0, 2]


def test_last_epoch_with_counts_on_a_step_is_shown() -> None:
    found = buckets([(ZERO, 1), (ZERO, 2), (ZERO, 3), (ZERO, 0)], [0, 0.25, 0.5, 1])
    assert {step: rows[0, 2] for step, rows in found.items()} == {0: 1, 1: 3}


def test_at_most_a_hundred_epochs_are_written_with_first_and_last() -> None:
    steps = list(buckets([(ZERO, 1)] * 251))
    assert len(steps) == 100 and (steps[0], steps[-1]) == (0, 250)
    assert set(np.diff(steps)) == {2, 3}
    assert list(buckets([(ZERO, 1)] * 100)) == list(range(100))
