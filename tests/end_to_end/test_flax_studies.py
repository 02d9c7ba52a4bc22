"""A study of Flax networks with own factors on a task of images, from the arms to the tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import pytest
from flax import nnx
from flax_networks import IMAGES, registered

import relu_study
from relu_study import Experiment, RunSpec, Study, grid, network

NAME = "flax_study"


class Stages(nnx.Module):
    """One convolution of as many channels as an option says; without them, a linear network."""

    def __init__(self, spec: RunSpec, inputs: Any, outputs: Any, rngs: nnx.Rngs):
        channels = spec.option("channels")
        self.conv = nnx.Conv(1, channels, (3, 3), rngs=rngs) if channels else None
        self.last = nnx.Linear(16 * max(channels, 1), outputs.shape[-1], rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x if self.conv is None else jax.nn.relu(self.conv(x))
        return self.last(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results of two sizes of one network, and of a network without sites."""
    place = tmp_path_factory.mktemp("results") / NAME
    with registered():
        network("test_stages", options={"channels": 2})(Stages)
        arms = grid(IMAGES.replace(network="test_stages", epochs=1, optimizer="sgd"), channels=[0, 2, 4])
        study = Study(NAME, "Stages", "How many?", [Experiment("main", arms)], seeds=2, metrics=("val_accuracy", "val_loss"))
        relu_study.run(study, out=place)
        yield place


def test_options_and_real_values_are_columns(folder: Path) -> None:
    runs = pd.read_csv(folder / "runs.csv")
    assert runs["channels"].tolist() == [0, 0, 2, 2, 4, 4] and set(runs["initializer"]) == {"own"}
    assert {"val_accuracy/all", "accuracy/all", "dead_fraction/site_1"} <= {*runs.columns}
    dead = runs.set_index("channels")["dead_fraction/site_1"]
    assert dead[0].isna().all() and dead[[2, 4]].notna().all()
    assert (runs["status"] == "ok").all() and runs["val_loss/all"].nunique() == 6


def test_tables_say_which_network_has_no_sites(folder: Path) -> None:
    table = relu_study.table(folder, rows="channels", metric=["dead_fraction", "val_accuracy"])
    lines = [line for line in table.splitlines() if line.startswith("| 0 |")]
    assert len(lines) == 1 and "no sites" in lines[0] and "no sites" not in table.replace(lines[0], "")
    assert (
        "has no sites: no nonlinearity after weights was found in it, so no unit is measured."
        in (folder / "report.md").read_text()
    )


def test_a_condition_on_an_option_selects_arms(folder: Path) -> None:
    table = relu_study.table(folder, rows="channels", metric="dead_fraction", where="channels>=2")
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:] == ["2", "4"]
