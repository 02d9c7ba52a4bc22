"""Findings while models train: new ones, onsets, long records in bounded memory, and steps back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from relu_study.diagnosis.diagnose import OURS, diagnose
from relu_study.diagnosis.history import History
from relu_study.diagnosis.live import KEPT, LiveDiagnosis

NAN = float("nan")


def live(members: int = 1, only: tuple[str, ...] = ("dying", "exploding"), **options: float) -> LiveDiagnosis:
    return LiveDiagnosis(["one", "two"], {"one": 20, "two": 10}, members, only=only, **options)  # type: ignore[arg-type]


def add(record: LiveDiagnosis, step: int, dead: tuple[float, float] = (0, 0), loss: float = 1, finite: bool = True) -> list[str]:
    values = {"dead_fraction/one": dead[0], "dead_fraction/two": dead[1], "train_loss/all": loss}
    arrays = {name: np.array([value], float) for name, value in values.items()}
    return [f"{new.problem} {new.site}".strip() for new in record.add(step, arrays, np.array([finite]))]


def test_a_finding_is_new_once_for_each_site() -> None:
    record = live()
    assert add(record, 0) == []
    assert add(record, 10, dead=(0, 0.9)) == ["dying two"]
    assert add(record, 20, dead=(0, 1)) == []
    assert add(record, 30, dead=(1, 0.9)) == ["dying one"]
    assert add(record, 40) == [] and record.findings() == []  # it is over
    assert add(record, 50, dead=(0, 1)) == []  # known already


def test_first_flag_and_onset_are_steps() -> None:
    record = live()
    for step, dead in enumerate([0, 0.9, 0, 0.9, 0.85]):
        add(record, 100 * step, dead=(dead, 0))
    (finding,) = record.findings()
    assert (finding.first_flag, finding.onset, finding.units, finding.member) == (100, 300, (17, 20), 0)
    assert finding.evidence.endswith("since step 300")


def test_members_have_their_own_findings() -> None:
    record, dead = live(members=3), np.array([0, 0.9, 1])
    new = record.add(5, {"dead_fraction/two": dead, "train_loss/all": np.ones(3)}, np.ones(3, bool))
    assert [(finding.member, finding.site, finding.score) for finding in new] == [
        (1, "two", 0.9),
        (2, "two", 1),
    ]
    assert record.sick("dying").tolist() == [False, True, True] and not record.sick("exploding").any()


def test_a_nonfinite_member_stays_nonfinite() -> None:
    record = live(kept=4)
    assert add(record, 0) == [] and add(record, 1, finite=False) == ["exploding"]
    for step in range(2, 40):  # the nonfinite measurement itself is not kept
        assert add(record, step) == []
    (finding,) = record.findings()
    assert finding.problem == "exploding" and finding.onset == 1 and np.isinf(finding.score)


def random_values(seed: int, count: int, members: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    names = [f"{metric}/{site}" for metric in ("dead_fraction", "grad_norm", "weight_norm") for site in ("one", "two")]
    values = {name: draw.uniform(0, 1, (members, count)) for name in names}
    return values | {"train_loss/all": draw.uniform(0.1, 1, (members, count))}


def test_while_all_measurements_are_kept_findings_are_those_of_diagnose() -> None:
    count, values = 20, random_values(0, 20, members=5)
    values["grad_norm/one"] *= 1e-9  # vanishing
    record = live(members=5, only=OURS, total=19)
    for step in range(count):
        record.add(step, {name: column[:, step] for name, column in values.items()}, np.ones(5, bool))
        until = {name: column[:, : step + 1] for name, column in values.items()}
        finite = np.ones((5, step + 1), bool)
        history = History(
            np.arange(step + 1.0), ("one", "two"), until, finite, np.full(5, NAN), 19, {"one": 20, "two": 10}, "step"
        )
        expected = [(member, finding.evidence) for member, found in enumerate(diagnose(history)) for finding in found]
        assert [(finding.member, finding.evidence) for finding in record.findings()] == expected
    assert {finding.problem for finding in record.findings()} >= {"vanishing"}


@pytest.mark.parametrize("kept", [4, 5, 16, KEPT])
def test_a_long_record_keeps_the_first_the_last_and_evenly_spaced_measurements(kept: int) -> None:
    record = live(kept=kept)
    for step in range(300):
        add(record, step, loss=1 / (step + 1))
        steps = record.history().epochs.tolist()
        assert steps[0] == 0 and steps[-1] == step and len(steps) == len(record) <= kept
        gaps = {after - before for before, after in itertools.pairwise(steps[:-1])}
        assert len(gaps) <= 1 and (step < kept or len(steps) > kept // 2)
        np.testing.assert_array_equal(record.history().overall("train_loss")[0], 1 / (np.array(steps) + 1))


def test_vanishing_of_a_long_record_is_close_to_that_of_all_measurements() -> None:
    record, early = live(only=("vanishing",)), 0.995 ** np.arange(600)
    columns = {"grad_norm/one": 1e-3 * early, "grad_norm/two": early, "weight_norm/one": early * 0 + 1}
    columns["weight_norm/two"] = columns["weight_norm/one"]
    for step in range(600):
        record.add(step, {name: column[[step]] for name, column in columns.items()}, np.ones(1, bool))
    metrics = {name: column[None] for name, column in columns.items()}
    whole = History(np.arange(600.0), ("one", "two"), metrics, np.ones((1, 600), bool), np.full(1, NAN), 600)
    ((expected,),) = diagnose(whole, only=["vanishing"])
    (finding,) = record.findings()
    assert finding.site == expected.site == "one" and finding.score == pytest.approx(expected.score, abs=0.05)


def test_without_a_known_length_learning_is_not_judged() -> None:
    for total, problems in ((float("inf"), []), (40, ["not_learning"])):
        record = live(only=("not_learning",), total=total)
        new = [add(record, step) for step in range(0, 50, 10)]
        assert [problem for found in new for problem in found] == problems


def test_a_step_back_drops_later_measurements_and_their_findings() -> None:
    record = live()
    for step, dead in enumerate([0, 0.9, 0.9]):
        add(record, step, dead=(dead, 0), finite=step < 2)
    record.rewind(1)
    assert record.history().epochs.tolist() == [0] and record.findings() == []
    assert add(record, 1) == [] and record.findings() == []
    assert add(record, 2, dead=(0.9, 0)) == ["dying one"]
    (finding,) = record.findings()
    assert (finding.first_flag, finding.onset) == (2, 2)


@pytest.mark.parametrize("name", OURS)
def test_rules_of_ours_read_only_the_metrics_that_they_require(name: str) -> None:
    values = random_values(1, 8, members=4) | {"accuracy/all": np.ones((4, 8)), "update_norm/one": np.zeros((4, 8))}
    record = live(members=4, only=(name,), total=7)
    for step in range(8):
        record.add(step, {key: column[:, step] for key, column in values.items()}, np.ones(4, bool))
    whole = History(np.arange(8.0), ("one", "two"), values, np.ones((4, 8), bool), np.full(4, NAN), 7.0, {"one": 20, "two": 10})
    expected = [(m, f.score) for m, found in enumerate(diagnose(whole, only=[name])) for f in found]
    assert [(finding.member, finding.score) for finding in record.findings()] == expected
