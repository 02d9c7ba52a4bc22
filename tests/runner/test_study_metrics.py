"""Metrics of a study: default, named and optional ones, in its settings, its declaration and its columns."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_study
from metric_reference import NAMES

from relu_study import Claim, Figure, Study, Table, load
from relu_study.components.metrics.metric import default_metrics
from relu_study.components.registry import metrics
from relu_study.engine import train_tile
from relu_study.engine.state import MeasureConfig
from relu_study.errors import UserError
from relu_study.runner import prepare, run
from relu_study.study.study import Experiment

STUDY = replace(
    small_study.study,
    experiments=[Experiment("main", {"relu": small_study.base.replace(epochs=1), "tanh": small_study.arms["tanh"]})],
    metrics=(),
)
EXTRA = ("default", "zero_entries", "update_ratio")


def prepared(study: Study) -> prepare.Job[Any, Any]:
    return prepare.prepare(study, None, MeasureConfig())


def columns(study: Study) -> list[str]:
    return list(prepared(study).declaration["columns"])


def test_study_without_metrics_measures_the_default_ones_and_histograms() -> None:
    job = prepared(STUDY)
    assert job.measure_config == MeasureConfig()
    assert job.provenance["metrics"] is None and job.provenance["measured"] == NAMES
    measured = {name.partition("/")[0] for name in columns(STUDY)}
    assert measured == {*NAMES, "revived_fraction", "certified_revived_fraction"}
    assert list(job.declaration["metrics"]) == sorted(measured)


def test_default_names_the_same_as_no_metrics() -> None:
    named, plain = (prepared(study) for study in (replace(STUDY, metrics=("default",)), STUDY))
    assert named.measure_config == plain.measure_config
    for part in ("declaration", "provenance"):
        assert getattr(named, part) == getattr(plain, part)


def test_optional_metrics_add_to_the_default_ones() -> None:
    job = prepared(replace(STUDY, metrics=EXTRA))
    assert job.measure_config.histograms
    assert job.measure_config.metrics == tuple(sorted([*NAMES, "update_ratio", "zero_entries"]))
    added = {f"{name}/{site}" for name in EXTRA[1:] for site in ("all", "site_1")}
    assert set(columns(replace(STUDY, metrics=EXTRA))) == {*columns(STUDY), *added}
    assert job.provenance["measured"] == list(job.measure_config.metrics)


def test_named_metrics_alone_leave_out_default_ones_and_histograms() -> None:
    job = prepared(replace(STUDY, metrics=("val_loss", "grad_ratio"), claims=(), figures=()))
    assert job.measure_config.metrics == ("dead_fraction", "grad_ratio", "val_loss") and not job.measure_config.histograms
    every_default = prepared(replace(STUDY, metrics=tuple(NAMES)))
    assert every_default.measure_config.metrics == default_metrics() and not every_default.measure_config.histograms


def test_unknown_metric_names_optional_ones_and_default() -> None:
    with pytest.raises(UserError, match=r"unknown metric of study small 'zero_entrys'. Did you mean zero_entries"):
        prepared(replace(STUDY, metrics=("zero_entrys",)))
    with pytest.raises(UserError, match=r"unknown metric of study small 'defaults'. Did you mean default"):
        prepared(replace(STUDY, metrics=("defaults",)))


@pytest.mark.parametrize(
    ("outputs", "user"),
    [
        ({"claims": [Claim("Z", "fewer zeros", "zero_entries", "tanh", "relu", "less", margin=0.1)]}, "claim Z"),
        ({"tables": [Table("zeros", "Zeros.", ("main",), ("zero_entries/site_1@0",))]}, "table zeros"),
        ({"figures": [Figure("zeros", "Zeros.", "curves", ("main",), metrics=("zero_entries/*",))]}, "figure zeros"),
    ],
)
def test_output_of_an_optional_metric_that_is_not_measured_names_the_cure(outputs: dict[str, Any], user: str) -> None:
    study = replace(STUDY, **outputs)
    cure = re.escape("Declare metrics=('default', 'zero_entries').")
    with pytest.raises(UserError, match=f"{user} reads zero_entries, an optional metric that study small .* {cure}"):
        prepared(study)
    prepared(replace(study, metrics=("default", "zero_entries")))
    with pytest.raises(UserError, match=re.escape("Declare metrics=('val_loss', 'zero_entries').")):
        prepared(replace(study, metrics=("val_loss",)))


def test_optional_metrics_reach_the_csv_files(tmp_path: Path) -> None:
    study = replace(STUDY, seeds=2, metrics=("val_loss", *EXTRA[1:]))
    run.run(study, tmp_path, probe_examples=100, val_examples=50)
    found = load(tmp_path)
    assert found.runs["zero_entries/all"].between(0, 1).all() and (found.runs["update_ratio/site_1"] > 0).all()
    ratios = found.curves[(found.curves.metric == "update_ratio") & (found.curves.epoch == 0)]["value"]
    assert ratios.isna().all()
    assert not {name for name in found.runs.columns if name.partition("/")[0] in {"grad_ratio", "post_mean"}}


def test_optional_metrics_change_no_bit_of_the_default_ones() -> None:
    spec = [small_study.base.replace(depth=2, epochs=1, seed=seed) for seed in (0, 1)]
    plain, every = (
        train_tile.train_tile(spec, 2, measure_config=MeasureConfig(200, 50, metrics=names)) for names in (None, tuple(metrics))
    )
    assert {name.partition("/")[0].removeprefix("metric:") for name in every.keys() - plain.keys()} == {
        name for name in metrics if not metrics[name].default
    }
    assert all(np.array_equal(plain[name], every[name], equal_nan=plain[name].dtype.kind == "f") for name in plain)
