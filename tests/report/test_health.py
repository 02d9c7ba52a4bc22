"""health.csv and the Health section: rows by hand from the planted flags, the same bytes in a clone, and abstentions."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_results import UNITS, dead_flags, nonfinite, planted_arms, planted_folder, planted_study

from relu_study.diagnosis.detector import detectors
from relu_study.diagnosis.diagnose import ADVICE, OURS
from relu_study.diagnosis.ours import NUMBERS
from relu_study.errors import UserError
from relu_study.report.health import TEXTS, closing_lines, evidence, health, health_section, labels, read_health, recorded
from relu_study.report.report import report
from relu_study.stats import intervals
from relu_study.storage.csv_files import csv_text, read_csv
from relu_study.storage.declaration import read_declared
from relu_study.storage.histories import stored_histories
from relu_study.storage.manifest import read_manifest, write_manifest
from relu_study.storage.schema import COLUMNS

SEEDS, EPOCHS = 4, (0, 1, 2, 5)
ARMS = planted_arms(planted_study(SEEDS, EPOCHS))
SITES = {key: [f"site_{k + 1}" for k in range(spec.depth)] for key, spec in ARMS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = planted_folder(tmp_path_factory.mktemp("health") / "planted", SEEDS, EPOCHS)
    manifest = read_manifest(path)
    manifest["declaration"].update(figures=[], tables=[], sections=[])
    write_manifest(path, manifest)
    report(path)
    return path


@pytest.fixture
def clone(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "clone", ignore=shutil.ignore_patterns("raw", "tensorboard")))


def row(folder: Path, arm: str, target: str, detector: str) -> dict[Any, Any]:
    frame = read_csv(folder / "health.csv", TEXTS)
    of = frame[(frame["config_id"] == ARMS[arm, target].config_id) & (frame["detector"] == detector)]
    assert len(of) == 1
    return of.iloc[0].to_dict()


def test_one_row_for_each_configuration_and_detector(folder: Path) -> None:
    frame = read_csv(folder / "health.csv", TEXTS)
    assert tuple(frame.columns) == COLUMNS["health"]
    pairs = set(zip(frame["config_id"], frame["detector"], strict=True))
    assert pairs == {(spec.config_id, name) for spec in ARMS.values() for name in OURS} and len(frame) == len(pairs)
    assert set(frame["n"]) == {SEEDS}


@pytest.mark.parametrize(
    ("arm", "target"), [("stuck", "wave"), ("stuck", "coin_flip"), ("baseline", "wave"), ("shallow", "wave")]
)
def test_dying_seeds_follow_the_flags(folder: Path, arm: str, target: str) -> None:
    threshold, numbers = detectors["dying"].threshold, NUMBERS["dying"]
    sick = []
    for seed in range(SEEDS):
        flags = [dead_flags(arm, target, seed, site, len(EPOCHS))[-1] for site in SITES[arm, target]]
        worst = max(np.mean(dead) for dead in flags)
        score = max(np.mean(np.concatenate(flags)), worst - numbers["margin"]) if worst >= numbers["site"] else 0
        sick += [seed] if score >= threshold else []
    found = row(folder, arm, target, "dying")
    assert (found["n_sick"], found["n_scored"], found["share"]) == (len(sick), SEEDS, len(sick) / SEEDS)
    low, high = intervals.wilson(len(sick), SEEDS)
    np.testing.assert_allclose([found["ci_lo"], found["ci_hi"]], [low, high], rtol=1e-8)
    if not sick:
        assert found["site"] == "" and math.isnan(found["onset"]) and math.isnan(found["score"])


def test_site_units_and_onset_of_dying_seeds(folder: Path) -> None:
    found = row(folder, "stuck", "wave", "dying")
    assert found["site"] == "site_2" and (found["units"], found["site_units"]) == (UNITS, UNITS)
    assert (
        found["score"] == pytest.approx(1 - NUMBERS["dying"]["margin"])
        and found["onset"] == EPOCHS[2]
        and found["threshold"] == detectors["dying"].threshold
    )


def test_a_nonfinite_run_explodes_at_its_first_bad_epoch(folder: Path) -> None:
    assert nonfinite("he_normal", "wave", 1)
    found = row(folder, "he_normal", "wave", "exploding")
    assert found["n_sick"] == 1 and found["onset"] == EPOCHS[2] and found["score"] == np.inf and found["site"] == ""
    assert "infinite" in evidence(found) and "median" not in evidence(found)
    assert row(folder, "baseline", "wave", "exploding")["n_sick"] == 0


def test_a_configuration_without_a_score_has_no_share(folder: Path) -> None:
    found = row(folder, "shallow", "wave", "vanishing")  # one site: nothing to compare
    assert found["n_scored"] == 0 and found["n_sick"] == 0 and math.isnan(found["share"])


def test_the_page_has_each_finding_and_the_rest_in_a_line(folder: Path) -> None:
    manifest = read_declared(folder)
    found = read_health(folder, manifest)
    text = (folder / "report.md").read_text()
    assert health_section(found, manifest.declaration) in text
    before, section = text.split("## Health\n")
    section = section.split("\n## ")[0]
    assert "How this page was made" not in before
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    named = labels(manifest.declaration)
    assert [tuple(cells[:3]) for cells in rows] == [(*named[r["config_id"]], r["problem"]) for r in found.rows()]
    stuck = next(cells for cells in rows if cells[:3] == ["stuck", "wave", "dying"])
    low, high = (f"{end:.2f}" for end in intervals.wilson(2, SEEDS))
    assert stuck[3] == "site_2" and stuck[5:] == [f"2 of {SEEDS} [{low}, {high}]", f"{UNITS} of {UNITS}", f"{EPOCHS[2]}"]
    healthy = len({spec.config_id for spec in ARMS.values()}) - len({r["config_id"] for r in found.rows()})
    assert f"- {healthy} of {found.configurations} configurations: no finding." in section
    assert all(
        ADVICE[problem].replace("_", r"\_") in section.replace("_", r"\_") for problem in {r["problem"] for r in found.rows()}
    )
    assert "vanishing abstains in 2 of 20 configurations." in section  # the two shallow ones


def test_two_labels_of_one_configuration_are_joined(folder: Path) -> None:
    named = labels(read_declared(folder).declaration)
    assert named[ARMS["he_normal", "wave"].config_id] == ("he_normal / relu, rate=0.001", "wave")
    assert named[ARMS["baseline", "wave"].config_id] == ("baseline", "wave")


def test_the_same_bytes_again_and_in_a_clone(folder: Path, clone: Path) -> None:
    names = ("health.csv", "report.md", "report.html", "SHA256SUMS")
    before = {name: (folder / name).read_bytes() for name in names}
    report(folder)
    report(clone)
    for name in names:
        assert (folder / name).read_bytes() == (clone / name).read_bytes() == before[name]
    assert "health.csv" in (folder / "SHA256SUMS").read_text()


def test_a_clone_without_health_csv_is_diagnosed_at_the_last_epoch(folder: Path, clone: Path) -> None:
    (clone / "health.csv").unlink()
    manifest = read_declared(clone)
    found, whole = read_health(clone, manifest), read_health(folder, manifest)
    assert found.last_only and not whole.last_only
    dying, full = (h.frame[h.frame["detector"] == "dying"].set_index("config_id") for h in (found, whole))
    assert dying[["n_sick", "site"]].equals(full[["n_sick", "site"]]) and dying["onset"].isna().all()
    exploding = found.frame[found.frame["detector"] == "exploding"].set_index("config_id")
    config_id = ARMS["he_normal", "wave"].config_id
    assert (exploding["n_sick"][config_id], exploding["onset"][config_id]) == (1, EPOCHS[2])
    assert exploding["n_sick"].sum() == 1
    report(clone)
    text = (clone / "report.md").read_text()
    assert (
        "Each run is diagnosed at its last epoch" in text and "[health.csv]" not in text and not (clone / "health.csv").exists()
    )
    assert "Each run is diagnosed at its last epoch" not in (folder / "report.md").read_text()


def test_rows_of_health_csv_are_those_of_raw(folder: Path, clone: Path) -> None:
    manifest = read_declared(folder)
    read, computed = read_health(clone, manifest), read_health(folder, manifest)
    assert not read.last_only and csv_text(read.frame) == csv_text(computed.frame)
    some = [ARMS["stuck", "wave"].config_id]
    assert set(read_health(clone, manifest, only=some).frame["config_id"]) == set(some)
    assert list(read_health(clone, manifest, ["dying"]).frame["detector"].unique()) == ["dying"]


def test_other_detectors_or_thresholds_are_not_read_from_health_csv(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_declared(clone)
    assert read_health(clone, manifest, ["sagemaker_exploding_tensor"]).last_only
    entry = detectors["dying"]
    monkeypatch.setitem(detectors._entries, "dying", replace(entry, threshold=entry.threshold / 2))
    assert read_health(clone, manifest).last_only and not read_health(clone, manifest, ["exploding"]).last_only


def test_an_unrecorded_metric_is_named(folder: Path) -> None:
    manifest = read_declared(folder)
    histories, _ = stored_histories(folder, manifest)
    found = health(histories, recorded(manifest.declaration), ["keras_contrib_dead_relu"])
    total = len({spec.config_id for spec in ARMS.values()})
    assert closing_lines(found) == [
        f"{total} of {total} configurations: no finding.",
        f"keras_contrib_dead_relu abstains in {total} of {total} configurations: silent_fraction is not recorded.",
    ]


def test_an_unknown_detector_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"unknown detector 'dyng'\. Did you mean dying"):
        read_health(folder, read_declared(folder), ["dyng"])


def test_a_page_of_a_study_with_one_target_has_no_target_column(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "one", ignore=shutil.ignore_patterns("tensorboard")))
    manifest = read_manifest(path)
    entries = [e for e in manifest["declaration"]["configurations"] if e["spec"]["target"] == "wave"]
    manifest["declaration"].update(configurations=entries)
    write_manifest(path, manifest)
    report(path)
    assert "| arm | problem | site | evidence | seeds | units | onset |" in (path / "report.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (ARMS["stuck", "wave"].config_id, "0" * 12, "the unknown configuration '000000000000'"),
        (",dying,dying,", ",dying,dyng,", "the unknown detector 'dyng'"),
        (",dying,dying,", ",exploding,dying,", "a problem is not that of its detector"),
        (",dying,dying,4,", ",dying,dying,4.5,", "its numbers of runs are not whole"),
    ],
)
def test_a_forged_health_csv_is_refused(clone: Path, old: str, new: str, reason: str) -> None:
    (clone / "SHA256SUMS").unlink()
    path = clone / "health.csv"
    path.write_text(path.read_text().replace(old, new))
    for use in (report, lambda folder: read_health(folder, read_declared(folder))):
        with pytest.raises(UserError, match=rf"health\.csv is corrupt.*{reason}"):
            use(clone)
