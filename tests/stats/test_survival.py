"""Unit histories and survival against a slow loop, scipy's Kaplan-Meier and histories by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_study.stats import intervals, survival

NAN = float("nan")


def slow_life(flags: list[bool], epochs: list[float], bad: float) -> dict[str, int | None]:
    """One unit's life, told epoch by epoch. `death` is an index; flags at or after `bad` are not looked at."""
    life: dict[str, int | None] = {"born_dead": 0, "died": 0, "revived": 0, "dead_at_end": 0, "death": None}
    state = None
    for index, flag in enumerate(flags):
        if not np.isnan(bad) and epochs[index] >= bad:
            break
        if index == 0:
            life["born_dead"] = int(flag)
        elif state == "dead" and not flag:
            life["revived"] = 1
        elif state == "alive" and flag and not life["born_dead"] and not life["died"]:
            life["died"], life["death"] = 1, index
        state = "dead" if flag else "alive"
        life["dead_at_end"] = int(flag)
    return life


def slow_survival(dead: np.ndarray, epochs: list[float], bad: np.ndarray) -> dict[str, list[float]]:
    """The life table, counted unit by unit and epoch by epoch."""
    table: dict[str, list[float]] = {name: [] for name in ("runs", "at_risk", "died", "censored", "survival")}
    left = 1.0
    for index in range(len(epochs)):
        count = dict.fromkeys(("runs", "at_risk", "died", "censored"), 0)
        for run in range(len(dead)):
            finite = [not e >= bad[run] for e in epochs]
            count["runs"] += finite[index]
            for unit in range(dead.shape[2]):
                if not finite[0] or dead[run, 0, unit] or dead[run, :index, unit].any():
                    continue  # unknown, born dead, or dead before
                if finite[index]:
                    count["at_risk"] += 1
                    count["died"] += bool(dead[run, index, unit])
                elif finite[index - 1]:
                    count["censored"] += 1
        if count["at_risk"]:
            left *= 1 - count["died"] / count["at_risk"]
        elif index == 0:
            left = NAN
        for name, number in count.items():
            table[name].append(number)
        table["survival"].append(left if count["runs"] else NAN)
    return table


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    runs, units = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    epochs = draw(st.sampled_from([[0.0], [0.0, 1.0], [0.0, 1.0, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0, 3.5]]))
    size = runs * len(epochs) * units
    dead = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(runs, len(epochs), units)
    bad = draw(st.lists(st.sampled_from([NAN, NAN, *epochs]), min_size=runs, max_size=runs))
    return dead, np.array(epochs), np.array(bad)


@settings(max_examples=150, deadline=None)
@given(histories())
def test_histories_match_slow_loop(history: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    dead, epochs, bad = history
    found = survival.unit_histories(dead, epochs, bad)
    for run in range(len(dead)):
        told = [slow_life(dead[run, :, u].tolist(), epochs.tolist(), bad[run]) for u in range(dead.shape[2])]
        for name in ("born_dead", "died", "revived", "dead_at_end"):
            assert getattr(found, name)[run] == sum(life[name] for life in told), name
        assert found.first_death[run].tolist() == [-1 if life["death"] is None else life["death"] for life in told]
        assert found.censored[run] == (not np.isnan(bad[run]))


@settings(max_examples=150, deadline=None)
@given(histories())
def test_survival_matches_slow_loop(history: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    dead, epochs, bad = history
    found = survival.survival(dead, epochs, bad, intervals.generator("key"))
    for name, expected in slow_survival(dead, epochs.tolist(), bad).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(found["at_risk"][1:], (found["at_risk"] - found["died"])[:-1] - found["censored"][1:])
    assert found["died"].sum() == survival.unit_histories(dead, epochs, bad).died.sum()
    assert (found["lo"] <= found["hi"]).all() or np.isnan(found["lo"]).any()


def test_each_kind_of_history_once() -> None:
    told = {
        "never dead": "....",
        "dies for good": ".##.."[:2] + "##",
        "born dead": "####",
        "born dead, revived": "##..",
        "dies, revived, dies again": ".#.#",
        "born dead, revived, dead again": "#.##",
    }
    dead = np.array([[c == "#" for c in life] for life in told.values()]).T[None]
    found = survival.unit_histories(dead, np.array([0.0, 1, 2, 5]), np.array([NAN]))
    assert found.born_dead.tolist() == [3]
    assert found.died.tolist() == [2]
    assert found.revived.tolist() == [3]  # once each, however often
    assert found.dead_at_end.tolist() == [4]
    assert found.first_death.tolist() == [[-1, 1, -1, -1, 1, -1]]


def test_flags_of_nonfinite_epochs_are_ignored() -> None:
    alive = np.zeros((2, 4, 3), bool)
    trap = alive.copy()
    trap[1, 2:] = True  # from epoch 2 on every unit of run 1 looks dead
    epochs, bad = np.array([0.0, 1, 2, 3]), np.array([NAN, 2.0])
    lived = survival.unit_histories(trap, epochs, bad)
    assert lived.died.tolist() == [0, 0] and lived.dead_at_end.tolist() == [0, 0] and lived.censored.tolist() == [False, True]
    found = survival.survival(trap, epochs, bad, intervals.generator("key"))
    assert found["survival"].tolist() == [1, 1, 1, 1]
    assert found["at_risk"].tolist() == [6, 6, 3, 3] and found["censored"].tolist() == [0, 0, 3, 0]
    assert found["runs"].tolist() == [2, 2, 1, 1]


def test_survival_by_hand() -> None:
    # Run 0 loses one of four units at each epoch; run 1, of four units, loses none and goes nonfinite at the last epoch.
    dead = np.zeros((2, 4, 4), bool)
    for unit in range(3):
        dead[0, unit + 1 :, unit] = True
    found = survival.survival(dead, np.array([0.0, 1, 2, 3]), np.array([NAN, 3.0]), intervals.generator("key"))
    assert found["at_risk"].tolist() == [8, 8, 7, 2]
    assert found["died"].tolist() == [0, 1, 1, 1]
    assert found["censored"].tolist() == [0, 0, 0, 4]
    np.testing.assert_allclose(found["survival"], [1, 7 / 8, 6 / 8, 3 / 8])


def test_survival_is_scipys_kaplan_meier() -> None:
    rng = np.random.default_rng(0)
    dead = np.logical_or.accumulate(rng.random((12, 9, 20)) < 0.08, axis=1)
    epochs = np.arange(9.0)
    bad = np.where(rng.random(12) < 0.4, rng.integers(1, 9, 12), NAN)
    died, left = [], []
    for run in range(12):
        last = 8 if np.isnan(bad[run]) else int(bad[run]) - 1
        for unit in range(20):
            if dead[run, 0, unit]:
                continue
            death = int(dead[run, :, unit].argmax()) if dead[run, :, unit].any() else 99
            died.append(death) if death <= last else left.append(last)
    curve = scipy.stats.ecdf(scipy.stats.CensoredData(uncensored=died, right=left)).sf
    np.testing.assert_allclose(
        survival.survival(dead, epochs, bad, intervals.generator("key"))["survival"], curve.evaluate(epochs), rtol=1e-12
    )


def few_and_many(runs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dead = np.logical_or.accumulate(np.random.default_rng(1).random((runs, 3, 3)) < 0.3, axis=1)
    return dead, np.array([0.0, 1, 2]), np.where(np.arange(runs) == 2, 2.0, NAN)


def test_survival_interval_of_many_runs_is_a_percentile_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    dead, epochs, bad = few_and_many(20)
    drawn = intervals.generator("key").multinomial(20, np.full(20, 1 / 20), size=intervals.RESAMPLES)
    curves = []
    for times in drawn:
        runs = np.repeat(np.arange(20), times)
        curves.append(slow_survival(dead[runs], epochs.tolist(), bad[runs])["survival"])
    found = survival.survival(dead, epochs, bad, intervals.generator("key"))
    np.testing.assert_allclose([found["lo"], found["hi"]], np.percentile(curves, (2.5, 97.5), axis=0), rtol=1e-12)
    assert found["lo"][2] < found["survival"][2] < found["hi"][2]


def test_survival_interval_of_few_runs_is_the_jackknife() -> None:
    dead, epochs, bad = few_and_many(6)
    curves = []
    for left_out in range(6):
        runs = np.delete(np.arange(6), left_out)
        curves.append(slow_survival(dead[runs], epochs.tolist(), bad[runs])["survival"])
    spread = np.sqrt(5 / 6 * ((np.array(curves) - np.mean(curves, axis=0)) ** 2).sum(axis=0))
    half = scipy.stats.t.ppf(0.975, 5) * spread
    found = survival.survival(dead, epochs, bad, intervals.generator("key"))
    np.testing.assert_allclose(found["lo"], np.clip(found["survival"] - half, 0, 1), rtol=1e-12)
    np.testing.assert_allclose(found["hi"], np.clip(found["survival"] + half, 0, 1), rtol=1e-12)
    assert found["lo"][2] < found["survival"][2] < found["hi"][2]


def test_survival_without_data() -> None:
    epochs = np.array([0.0, 1])
    born_dead = survival.survival(np.ones((3, 2, 4), bool), epochs, np.full(3, NAN), intervals.generator("key"))
    assert np.isnan(born_dead["survival"]).all() and np.isnan(born_dead["lo"]).all()
    assert born_dead["at_risk"].tolist() == [0, 0]
    gone = survival.survival(np.zeros((2, 2, 4), bool), epochs, np.array([1.0, 1.0]), intervals.generator("key"))
    np.testing.assert_array_equal(gone["survival"], [1, NAN])
    np.testing.assert_array_equal(gone["hi"], [1, NAN])
    alone = survival.survival(np.zeros((1, 2, 4), bool), epochs, np.array([NAN]), intervals.generator("key"))
    assert alone["survival"].tolist() == [1, 1] and np.isnan(alone["lo"]).all()
    never = survival.unit_histories(np.ones((1, 2, 4), bool), epochs, np.array([0.0]))
    assert never.born_dead.tolist() == never.dead_at_end.tolist() == [0]
