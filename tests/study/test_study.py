"""Declarations of studies: seeds, targets, measurement interval; invalid studies are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from relu_study.errors import UserError
from relu_study.study.claims import Claim, Target
from relu_study.study.outputs import EventTable, Figure
from relu_study.study.run_spec import RunSpec
from relu_study.study.study import Experiment, Study

BASE = RunSpec(rows=600, width=8)
DEEP = BASE.replace(depth=3)
TARGETS = (Target("wave"), Target("sum"), Target("coin_flip"))
FEW = Experiment("few", {"relu": BASE, "tanh": BASE.replace(activation="tanh")}, targets=("wave", "sum"))
MANY = Experiment("many", {"relu": BASE, "elu": BASE.replace(activation="elu")}, seeds=5, targets=("sum",))
ELSEWHERE = Experiment("elsewhere", {"relu": DEEP}, seeds=2, targets=("coin_flip",))


def study(**changes: object) -> Study:
    plain = Study("s", "S", "", (FEW, MANY, ELSEWHERE), seeds=3, targets=TARGETS, presets={"full": {"seeds": 7, "every": 4}})
    return replace(plain, **changes)


def seeds(s: Study) -> dict[tuple[str, str, int], list[int]]:
    found: dict[tuple[str, str, int], list[int]] = {}
    for run in s.runs():
        found.setdefault((run.activation, run.target, run.depth), []).append(run.seed)
    return found


def test_configuration_has_largest_seed_count_of_its_experiments() -> None:
    three, five = [0, 1, 2], [0, 1, 2, 3, 4]
    assert seeds(study()) == {
        ("relu", "wave", 1): three,
        ("relu", "sum", 1): five,
        ("tanh", "wave", 1): three,
        ("tanh", "sum", 1): three,
        ("elu", "sum", 1): five,
        ("relu", "coin_flip", 3): [0, 1],
    }
    declared = {(e["experiment"], e["arm"], e["spec"]["target"]): e["seeds"] for e in study().declaration()["configurations"]}
    assert declared["few", "relu", "wave"] == declared["few", "tanh", "sum"] == 3
    assert declared["few", "relu", "sum"] == declared["many", "relu", "sum"] == declared["many", "elu", "sum"] == 5
    assert declared["elsewhere", "relu", "coin_flip"] == 2
    assert seeds(study(skip=("many",)))["relu", "sum", 1] == three


def test_requested_seeds_override_experiments() -> None:
    assert {len(found) for found in seeds(study().with_preset(seeds=1)).values()} == {1}
    assert {len(found) for found in seeds(study().with_preset("full")).values()} == {7}
    assert {len(found) for found in seeds(study().with_preset("full", seeds=4)).values()} == {4}
    assert seeds(study().with_preset("full", seeds=None, epochs=2)) == seeds(study().with_preset("full"))


def test_label_has_one_spec_per_target() -> None:
    assert study().arms() == {"relu": BASE, "tanh": BASE.replace(activation="tanh"), "elu": BASE.replace(activation="elu")}
    with pytest.raises(UserError, match="arm 'relu' has two different RunSpecs on target 'sum'"):
        study(experiments=(FEW, replace(ELSEWHERE, targets=("coin_flip", "sum"))))
    with pytest.raises(UserError, match="arm 'relu' has two different RunSpecs"):
        study(experiments=(FEW, replace(ELSEWHERE, targets=())))
    with pytest.raises(UserError, match=r"unknown target of experiment elsewhere 'coin'. Did you mean coin_flip"):
        study(experiments=(FEW, replace(ELSEWHERE, targets=("coin",))))


def test_use_targets_restrict_each_experiment() -> None:
    found = study(use_targets=("coin_flip", "sum")).configurations()
    assert [(name, label, spec.target) for name, label, spec in found] == [
        ("few", "relu", "sum"),
        ("few", "tanh", "sum"),
        ("many", "relu", "sum"),
        ("many", "elu", "sum"),
        ("elsewhere", "relu", "coin_flip"),
    ]


def test_claims_apply_to_shared_targets_of_their_arms() -> None:
    claims = (
        Claim("A", "a", "val_loss", "elu", "relu", "less", 0.1),
        Claim("B", "b", "val_loss", "relu", 1.0, "less", 0.1),
        Claim("C", "c", "val_loss", ("relu", "tanh"), "relu", "less", 0.1),
        Claim("D", "d", "val_loss", "relu", 1.0, "less", 0.1, targets=("sum",)),
    )
    said = {claim["claim"]: claim["targets"] for claim in study(claims=claims).declaration()["claims"]}
    assert said == {"A": ["sum"], "B": ["wave", "sum", "coin_flip"], "C": ["wave", "sum"], "D": ["sum"]}
    # an arm that is left out at this size has no target: its claim is asked everywhere, and has nothing to compare
    assert study(claims=claims, skip=("many",)).declaration()["claims"][0]["targets"] == []
    with pytest.raises(UserError, match=r"unknown target of claim A 'sun'. Did you mean sum"):
        study(claims=(replace(claims[0], targets=("sun",)),))


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "3"])
def test_seeds_are_whole_numbers(wrong: object) -> None:
    for changes, what in (
        ({"seeds": wrong}, "seeds"),
        ({"experiments": (replace(FEW, seeds=wrong),)}, "seeds of experiment few"),
    ):
        with pytest.raises(UserError, match=rf"study s: {what} must be a whole number of at least 1"):
            study(**changes)


def test_preset_says_how_often_it_measures() -> None:
    assert study().every == 1 and study().with_preset("full").every == 4 and study().declaration()["every"] == 1
    with pytest.raises(UserError, match=r"unknown setting of preset full 'ever'. Did you mean every"):
        study(presets={"full": {"ever": 4}})
    with pytest.raises(UserError, match="study s: every must be a whole number of at least 1, a fraction"):
        study(presets={"full": {"every": 1.5}}).with_preset("full")


def test_study_measures_within_epochs_and_declares_plain_numbers() -> None:
    often = study(presets={"full": {"every": 0.5}}).with_preset("full")
    early = study(every=[0.1, 1.0, np.float64(2.5)])
    assert (often.every, early.every, study(every=2.0).every) == (0.5, (0.1, 1, 2.5), 2)
    assert json.dumps(early.declaration()["every"]) == "[0.1, 1, 2.5]" and json.dumps(study().declaration()["every"]) == "1"


def test_table_of_counts_names_factors_and_events() -> None:
    counts = EventTable("c", "C", ("few",), {"target": "target"}, {"collapsed": ("collapsed",)})
    assert study(tables=(counts,)).declaration()["tables"][0]["events"] == {"collapsed": ("collapsed",)}
    with pytest.raises(UserError, match=r"unknown factor among the keys of table c 'activaton'. Did you mean activation"):
        study(tables=(replace(counts, keys={"phi": "activaton"}),))
    with pytest.raises(UserError, match=r"unknown factor among the keys of table c 'site'"):
        replace(counts, keys={"phi": "site"})
    with pytest.raises(UserError, match="table c counts no events"):
        replace(counts, events={})
    for wrong in (replace(counts, experiments=("fuw",)), replace(counts, arms=("rely",))):
        with pytest.raises(UserError, match=r"Did you mean (few|relu)"):
            study(tables=(wrong,), figures=(Figure("f", "F", "survival"),))


def test_declaration_has_a_claims_against_site_only_if_it_is_set() -> None:
    claim = Claim("C", "it is so", "dead_fraction", "a", "a", "greater", 0.1, site="last", against_site="site_1")
    study = Study("s", "S", "", [Experiment("main", {"a": RunSpec()})], claims=[claim, replace(claim, against_site=None)])
    one, other = study.declaration()["claims"]
    assert one["against_site"] == "site_1" and "against_site" not in other
