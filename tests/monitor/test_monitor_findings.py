"""Findings of a monitored training: by site and member, callbacks, stops, continued folders and steps back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from monitored import DEAD, NAN, PARAMS, forward, killed, monitor, params_of

from relu_study import MonitorWarning
from relu_study.diagnosis.finding import MemberFinding
from relu_study.errors import UserError

SICK = killed(PARAMS, "two", *range(5))  # every unit
DIVERGED = PARAMS | {"out": {"kernel": 1e4 * PARAMS["out"]["kernel"], "bias": PARAMS["out"]["bias"]}}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MonitorWarning)  # of nonfinite models
        yield


def test_a_healthy_model_has_no_finding(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine", stop_on=("dying", "exploding", "vanishing")) as watching:
        measured = watching(0, PARAMS)
        assert measured is not None and measured.findings == watching.findings == () and not watching.should_stop


def test_a_finding_names_problem_site_units_and_step(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine") as watching:
        for step, params in ((0, PARAMS), (100, DEAD), (200, SICK)):
            measured = watching(step, params)
        (finding,) = watching.findings
        assert (finding.problem, finding.site, finding.units, finding.onset) == ("dying", "two", (5, 5), 200)
        assert measured is not None and measured.findings == (finding,)
        assert f"dying: {finding.evidence}" in repr(measured) and "since step 200" in finding.evidence
        watching(300, PARAMS)
        assert watching.findings == ()  # it is over


def test_the_loss_of_the_monitor_is_the_training_loss(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine", stop_on="exploding") as watching:
        watching(0, PARAMS)
        watching(10, DIVERGED)
        assert [finding.problem for finding in watching.findings] == ["exploding"] and watching.should_stop


def test_a_callback_hears_of_each_problem_and_site_once(tmp_path: Path) -> None:
    found: list[tuple[str, str, float]] = []
    with monitor(tmp_path / "mine") as watching:

        @watching.on_problem
        def note(finding: MemberFinding) -> None:
            assert finding.first_flag in watching.steps  # it is stored already
            found.append((finding.problem, finding.site, finding.first_flag))

        for step, params in enumerate(
            (PARAMS, SICK, SICK, PARAMS, SICK, killed(PARAMS, "one", *range(len(PARAMS["one"]["bias"]))), NAN, NAN)
        ):
            watching(step, params)
    assert found == [("dying", "two", 1), ("dying", "one", 1), ("exploding", "", 6)]


def test_an_error_of_a_callback_reaches_the_caller_after_the_measurement(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(finding: MemberFinding) -> None:
        raise Stop(finding.problem)

    with monitor(tmp_path / "mine") as watching:
        watching.on_problem(stop)
        watching(0, PARAMS)
        with pytest.raises(Stop, match="dying"):
            watching(1, SICK)
        assert watching.steps == [0, 1]
        assert watching(2, SICK) is not None  # the same problem is not new


def test_a_stop_stays_until_the_step_goes_back(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine", stop_on={"dying"}) as watching:
        assert not watching.should_stop
        for step, params in ((0, PARAMS), (10, SICK), (20, PARAMS)):
            watching(step, params)
        assert watching.findings == () and watching.should_stop
        watching(5, PARAMS)
        assert not watching.should_stop
        watching(10, SICK)
        assert watching.should_stop and watching.findings[0].first_flag == 10


def test_only_the_problems_of_stop_on_stop(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine", stop_on="exploding") as watching:
        watching(0, SICK)
        assert watching.findings and not watching.should_stop
        watching(1, NAN)
        assert watching.should_stop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_on": {"explodin"}}, r"unknown problem 'explodin'\. Did you mean exploding"),
        ({"stop_on": "not_learning"}, "needs the length of training. Pass it with total_steps="),
        ({"stop_on": "vanishing", "targets": None, "loss": None}, "needs grad_norm.* Pass targets and loss"),
        ({"total_steps": 0}, "total_steps=0 is no length"),
    ],
)
def test_invalid_arguments_are_refused_before_a_folder_is_made(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        monitor(tmp_path / "mine", **options)
    assert not (tmp_path / "mine").exists()


def test_without_a_loss_units_are_judged_and_nonfinite_models_are_found(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine", targets=None, loss=None, stop_on="exploding") as watching:
        watching(0, SICK)
        assert [finding.problem for finding in watching.findings] == ["dying"]
        watching(1, NAN)
        assert [finding.problem for finding in watching.findings] == ["exploding", "dying"] and watching.should_stop


def test_a_known_length_lets_learning_be_judged(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine", total_steps=10, stop_on="not_learning") as watching:
        for step in range(11):
            watching(step, PARAMS)  # the same loss at each step
        assert [finding.problem for finding in watching.findings] == ["not_learning"] and watching.should_stop


def test_members_have_their_own_findings(tmp_path: Path) -> None:
    healthy, sick = params_of(0), killed(params_of(0), "two", 0, 1, 2, 3, 4)
    found: list[int] = []

    def stacked(*members: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    start = stacked(healthy, healthy, healthy)
    with monitor(tmp_path / "mine", (forward, start), ensemble=True, stop_on="dying") as watching:
        watching.on_problem(lambda finding: found.append(finding.member))
        watching(0, start)
        measured = watching(1, stacked(healthy, sick, sick))
        assert found == [1, 2] and [finding.member for finding in watching.findings] == [1, 2]
        assert "member 1 dying: score of dead units at two" in repr(measured)
        assert not watching.should_stop  # member 0 is healthy
        watching(2, stacked(sick, healthy, healthy))
        assert found == [1, 2, 0] and watching.should_stop  # each member has had the problem


def test_a_continued_folder_begins_without_findings(tmp_path: Path) -> None:
    with monitor(tmp_path / "mine") as first:
        first(0, PARAMS)
        first(1, SICK)
        assert first.findings
    with monitor(tmp_path / "mine", stop_on="exploding") as second:
        assert list(second.findings) == [] and not second.should_stop
        second(2, DIVERGED)  # its loss is the first of this monitor
        assert list(second.findings) == []
        second(3, SICK)
        assert [(found.problem, found.first_flag) for found in second.findings] == [("dying", 3)]


def test_findings_change_no_stored_byte(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("plain", "watched")]
    for folder, options in zip(folders, ({}, {"stop_on": "dying", "total_steps": 3}), strict=True):
        with monitor(folder, **options) as watching:
            for step, params in enumerate((PARAMS, SICK, NAN)):
                watching(step, params)
    for name in ("measurements.csv", "events.csv", "units.csv", "manifest.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
