"""RunSpec ids depend only on fields that differ from their defaults; invalid fields are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import pytest

from relu_study.errors import UserError
from relu_study.study.run_spec import TRACED_FIELDS, RunSpec
from relu_study.study.study import Experiment, Study

# A default is a part of every id: moved, each stored id would name another run. A mark moved puts runs into other cohorts.
FIELDS = {
    "program": {
        **{"network": "mlp", "depth": 1, "width": 32, "activation": "relu", "output": "linear", "norm": "none"},
        **{"dropout": "none", "optimizer": "adam", "batch_size": 128, "rows": 200_000},
    },
    "init": {"initializer": "default"},
    "data": {"task": "negative_box", "target": "default", "inputs": "raw"},
    "length": {"epochs": 25},
    "traced": {"learning_rate": 1e-3, "weight_decay": 0, "leak": 0.01, "dropout_rate": 0, "gain": 1, "bias_shift": 0, "seed": 0},
}
DROPPED = RunSpec(target="coin_flip", epochs=100, dropout="dropout", dropout_rate=0.2, initializer="he_normal", seed=3)


@dataclass(frozen=True)
class Grown(RunSpec):
    """A RunSpec of a later version: one more field, first in name order."""

    agility: float = field(default=0.5, metadata={"mark": "traced"})


# Each is the head of `printf '{"activation": "tanh", ...}' | sha256sum`, the pairs in name order.
@pytest.mark.parametrize(
    ("spec", "run_id", "config_id"),
    [
        (RunSpec(), "44136fa355b3", "44136fa355b3"),
        (RunSpec(seed=7, learning_rate=0.01, depth=3, activation="tanh"), "cee1f6d40298", "20e138caa71b"),
        (DROPPED, "02f0327d9052", "619de9e91572"),
    ],
)
def test_ids_stay_as_they_were(spec: RunSpec, run_id: str, config_id: str) -> None:
    """Every results folder is found again by these."""
    assert (spec.run_id, spec.config_id) == (run_id, config_id)


def test_default_given_in_words_changes_nothing() -> None:
    spec = RunSpec(width=8, epochs=2, seed=5)
    said = RunSpec(**{**{f.name: f.default for f in fields(RunSpec)}, "width": 8, "epochs": 2, "seed": 5})
    assert said.changed() == spec.changed() == {"epochs": 2.0, "seed": 5, "width": 8}
    assert list(spec.changed()) == ["epochs", "seed", "width"]
    assert said.run_id == spec.run_id != spec.replace(width=9).run_id
    assert RunSpec(epochs=2.0, width=8.0, seed=5).run_id == spec.run_id, "2 and 2.0 are one number"  # type: ignore[arg-type]
    assert spec.config_id == spec.replace(seed=6).config_id != spec.replace(width=9).config_id
    assert spec.run_id != spec.replace(seed=6).run_id


def test_new_field_or_field_order_keeps_ids() -> None:
    words = {"seed": 7, "learning_rate": 0.01, "depth": 3, "activation": "tanh"}
    assert Grown(**words).run_id == RunSpec(**words).run_id and Grown(**words).config_id == RunSpec(**words).config_id
    assert Grown(**words, agility=0.6).run_id != RunSpec(**words).run_id
    turned = make_dataclass(
        "Turned",
        [(f.name, f.type, field(default=f.default, metadata=f.metadata)) for f in reversed(fields(RunSpec))],
        namespace={"changed": RunSpec.changed, "run_id": RunSpec.run_id},
    )
    assert fields(turned)[0].name == "options" and turned(**words).run_id == RunSpec(**words).run_id


def test_marks_and_defaults() -> None:
    assert {f.metadata["mark"] for f in fields(RunSpec)} == {*FIELDS, "options"}
    for mark, defaults in FIELDS.items():
        assert dict(RunSpec().marked(mark)).items() >= defaults.items(), mark
    assert dict(RunSpec().marked(*FIELDS)) == RunSpec().as_dict()
    assert [name for name, _ in RunSpec().marked("data", "length")] == ["task", "target", "inputs", "epochs"]
    assert "seed" not in TRACED_FIELDS and {*TRACED_FIELDS, "seed"} == dict(RunSpec().marked("traced")).keys()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"epochs": -1}, "epochs must be at least 0, not -1"),
        ({"epochs": math.inf}, "epochs must be a finite number"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number, not nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a finite number, not 'fast'"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"width": 2.5}, "width must be a whole number, not 2.5"),
        ({"width": True}, "width must be a finite number, not True"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rows": 1}, "rows must be at least 2"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32"),
        ({"activation": 3}, "activation must be a name, not 3"),
        ({"dropout": "dropout", "dropout_rate": 1}, r"dropout_rate must be in \[0, 1\), not 1"),
        ({"dropout": "dropout", "dropout_rate": -0.1}, r"dropout_rate must be in \[0, 1\), not -0.1"),
        ({"dropout_rate": 0.5}, "without a dropout kind"),
        ({"norm": "batchnorm"}, "Did you mean batch_norm"),
        ({"dropout": "alpha"}, "alpha_dropout"),
        ({"inputs": "centered"}, "Did you mean centred"),
    ],
)
def test_nonsense_is_refused(words: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        RunSpec(**words)
    with pytest.raises(UserError, match=hint):
        RunSpec().replace(**words)


def test_limits_of_each_field_are_valid() -> None:
    assert RunSpec(epochs=0, rows=2, batch_size=1, seed=2**32 - 1, dropout="dropout", dropout_rate=0).epochs == 0
    assert RunSpec(dropout="dropout", dropout_rate=0.999).dropout_rate == 0.999 and RunSpec(epochs=12.5).epochs == 12.5


@pytest.mark.parametrize("network", ["mlp", "skip"])
def test_first_networks_have_one_id_with_and_without_their_initializer(network: str) -> None:
    for options in ({}, {"stem": "wide"}):
        spec = RunSpec(network=network, width=8, seed=3, options=options)
        written = spec.replace(initializer="glorot_uniform")
        assert written.run_id == spec.run_id and written.changed() == spec.changed() and written != spec
        assert "initializer" not in spec.changed()
    assert RunSpec(initializer="glorot_uniform").run_id == RunSpec().run_id == "44136fa355b3"
    assert RunSpec(network="skip", initializer="glorot_uniform").run_id == RunSpec(network="skip").run_id == "8092a0a38347"


def test_written_initializer_of_other_networks_has_another_id() -> None:
    cnn = RunSpec(network="cnn")
    assert cnn.replace(initializer="glorot_uniform").run_id != cnn.run_id == "54bb306ff5cc"
    assert cnn.changed() == {"network": "cnn"}


def test_study_trains_a_written_default_once() -> None:
    arms = {"unset": RunSpec(), "written": RunSpec(initializer="glorot_uniform")}
    study = Study("s", "S", "", [Experiment("main", arms), Experiment("more", {"unset": arms["written"]}, seeds=5)], seeds=2)
    assert study.runs() == [RunSpec(seed=seed) for seed in range(5)]
    assert {entry["config_id"]: entry["seeds"] for entry in study.declaration()["configurations"]} == {RunSpec().config_id: 5}
