"""The command diagnose: findings, exit statuses for CI, CSV, runs of other tools, and one-line errors without JAX."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import commands
from known_results import UNITS, planted_arms, planted_folder, planted_study
from monitored import NAN, PARAMS, history, killed
from paths import ROOT
from tensorboardX import SummaryWriter

from relu_study.cli.diagnose_command import SICK
from relu_study.diagnosis import error_rates
from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.diagnose import OURS
from relu_study.report.report import report
from relu_study.storage.manifest import read_manifest, write_manifest

SEEDS = 4


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_folder(tmp_path_factory.mktemp("diagnose") / "planted", SEEDS, figures=False)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def table(out: str) -> list[str]:
    """Return the lines of the table, without its header."""
    return out.split("\n\n")[0].splitlines()[1:]


def test_findings_with_their_evidence(planted: Path, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_rates, "_packaged", dict)
    status, out, err = here("diagnose", str(planted), "--where", "arm=stuck", "--detector", "dying")
    assert status == 0 and not err
    header, *lines = out.split("\n\n")[0].splitlines()
    assert header.split() == ["configuration", "target", "problem", "seeds", "onset", "site", "units", "evidence"]
    assert len(lines) == 2 and [line.split()[:3] for line in lines] == [["stuck", t, "dying"] for t in ("wave", "coin_flip")]
    for line in lines:
        for part in (
            f"2 of {SEEDS} [",
            "site_2",
            f"{UNITS} of {UNITS}",
            "score of dead units: median ",
        ):
            assert part in line
    assert "0 of 2 configurations: no finding." in out and "dying: Look at dead_fraction" in out
    assert "Error rates of dying: not measured." in out


def test_the_error_rates_of_a_measured_rule(planted: Path, here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"dying": {"recall": [0.9, 0.8, 0.95], "false_alarms": [0.02, 0.0, 0.1], "configurations": 120}}
    monkeypatch.setattr(error_rates, "_packaged", lambda: rates)
    _, out, _ = here("diagnose", str(planted), "--where", "arm=stuck", "target=wave", "--csv", "found.csv")
    assert out.splitlines()[0].endswith("recall, false alarms")
    dying, other = table(out)
    assert dying.endswith("0.90, 0.02") and other.endswith("not measured")
    expected = "recall 0.90 [0.80, 0.95], false alarms 0.02 [0.00, 0.10]"
    assert f"Error rates of dying on 120 labelled configurations: {expected}." in out
    found = {row["detector"]: row for row in rows(Path("found.csv").read_text())}
    assert (found["dying"]["recall"], found["dying"]["recall_lo"], found["dying"]["false_alarms_hi"]) == ("0.9", "0.8", "0.1")
    assert found["vanishing"]["recall"] == ""


def test_check_exits_with_3_for_a_finding_only(planted: Path, here: Any) -> None:
    where = ["--where", "target=wave", "--detector", "dying"]
    sick, healthy = [*where[:2], "arm=stuck", *where[2:]], [*where[:2], "arm=baseline", *where[2:]]
    assert here("diagnose", str(planted), "--check", *sick)[0] == SICK == 3
    status, out, _ = here("diagnose", str(planted), "--check", *healthy)
    assert status == 0 and out.startswith("1 of 1 configuration: no finding.\n")
    assert here("diagnose", str(planted), *sick)[0] == 0


def test_the_csv_has_every_configuration_and_detector(planted: Path, here: Any, tmp_path: Path) -> None:
    status, out, _ = here("diagnose", str(planted), "--csv", "health.csv")
    assert status == 0 and out.splitlines()[-1] == "health.csv"
    found = rows((tmp_path / "health.csv").read_text())
    configurations = {spec.config_id for spec in planted_arms(planted_study(SEEDS)).values()}
    assert {(row["config_id"], row["detector"]) for row in found} == {(c, d) for c in configurations for d in OURS}
    sick = [row for row in found if row["n_sick"] != "0"]
    assert len(sick) == len(table(out)) > 0 and all(row["evidence"] and row["advice"] for row in sick)
    assert all(not row["evidence"] for row in found if row not in sick)
    first = (tmp_path / "health.csv").read_bytes()
    here("diagnose", str(planted), "--csv", "health.csv")
    assert (tmp_path / "health.csv").read_bytes() == first


def test_rules_of_other_tools_have_a_column(planted: Path, here: Any) -> None:
    _, out, _ = here("diagnose", str(planted), "--detector", "sagemaker_exploding_tensor", "exploding")
    assert "detector" in out.splitlines()[0]
    assert [line.split()[5:7] for line in table(out)] == [["exploding", "sagemaker_exploding_tensor"], ["exploding"] * 2]


def test_a_clone_is_diagnosed_at_the_last_epoch(planted: Path, here: Any, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(planted, tmp_path / "whole"))
    report(whole)
    shutil.rmtree(whole / "raw")
    _, out, _ = here("diagnose", "whole")
    assert "Each run is diagnosed at its last epoch" not in out
    (whole / "health.csv").unlink()
    status, out, _ = here("diagnose", "whole", "--check", "--detector", "dying")
    assert status == SICK and "Each run is diagnosed at its last epoch, since raw/ is missing" in out


def test_runs_that_are_not_stored_are_counted(here: Any, tmp_path: Path) -> None:
    lost = planted_arms(planted_study(SEEDS))["stuck", "wave"]
    planted_folder(tmp_path / "part", SEEDS, left_out=(lost.replace(seed=0).run_id,))
    _, out, _ = here("diagnose", "part", "--where", "arm=stuck", "target=wave", "--detector", "dying")
    assert "2 of 3 [" in out and f"Not stored, and not diagnosed: 1 of {SEEDS} runs." in out


def test_without_an_applicable_detector_there_is_no_result(planted: Path, here: Any) -> None:
    status, out, err = here("diagnose", str(planted), "--check", "--detector", "keras_contrib_dead_relu")
    assert status == 2 and not out and len(err.splitlines()) == 1
    assert "no detector can be applied" in err and "silent_fraction is not recorded" in err


@pytest.mark.filterwarnings("ignore::relu_study.monitor.monitor.MonitorWarning")
def test_a_monitored_training_is_one_configuration(here: Any, tmp_path: Path) -> None:
    silent = killed(PARAMS, "one", *range(6))
    history(tmp_path / "watched", (0, PARAMS), (10, silent), (20, silent))
    status, out, _ = here("diagnose", "watched", "--check", "--detector", "dying", "exploding")
    (line,) = table(out)
    assert status == SICK and line.split()[:5] == ["watched", "dying", "1", "of", "1"]
    assert " 10  one   6 of 6  score of dead units: " in line and "Onsets are steps." in out
    assert "configuration  problem" in out
    history(tmp_path / "lost", (0, PARAMS), (5, NAN))
    here("diagnose", "lost", "--detector", "exploding", "--csv", "found.csv")
    (row,) = rows((tmp_path / "found.csv").read_text())
    assert (row["n_sick"], row["onset"], row["score"]) == ("1", "5", "inf")
    status, _, err = here("diagnose", "watched", "--where", "arm=a")
    assert status == 2 and "a monitored training has one" in err


# ------------------------------------------------------------------------------------- other tools


@pytest.fixture
def log(tmp_path: Path) -> Path:
    text = "name,step,loss\nfine,0,1\nfine,1,0.5\nfine,2,0.1\nbad,0,1\nbad,1,nan\nbad,2,nan\n"
    (tmp_path / "log.csv").write_text(text)
    return tmp_path / "log.csv"


@pytest.mark.usefixtures("log")
def test_a_csv_file_of_another_tool(here: Any) -> None:
    columns = ["--columns", "epoch=step,train_loss=loss", "run=name", "--constant-loss", "1"]
    status, out, err = here("diagnose", "--from-csv", "log.csv", *columns, "--check")
    assert status == SICK and not err
    exploding, learning = table(out)
    assert exploding.split()[:3] == ["bad", "exploding", "1"] and "infinite" in exploding
    assert learning.split()[:3] == ["bad", "not", "learning"] or learning.split()[:2] == ["bad", "not_learning"]
    assert "1 of 2 runs: no finding." in out
    assert "columns read: epoch = step, train_loss = loss, run = name." in out
    assert "dying abstains in 2 of 2 runs: dead_fraction is not recorded." in out
    assert "vanishing abstains in 2 of 2 runs: grad_norm and weight_norm are not recorded." in out


@pytest.mark.usefixtures("log")
def test_left_out_epochs_are_counted(here: Any, tmp_path: Path) -> None:
    (tmp_path / "gaps.csv").write_text("step,loss\n0,1\n1,\n2,0.5\n")
    _, out, _ = here("diagnose", "--from-csv", "gaps.csv", "--columns", "epoch=step", "train_loss=loss")
    assert "Left out" not in out, "a row without any value is no measurement"
    (tmp_path / "gaps.csv").write_text("step,loss,g\n0,1,1\n1,,1\n2,0.5,1\n")
    _, out, _ = here("diagnose", "--from-csv", "gaps.csv", "--columns", "epoch=step,train_loss=loss,grad_norm/a=g")
    assert "Left out: 1 epoch without a value of every named metric." in out


def test_a_tensorboard_folder_of_another_tool(here: Any, tmp_path: Path) -> None:
    for run, values in {"fine": [1.0, 0.5, 0.1], "bad": [1.0, 10 * detectors["exploding"].threshold, float("inf")]}.items():
        with SummaryWriter(str(tmp_path / "logs" / run)) as writer:
            for step, value in enumerate(values):
                writer.add_scalar("loss/train", value, step)
    with SummaryWriter(str(tmp_path / "logs" / "eval")) as writer:
        writer.add_scalar("score", 1.0, 0)
    words = ["diagnose", "--from-tensorboard", "logs", "--tags", "train_loss=loss/train*", "--csv", "out.csv"]
    status, out, err = here(*words)
    assert status == 0 and not err
    assert table(out)[0].split()[:3] == ["bad", "exploding", "1"] and "fine" not in "".join(table(out))
    assert "tags read: train_loss = loss/train*." in out
    assert "Left out: 1 run without any of these tags, such as eval." in out
    assert {row["name"] for row in rows((tmp_path / "out.csv").read_text())} == {"bad", "fine"}


# ----------------------------------------------------------------------------------------- errors


ERRORS = [
    (["diagnose"], "one of DIR, --from-csv and --from-tensorboard, not none"),
    (["diagnose", "a", "--from-csv", "b"], "not DIR and --from-csv"),
    (["diagnose", "nowhere"], "There is no folder nowhere"),
    (["diagnose", str(ROOT / "tests")], "no manifest.json"),
    (["diagnose", str(ROOT / "results" / "born_dead")], "draw study"),
    (["diagnose", str(ROOT / "results" / "article_rows"), "--detector", "dyng"], "Did you mean dying"),
    (["diagnose", str(ROOT / "results" / "article_rows"), "--where", "arm=x"], "unknown value of arm"),
    (["diagnose", str(ROOT / "results" / "article_rows"), "--where", "seed=0"], "seed is of single runs"),
    (["diagnose", str(ROOT / "results" / "article_rows"), "--columns", "epoch=a"], "--columns applies to --from-csv only"),
    (["diagnose", str(ROOT / "results" / "article_rows"), "--constant-loss", "1"], "--constant-loss does not apply to DIR"),
    (["diagnose", "--from-csv", "log.csv"], "--from-csv needs --columns"),
    (["diagnose", "--from-csv", "log.csv", "--columns", "epoch"], "is not NAME=VALUE"),
    (["diagnose", "--from-csv", "log.csv", "--columns", "epoch=a,train_loss=b"], "There is no file log.csv"),
    (["diagnose", "--from-csv", "log.csv", "--columns", "epoch=a", "--where", "arm=b"], "--where applies to DIR only"),
    (["diagnose", "--from-tensorboard", "logs"], "--from-tensorboard needs --tags"),
    (["diagnose", "--from-tensorboard", "logs", "--tags", "train_loss=a"], "no TensorBoard event files"),
]


def test_errors_are_one_line_and_do_not_import_jax(tmp_path: Path) -> None:
    for (words, hint), done in zip(ERRORS, commands([words for words, _ in ERRORS], tmp_path), strict=True):
        assert done.status == 2 and hint in done.err and len(done.err.splitlines()) == 1, (words, done.err)
        assert not done.out and not done.imported_jax, words


def test_committed_results_are_diagnosed_without_jax(tmp_path: Path) -> None:
    (done,) = commands([["diagnose", str(ROOT / "results" / "article_rows")]], tmp_path)
    assert done.status == 0 and "configurations: no finding." in done.out and not done.imported_jax


def test_a_damaged_tile_and_an_empty_study_are_named(planted: Path, here: Any, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(planted, tmp_path / "damaged"))
    tile = next((damaged / "raw").glob("tile-*.npz"))
    tile.write_bytes(tile.read_bytes()[:-9])
    status, out, err = here("diagnose", "damaged")
    assert status == 2 and not out and tile.name in err and len(err.splitlines()) == 1
    shutil.rmtree(damaged / "raw")
    status, _, err = here("diagnose", "damaged")
    assert status == 2 and "runs.csv is missing" in err and len(err.splitlines()) == 1


def test_selected_configurations_without_runs_are_refused(here: Any, tmp_path: Path) -> None:
    spec = planted_arms(planted_study(SEEDS))["stuck", "wave"]
    planted_folder(tmp_path / "part", SEEDS, left_out=tuple(spec.replace(seed=s).run_id for s in range(SEEDS)))
    status, _, err = here("diagnose", "part", "--where", "arm=stuck", "target=wave")
    assert status == 2 and "has no stored run of these configurations" in err


def test_a_changed_health_csv_is_named(planted: Path, here: Any, tmp_path: Path) -> None:
    clone = Path(shutil.copytree(planted, tmp_path / "clone"))
    report(clone)
    shutil.rmtree(clone / "raw")
    (clone / "health.csv").write_text((clone / "health.csv").read_text().replace(",dying,", ",vanishing,", 1))
    status, _, err = here("diagnose", "clone")
    assert status == 2 and "health.csv" in err and "SHA256SUMS" in err


def test_an_invalid_declaration_is_named(planted: Path, here: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planted, tmp_path / "other"))
    manifest = read_manifest(folder)
    write_manifest(folder, manifest | {"declaration": {**manifest["declaration"], "configurations": []}})
    status, _, err = here("diagnose", "other")
    assert status == 2 and "has an invalid declaration" in err
