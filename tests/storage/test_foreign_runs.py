"""Metrics of other tools: named columns of CSV files, blank and nonfinite cells, and errors that name the line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from relu_study.errors import UserError
from relu_study.storage.foreign_runs import foreign_runs, metric_key, parse_pairs, read_metric_csv

COLUMNS = {"epoch": "step", "train_loss": "loss"}


def written(folder: Path, *lines: str) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_one_run_without_a_column_of_runs(tmp_path: Path) -> None:
    found = read_metric_csv(written(tmp_path, "step,loss,other", "0,2.0,a", "1,1.5,b", "2,1.0,c"), COLUMNS, 2.0)
    assert list(found.histories) == ["log"] and found.metrics == {"train_loss"} and (found.dropped, found.skipped) == (0, ())
    history = found.histories["log"].history
    assert history.overall("train_loss").tolist() == [[2.0, 1.5, 1.0]] and history.epochs.tolist() == [0, 1, 2]
    assert history.finite.all() and history.sites == () and history.constant_loss.tolist() == [2.0] and history.total_epochs == 2


def test_runs_of_different_lengths_and_order(tmp_path: Path) -> None:
    path = written(tmp_path, "name,step,loss,g1,g2", "b,2,1,.1,.2", "a,0,5,1,2", "b,1,3,.3,.4", "a,4,4,3,4")
    columns = {"epoch": "step", "run": "name", "train_loss": "loss", "grad_norm/in": "g1", "grad_norm/out": "g2"}
    found = read_metric_csv(path, columns)
    assert list(found.histories) == ["b", "a"]
    one, other = (found.histories[name].history for name in ("b", "a"))
    assert one.epochs.tolist() == [1, 2] and other.epochs.tolist() == [0, 4]
    assert one.total_epochs == other.total_epochs == 4 and one.sites == ("in", "out")
    np.testing.assert_array_equal(one.by_site("grad_norm"), [[[0.3, 0.4], [0.1, 0.2]]])
    assert np.isnan(one.constant_loss).all()


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-Infinity"])
def test_a_nonfinite_cell_ends_a_run(text: str, tmp_path: Path) -> None:
    history = read_metric_csv(written(tmp_path, "step,loss", "0,2", f"1,{text}", "2,1"), COLUMNS).histories["log"].history
    assert history.finite.tolist() == [[True, False, False]]
    assert np.isnan(history.overall("train_loss")[0, 1:]).all()


def test_a_blank_cell_is_not_measured(tmp_path: Path) -> None:
    path = written(tmp_path, "step,loss,g", "0,2,", "1,,1", "2,1,1", "3, ,2", "4,0.5,3")
    found = read_metric_csv(path, COLUMNS | {"grad_norm/a": "g"})
    history = found.histories["log"].history
    assert history.epochs.tolist() == [2, 4] and history.finite.all() and found.dropped == 3


def test_a_run_without_any_value_is_skipped(tmp_path: Path) -> None:
    found = read_metric_csv(written(tmp_path, "step,loss,r", "0,2,a", "0,,b"), COLUMNS | {"run": "r"})
    assert list(found.histories) == ["a"] and found.skipped == ("b",)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes("step,loss\n0,2\n".encode("utf-8-sig"))
    assert read_metric_csv(path, COLUMNS).histories["log"].history.epochs.tolist() == [0]


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (["step,loss", "0,2"], {"train_loss": "loss"}, "Add epoch=COLUMN"),
        (["step,loss", "0,2"], {"epoch": "step"}, "no metric is named"),
        (
            ["step,loss", "0,2"],
            {"epoch": "steps", "train_loss": "loss"},
            r"unknown column of .*log.csv 'steps'. Did you mean step",
        ),
        (["step,loss", "0,2"], {"epoch": "step", "tain_loss": "loss"}, "unknown metric 'tain_loss'. Did you mean train_loss"),
        (["step,loss", "0,2", "1,two"], COLUMNS, r"log.csv, line 3: loss has 'two', which is not a number"),
        (["step,loss", ",2"], COLUMNS, r"line 2: step has '', which is not a number"),
        (["step,loss", "nan,2"], COLUMNS, r"line 2: step is nan. Give each row a finite epoch"),
        (["step,loss", "0,2", "0,3"], COLUMNS, r"line 3: run 'log' has step 0 twice. Name the column of runs with run=COLUMN"),
        (["step,loss"], COLUMNS, "has no rows"),
        (["step,loss,loss", "0,1,2"], COLUMNS, "has several columns 'loss'"),
        (["step,loss", "0,"], COLUMNS, "has no value in loss"),
        (
            ["step,loss,g", "0,2,", "1,,3"],
            COLUMNS | {"grad_norm/a": "g"},
            "no epoch with a value of each of train_loss/all, grad_norm/a",
        ),
        (["", ""], COLUMNS, r"unknown column of .*log.csv 'step'. There is none"),
        (["step,loss", '0,"2'], COLUMNS, "is not a readable CSV file"),
        (["step,loss", "0,2", "", "1,2,3"], COLUMNS, r"line 4: it has 3 cells, and the header has 2"),
    ],
)
def test_errors_name_the_problem(lines: list[str], columns: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_metric_csv(written(tmp_path, *lines), columns)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"There is no file {tmp_path / 'no.csv'}")):
        read_metric_csv(tmp_path / "no.csv", COLUMNS)


def test_pairs_are_separated_by_spaces_or_commas() -> None:
    assert parse_pairs(["epoch=step,train_loss=loss", "run=a"], "--columns") == {
        "epoch": "step",
        "train_loss": "loss",
        "run": "a",
    }
    assert parse_pairs(["train_loss=mean, all"], "--columns") == {"train_loss": "mean, all"}
    for words, message in ((["loss"], "is not NAME=VALUE"), (["a="], "is not NAME=VALUE"), (["a=b", "a=c"], "names a twice")):
        with pytest.raises(UserError, match=message):
            parse_pairs(words, "--columns")


def test_a_metric_without_a_site_is_of_the_network() -> None:
    assert metric_key("train_loss") == "train_loss/all" and metric_key("grad_norm/a/b") == "grad_norm/a/b"


def test_points_of_several_runs() -> None:
    found = foreign_runs({"a": {"train_loss/all": {0.0: 1.0, 3.0: float("inf")}}, "b": {}}, 0.5)
    assert found.skipped == ("b",) and found.histories["a"].history.finite.tolist() == [[True, False]]
