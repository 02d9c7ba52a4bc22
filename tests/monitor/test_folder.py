"""A monitor's folder has the history of every unit and member, and is read by `load`, `table` and TensorBoard."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from monitored import DEAD, NAN, PARAMS, X, forward, history, killed, monitor, results
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relu_study import Measurement, MonitorWarning, table
from relu_study.errors import UserError

# ------------------------------------------------------------------------------------------ histories


def test_units_are_born_dead_die_and_revive(tmp_path: Path) -> None:
    both = killed(DEAD, "two", 2)
    found = history(tmp_path, (0, DEAD), (10, PARAMS), (20, both), (30, both), (40, PARAMS))
    events = found.events[["step", "site", "unit", "event"]].to_records(index=False).tolist()
    assert events == [
        *((0, "one", unit, "born dead") for unit in (0, 4)),
        *((10, "one", unit, "revived") for unit in (0, 4)),
        *((20, "one", unit, "died") for unit in (0, 4)),
        (20, "two", 2, "died"),
        *((40, "one", unit, "revived") for unit in (0, 4)),
        (40, "two", 2, "revived"),
    ]
    units = found.units.set_index(["site", "unit"])
    assert units.loc[("one", 0), ["born_dead", "revived", "deaths", "dead"]].tolist() == [True, 10, 1, False]
    assert pd.isna(units.loc[("one", 0), "died"])  # born dead and died are disjoint
    assert units.loc[("two", 2), ["born_dead", "died", "revived", "deaths"]].tolist() == [False, 20, 40, 1]
    assert len(units) == 11 and units.loc[("one", 1)][["born_dead", "deaths", "dead"]].tolist() == [False, 0, False]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "units.csv", dtype={"died": "Int64", "revived": "Int64"}), found.units, check_dtype=False
    )


def test_members_went_nonfinite_with_their_step_and_site(tmp_path: Path) -> None:
    def stacked(*members: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    inf = PARAMS | {"out": PARAMS["out"] | {"bias": np.full_like(PARAMS["out"]["bias"], np.inf)}}
    with monitor(tmp_path, (forward, stacked(PARAMS, PARAMS, DEAD)), ensemble=True) as watching:
        watching(0, stacked(PARAMS, PARAMS, DEAD))
        with pytest.warns(MonitorWarning, match=r"step 7: .*: member 1 in site 'two', member 2 in outputs\."):
            measured = watching(7, stacked(DEAD, NAN, inf))
        assert measured is not None and measured.nonfinite == {1: "two", 2: "outputs"}
        assert np.isfinite(np.asarray(measured.values["dead_fraction/all"])).tolist() == [True, False, False]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once
            watching(8, stacked(DEAD, NAN, inf))
        watching(9, stacked(DEAD, PARAMS, inf))
    found = results(tmp_path)
    assert found.runs["status"].tolist() == ["ok", "ok", "nonfinite"]
    assert found.runs["first_bad_step"].tolist()[1:] == [7, 7] and found.runs["first_bad_place"].tolist() == [
        "",
        "two",
        "outputs",
    ]
    members = found.events[found.events.unit.isna()]
    assert members[["step", "member", "site", "event"]].to_records(index=False).tolist() == [
        (7, 1, "two", "nonfinite"),
        (7, 2, "outputs", "nonfinite"),
        (9, 1, "", "finite"),
    ]
    assert not found.units[(found.units.member == 1)].dead.any()  # a nonfinite member keeps the state of its units
    assert found.units[(found.units.member == 2) & (found.units.site == "one")].dead.sum() == 2
    last = found.summary[(found.summary.metric == "dead_fraction") & (found.summary.site == "all") & (found.summary.step == 9)]
    assert last["n"].tolist() == [3] and last["n_finite"].tolist() == [2]


@pytest.mark.parametrize(
    "bad, place",
    [
        (NAN, "site 'two'"),
        (PARAMS | {"out": NAN["two"] | {"kernel": np.inf * PARAMS["out"]["kernel"], "bias": PARAMS["out"]["bias"]}}, "outputs"),
    ],
)
def test_a_single_model_went_nonfinite(bad: Any, place: str, tmp_path: Path) -> None:
    with monitor(tmp_path) as watching:
        watching(0, PARAMS)
        with pytest.warns(MonitorWarning, match=f"step 5: {place} went nonfinite since the last measurement"):
            watching(5, bad)


# -------------------------------------------------------------------------------------------- reading


def test_load_has_every_number_that_was_returned(tmp_path: Path) -> None:
    with monitor(tmp_path) as watching:
        measured = [watching(step, params) for step, params in ((0, PARAMS), (4, DEAD))]
    curves = results(tmp_path).curves
    for one in measured:
        assert isinstance(one, Measurement)
        stored = curves[curves.step == one.step]
        names = (stored.metric.astype(str) + "/" + stored.site.astype(str)).tolist()
        np.testing.assert_array_equal(np.array(list(one.values.values()), np.float32), stored.value.to_numpy(np.float32))
        assert names == list(one.values)
    assert results(tmp_path).runs["dead_fraction/one"].tolist() == [pytest.approx(2 / 6)]


def test_table(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, DEAD))
    text = table(tmp_path)
    assert "| one | 0.333 | 0 |" in text and "Step 10. Fractions on N = 32 probe examples." in text
    assert [line.split("|")[1].strip() for line in text.splitlines()[4:7]] == ["one", "two", "all"]
    by_step = table(tmp_path, rows="step", cols="site", metric="dead_fraction", where="site!=two", format="csv")
    assert by_step.splitlines()[1:] == [
        "0,one,dead_fraction,1,1,0.0,,",
        "0,all,dead_fraction,1,1,0.0,,",
        *by_step.splitlines()[3:],
    ]
    assert "| 0.333 |" in table(tmp_path, rows="member", metric="dead_fraction/one")
    assert "0.182" in table(tmp_path, metric="dead_fraction", epoch=10) and "0.182" not in table(tmp_path, epoch="0")
    for wrong, message in (
        ({"rows": "sites"}, "Did you mean site"),
        ({"metric": "dead"}, "Did you mean dead_fraction"),
        ({"epoch": 3}, "no measurement at step 3. The measured steps are 0, 10"),
        ({"where": "site=tow"}, "Did you mean two"),
        ({"baseline": "one"}, "has no baseline"),
        ({"where": "step>99"}, "no measurement"),
    ):
        with pytest.raises(UserError, match=message):
            table(tmp_path, **wrong)  # type: ignore[arg-type]


def test_tensorboard(tmp_path: Path) -> None:
    history(tmp_path, (0, PARAMS), (10, DEAD))
    loaded = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    loaded.Reload()
    assert [(p.step, p.value) for p in loaded.Scalars("dead_fraction/one")] == [(0, 0.0), (10, pytest.approx(1 / 3))]
    assert {f"{kind}/{site}" for kind in ("pre", "post", "gradient") for site in ("one", "two")} <= set(loaded.Tags()["tensors"])
    (event, _) = loaded.Tensors("post/one")
    buckets = np.frombuffer(event.tensor_proto.tensor_content, np.float32).reshape(-1, 3)
    zero = buckets[(buckets[:, 0] < 0) & (buckets[:, 1] > 0)]
    assert zero[0, 2] == (X @ PARAMS["one"]["kernel"] + PARAMS["one"]["bias"] <= 0).sum()


def test_tensorboard_of_an_ensemble_has_intervals(tmp_path: Path) -> None:
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), PARAMS, PARAMS, DEAD)
    with monitor(tmp_path, (forward, stacked), ensemble=True) as watching:
        watching(0, stacked)
    loaded = EventAccumulator(str(tmp_path / "tensorboard"))
    loaded.Reload()
    mean, lo, hi = (loaded.Scalars(f"dead_fraction/one/{tag}")[0].value for tag in ("mean", "lo", "hi"))
    assert mean == pytest.approx(1 / 9) and mean - lo == pytest.approx(hi - mean) and hi > mean
