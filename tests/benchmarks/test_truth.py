"""The truth of the benchmark of detectors: harm, signs, onsets and classes, by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from detector_parts import truth as truth_module
from detector_parts.configurations import CAUSES, Configuration, configurations, may_vanish
from detector_parts.truth import SIGNS, Signs, movement, truths

from relu_study.diagnosis.detector import PROBLEMS
from relu_study.storage.configurations import Configuration as Stored
from relu_study.study.run_spec import RunSpec

EPOCHS = np.array([0.0, 1.0, 2.0, 4.0])
NAN = np.nan


def stored(val: Any, train: Any = None, dead: Any = 0, units: int = 10, bad: Any = NAN, **values: Any) -> Stored:
    """One run per row. `dead` units of `units` at each measurement of site_1; the second site has none."""
    val = np.atleast_2d(np.asarray(val, float))
    runs = len(val)
    count = np.broadcast_to(np.asarray(dead), (runs, len(EPOCHS)))
    masks = np.arange(units) < count[..., None]
    norms = {f"{m}/{site}": np.ones((runs, len(EPOCHS))) for m in ("update_norm", "weight_norm") for site in ("site_1", "site_2")}
    norms |= {f"{m}/all": np.full((runs, len(EPOCHS)), 3**0.5) for m in ("update_norm", "weight_norm")}
    return Stored(
        config_id="", spec={}, num_requested=runs, run_ids=[str(i) for i in range(runs)], seeds=np.arange(runs), epochs=EPOCHS,
        status=np.full(runs, "ok"), first_bad_epoch=np.broadcast_to(np.asarray(bad, float), (runs,)), probe_examples=5_000,
        values={"val_loss/all": val, "train_loss/all": val if train is None else np.atleast_2d(train), **norms, **values},
        dead={"site_1": masks, "site_2": np.zeros_like(masks)},
    )  # fmt: skip


def arm(label: str, fault: str = "") -> Configuration:
    return Configuration(label, "net", "ripple", "tuning", fault, "x", RunSpec(), "twin")


HEALTHY = [1.0, 0.5, 0.2, 0.1]


@pytest.fixture(autouse=True)
def _constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth_module, "constant_loss", lambda source: 1.0)


def truth_of(runs: Stored, fault: str = "learning rate", frozen: Stored | None = None, signs: Signs = SIGNS) -> Any:
    by_label = {"twin": stored(HEALTHY), "arm": runs, **({"frozen": frozen} if frozen else {})}
    return truths([arm("arm", fault)], by_label, {"arm": "frozen"} if frozen else {}, signs)[0]


@pytest.mark.parametrize(("final", "kind"), [(0.18, "harmless fault"), (0.20, "sick")])
def test_harm_is_a_tenth_of_the_range_to_the_best_constant(final: float, kind: str) -> None:
    """The range is 1 - 0.1, its tenth 0.09."""
    assert truth_of(stored([1, 0.5, 0.3, final])).kind == kind


def test_harm_is_in_the_mean_over_seeds() -> None:
    assert truth_of(stored([[1, 0.5, 0.3, 0.1], [1, 0.5, 0.3, 0.27]])).kind == "harmless fault"
    assert truth_of(stored([[1, 0.5, 0.3, 0.1], [1, 0.5, 0.3, 0.29]])).kind == "sick"


def test_five_points_of_accuracy_are_harm() -> None:
    accuracy = {"val_accuracy/all": np.array([[0.1, 0.5, 0.8, 0.9]])}
    by_label = {
        "twin": stored(HEALTHY, **accuracy),
        "arm": stored(HEALTHY, **{"val_accuracy/all": accuracy["val_accuracy/all"] - 0.06}),
    }
    assert truths([arm("arm", "learning rate")], by_label, {})[0].kind == "sick"


def test_nonfinite_run_is_harmed_and_exploding_from_then_on() -> None:
    found = truth_of(stored([1, NAN, NAN, NAN], bad=1.0))
    assert found.sick("exploding").tolist() == [True] and found.onset("exploding").tolist() == [1]
    assert found.sick("dying").tolist() == [False]


@pytest.mark.parametrize(("loss", "onset"), [([1, 11, 1, 11], 3), ([1, 9, 10.1, 11], 2), ([1, 11, 12, 9.9], 4)])
def test_exploding_is_ten_times_the_first_loss_to_the_end(loss: list[float], onset: int) -> None:
    assert truth_of(stored(loss)).onset("exploding").tolist() == [onset]


@pytest.mark.parametrize(("dead", "onset"), [([0, 5, 5, 5], 1), ([5, 4, 4, 5], 3), ([0, 4, 4, 4], 4)])
def test_dying_is_half_of_the_units_of_a_site(dead: list[int], onset: int) -> None:
    found = truth_of(stored([1, 1, 1, 1], dead=[dead]))
    assert found.onset("dying").tolist() == [onset] and found.sick("dying").tolist() == [onset < 4]


def test_sign_that_the_fault_cannot_cause_is_no_sickness() -> None:
    assert truth_of(stored([1, 1, 1, 1], dead=[[9] * 4]), "few updates").sick("dying").tolist() == [False]
    assert truth_of(stored([1, 1, 1, 1], dead=[[9] * 4]), "few updates").sick("not_learning").tolist() == [True]


def test_not_learning_begins_when_the_twin_has_learned() -> None:
    """The twin is at half of the best constant's loss at epoch 1."""
    assert truth_of(stored([1, 1, 1, 0.97])).onset("not_learning").tolist() == [1]
    assert truth_of(stored([1, 1, 1, 0.9])).onset("not_learning").tolist() == [4], "better by a ninth of the range"


def test_movement_is_path_over_initial_norm_and_the_output_layer_is_the_rest() -> None:
    sites, last = movement(stored(HEALTHY))
    np.testing.assert_allclose(sites[0, :, 0], [1, 2, 3, 4])
    np.testing.assert_allclose(last[0], [1, 2, 3, 4], rtol=1e-6)


def test_vanishing_needs_a_still_first_half_and_a_harmless_freeze() -> None:
    still = {"update_norm/site_1": np.full((1, 4), 0.009)}
    runs = stored([1, 1, 1, 1], **still)
    runs.values["update_norm/all"] = np.full((1, 4), (0.009**2 + 1 + 1) ** 0.5)
    assert truth_of(runs, "small kernels", stored([1, 1, 1, 1.05])).onset("vanishing").tolist() == [0]
    assert not truth_of(runs, "small kernels", stored([1, 1, 1, 0.5])).sick("vanishing").any(), "frozen layers change the loss"
    assert not truth_of(runs, "small kernels").sick("vanishing").any(), "no frozen run"
    assert not truth_of(stored([1, 1, 1, 1]), "small kernels", stored([1, 1, 1, 1])).sick("vanishing").any(), "layers move"
    assert not truth_of(runs, "small kernels", stored([1] * 4), SIGNS.scaled(0.5)).sick("vanishing").any(), "half the threshold"


def test_shuffled_labels_and_twins_that_do_not_learn_are_classes_apart() -> None:
    assert truth_of(stored([1, 1, 1, 1]), "shuffled labels").kind == "nothing to learn"
    lazy = {"twin": stored([1, 1, 1, 0.51]), "arm": stored([1, 1, 1, 1])}
    assert truths([arm("arm", "learning rate")], lazy, {})[0].kind == "twin that does not learn"


def test_healthy_is_a_twin_whose_run_learns() -> None:
    runs = stored([[1, 0.4, 0.2, 0.1], [1, 1, 1, 0.8]])
    found = truths([Configuration("twin", "net", "ripple", "tuning", "", "", RunSpec(), "twin")], {"twin": runs}, {})[0]
    assert found.kind == "healthy" and found.healthy().tolist() == [True, False]


def test_design_of_the_default_benchmark() -> None:
    every = configurations()
    assert len(every) >= 250 and len({one.label for one in every}) == len(every) == len({one.spec.config_id for one in every})
    split = {}
    for one in every:
        assert split.setdefault(("architecture", one.architecture), one.split) == one.split
        assert split.setdefault(("source", one.source), one.split) == one.split
    assert min(Counter(one.split for one in every).values()) >= 100
    assert set(CAUSES) >= {one.fault for one in every} - {""} and {p for causes in CAUSES.values() for p in causes} == set(
        PROBLEMS
    )
    assert all(one.spec.depth >= 4 for one in every if may_vanish(one))
