"""Conditions on factors and metrics, and the fixed values of other varying factors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from known_results import planted_folder

from relu_study.errors import UserError
from relu_study.report import conditions, factors
from relu_study.storage.configurations import collect
from relu_study.storage.declaration import StudyManifest, read_declared
from relu_study.storage.frames import runs_frame


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> StudyManifest:
    return read_declared(planted_folder(tmp_path_factory.getbasetemp() / "selection"))


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory, manifest: StudyManifest) -> pd.DataFrame:
    return runs_frame(collect(tmp_path_factory.getbasetemp() / "selection", manifest), manifest)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([], lambda f: np.ones(len(f), bool)),
        (["activation=tanh"], lambda f: f["activation"] == "tanh"),
        (["activation = tanh , selu"], lambda f: f["activation"].isin(["tanh", "selu"])),
        (["activation!=relu,tanh"], lambda f: ~f["activation"].isin(["relu", "tanh"])),
        (["learning_rate>0.001"], lambda f: f["learning_rate"] > 0.001),
        (["learning_rate=1e-2"], lambda f: f["learning_rate"] == 0.01),
        (["depth<=1", "target=wave"], lambda f: (f["depth"] == 1) & (f["target"] == "wave")),
        (["seed<3"], lambda f: f["seed"] < 3),
        (["status=nonfinite"], lambda f: f["status"] == "nonfinite"),
        (["dead_fraction>=0.3"], lambda f: f["dead_fraction/all"] >= 0.3),
        (["dead_fraction/site_2<0.3"], lambda f: f["dead_fraction/site_2"] < 0.3),
        (["val_loss!=7"], lambda f: f["val_loss/all"].notna()),  # the nonfinite run meets no condition on a metric
    ],
)
def test_conditions_keep_named_runs(where: list[str], expected, manifest: StudyManifest, frame: pd.DataFrame) -> None:
    declaration = manifest.declaration
    found = conditions.runs(conditions.parse(where, declaration), frame, declaration)
    np.testing.assert_array_equal(found, expected(frame).to_numpy() if where else expected(frame))
    assert found.any()


def test_labels_with_commas_select_arms_and_experiments(manifest: StudyManifest, frame: pd.DataFrame) -> None:
    declaration = manifest.declaration

    def arms(*where: str) -> set[str]:
        kept = conditions.configurations(conditions.parse(where, declaration), declaration)
        return {entry.arm for entry in kept}

    assert arms("arm=relu, rate=0.01") == {"relu, rate=0.01"}
    assert arms("arm=stuck,relu,rate=0.01, shallow") == {"stuck", "relu, rate=0.01", "shallow"}
    assert arms("experiment=activations", "arm!=baseline") == {"leaky_relu", "tanh"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("activaton=relu", r"unknown factor or metric 'activaton'. Did you mean activation"),
        ("activation=rely", r"unknown value of activation 'rely'. Did you mean relu"),
        ("arm=basline", r"Did you mean baseline"),
        ("learning_rate=7", r"unknown value of learning_rate '7'. Choose one of 0.001, 0.01"),
        ("activation", r"cannot read the condition 'activation'. Write NAME=VALUE"),
        ("activation=", r"cannot read the condition"),
        ("activation<tanh", r"orders activation, whose values are names. Use = or !="),
        ("learning_rate<0.1,0.2", r"compares with several values. Only = and != take a list"),
        ("val_loss<low", r"compares with 'low', which is not a number"),
        ("val_loss=nan", r"compares with NaN, which equals nothing"),
        ("val_loss/site_1<1", r"unknown column 'val_loss/site_1'. Did you mean val_loss/all"),
        ("status=fine", r"unknown value of status 'fine'"),
    ],
)
def test_meaningless_condition_is_refused_by_name(where: str, message: str, manifest: StudyManifest) -> None:
    with pytest.raises(UserError, match=message):
        conditions.parse([where], manifest.declaration)


def test_other_varying_factors_are_fixed_at_the_most_common_value(manifest: StudyManifest) -> None:
    declaration = manifest.declaration
    kept, held = factors.hold_fixed(declaration.configurations, ("activation", "target"))
    assert held == {"depth": 2, "initializer": "normal_005", "learning_rate": 0.001, "bias_shift": 0.0}
    assert {entry.spec["activation"] for entry in kept} == {"relu", "leaky_relu", "tanh"}
    # An arm is what it is: only what varies within it is held.
    kept, held = factors.hold_fixed(declaration.configurations, ("arm", "target"))
    assert held == {} and len(kept) == len(declaration.configurations)


def test_tie_of_most_common_values_is_refused(manifest: StudyManifest) -> None:
    declaration = manifest.declaration
    tuned = conditions.configurations(conditions.parse(["experiment=tuned"], declaration), declaration)
    message = r"learning_rate varies too, and 0.001, 0.01 are equally common. Choose one with --where learning_rate=0.001"
    with pytest.raises(UserError, match=message):
        factors.hold_fixed(tuned, ("activation", "target"))
    with pytest.raises(UserError, match=r"target varies too"):
        factors.hold_fixed(tuned, ("arm",))
